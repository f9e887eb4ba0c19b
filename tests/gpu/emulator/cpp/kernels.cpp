#include "emulator.h"

#define EMULATED 1

// Each precision by itself, as two modules on a device.
namespace of_f32 {
#define PRECISION "float32"
#define REAL 0
#include "common.cuh"
#include "dropout.cuh"
#include "rows.cu"
#include "attention.cu"
#include "top_k.cu"
#include "tail.cu"
#include "training.cu"
#include "attention_training.cu"
#include "loss.cu"
#undef REAL
#undef PRECISION
}  // namespace of_f32

namespace of_bf16 {
#define PRECISION "bfloat16"
#define REAL 1
#include "common.cuh"
#include "dropout.cuh"
#include "rows.cu"
#include "attention.cu"
#include "top_k.cu"
#include "tail.cu"
#include "training.cu"
#include "attention_training.cu"
#include "loss.cu"
#undef REAL
#undef PRECISION
}  // namespace of_bf16

namespace of_f16 {
#define PRECISION "float16"
#define REAL 2
#include "common.cuh"
#include "dropout.cuh"
#include "rows.cu"
#include "attention.cu"
#include "top_k.cu"
#include "tail.cu"
#include "training.cu"
#include "attention_training.cu"
#include "loss.cu"
}  // namespace of_f16

// Whoever calls it links this file, with all that it registers.
extern "C" void emulator_link_kernels() {}
