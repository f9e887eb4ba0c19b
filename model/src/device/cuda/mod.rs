//! An NVIDIA GPU. The CUDA libraries are looked for when one is opened, so the program starts without them.

mod cache;
mod compile;
mod nccl;
mod staging;

pub use compile::{ARCHITECTURES, compile};
pub use nccl::Nccl;

use super::{Accelerator, Address, Argument, Arrival, DeviceError, Launch, Precision, Product};
use cudarc::cublaslt::{result as blas, sys as blas_sys};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result as driver, sys as driver_sys,
};
use cudarc::nvrtc::Ptx;
use staging::{PIECE_BYTES, Piece, Pool};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What cuBLASLt may use besides the matrices: what NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// What to do when a library is missing.
const ADVICE: &str =
    "install CUDA 13, or let `ops/cuda-toolchain` fetch its libraries, and name their folder in LD_LIBRARY_PATH";
/// Bytes on their way to the GPU after which the processor waits for it.
const AHEAD_BYTES: usize = 64 << 20;
/// Shapes of products whose algorithm is remembered.
const PLANS: usize = 1024;

/// One GPU, with a stream of its own.
#[derive(Debug)]
pub struct Cuda {
    name: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    architecture: &'static str,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<(&'static str, &'static str), CudaFunction>>,
    blas: blas_sys::cublasLtHandle_t,
    workspace: Address,
    plans: Mutex<HashMap<Shape, Plan>>,
    pool: Arc<Pool>,
    /// Bytes of what is reserved, by place.
    reserved: Mutex<HashMap<Address, usize>>,
}

/// Bytes on their way from a GPU.
#[derive(Debug)]
struct Landing {
    device: String,
    context: Arc<CudaContext>,
    pool: Arc<Pool>,
    /// Until it is given back.
    piece: Option<Piece>,
}

impl Arrival for Landing {
    fn wait(mut self: Box<Self>, to: &mut [u8]) -> Result<(), DeviceError> {
        let failed =
            |error: DriverError| DeviceError::Failed { device: self.device.clone(), reason: error.to_string() };
        self.context.bind_to_thread().map_err(failed)?;
        if let Some(piece) = &mut self.piece {
            piece.wait().map_err(failed)?;
            to.copy_from_slice(piece.first(to.len()));
        }
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.piece.take().into_iter().for_each(|piece| self.pool.give(piece));
    }
}

// SAFETY: cuBLASLt's handle may be used by several threads at a time; everything else is shared already.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// A product but for its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    precision: Precision,
    out_precision: Precision,
    rows: usize,
    columns: usize,
    inner: usize,
    left: (usize, bool),
    right: (usize, bool),
    out: usize,
    /// Of left, right and out: see [`alignments`].
    alignments: [u32; 3],
}

/// How cuBLASLt computes a shape.
#[derive(Debug)]
struct Plan {
    description: blas_sys::cublasLtMatmulDesc_t,
    /// Of left, right and out, in its own order: columns first.
    layouts: [blas_sys::cublasLtMatrixLayout_t; 3],
    algorithm: blas_sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: they were made for this plan and are not used elsewhere.
        unsafe {
            let _ = blas::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = blas::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Cuda {
    /// Opens GPU number `number`.
    ///
    /// # Errors
    /// When there is none, or a library is missing.
    pub fn open(number: usize) -> Result<Arc<Self>, DeviceError> {
        let device = format!("cuda:{number}");
        let unusable = |reason: String| DeviceError::Unusable { device: device.clone(), reason };
        // SAFETY: they only look for a library.
        let found = unsafe {
            [
                ("libcuda.so.1", "install NVIDIA's driver", cudarc::driver::sys::is_culib_present()),
                ("libcublasLt.so", ADVICE, cudarc::cublaslt::sys::is_culib_present()),
                ("libnvrtc.so", ADVICE, cudarc::nvrtc::sys::is_culib_present()),
            ]
        };
        if let Some((library, advice, _)) = found.into_iter().find(|(.., there)| !there) {
            return Err(unusable(format!("{library} is not found: {advice}, or use device = \"cpu\"")));
        }
        // What a driver says may be another thing the next time: it may still be starting, or the GPU be full.
        let of_driver = |error: DriverError| match error.0 {
            driver_sys::cudaError_enum::CUDA_ERROR_INVALID_DEVICE => {
                unusable("there is no GPU of this number".to_owned())
            }
            driver_sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                DeviceError::OutOfMemory { device: device.clone(), bytes: WORKSPACE_BYTES }
            }
            _ => DeviceError::Failed { device: device.clone(), reason: error.to_string() },
        };
        let context = CudaContext::new(number).map_err(of_driver)?;
        let architecture = match context.compute_capability().map_err(of_driver)? {
            (8, 0 | 7) => "sm_80",
            (8, 6) => "sm_86",
            (8, _) => "sm_89",
            (9, 0) => "sm_90a",
            (10, _) => "sm_100",
            (12, _) => "sm_120",
            (major, minor) if major > 8 => {
                return Err(unusable(format!("compute capability {major}.{minor} is not known")));
            }
            (major, minor) => {
                return Err(unusable(format!(
                    "compute capability {major}.{minor}; kernels need 8.0 (Ampere) or later"
                )));
            }
        };
        let stream = context.new_stream().map_err(of_driver)?;
        let name = format!("{device} ({})", context.name().map_err(of_driver)?);
        // SAFETY: the context was just bound to this thread.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE_BYTES) }.map_err(of_driver)?;
        let blas = blas::create_handle().map_err(|error| {
            // SAFETY: nobody else knows of it.
            let _ = unsafe { driver::free_sync(workspace) };
            DeviceError::Failed { device: device.clone(), reason: error.to_string() }
        })?;
        let (modules, functions, plans) = Default::default();
        let pool = Arc::new(Pool::new(Arc::clone(&context)));
        let reserved = Mutex::new(HashMap::from([(workspace, WORKSPACE_BYTES)]));
        Ok(Arc::new(Self {
            name,
            context,
            stream,
            architecture,
            modules,
            functions,
            blas,
            workspace,
            plans,
            pool,
            reserved,
        }))
    }

    fn of_driver(&self, error: DriverError) -> DeviceError {
        self.failed(error.to_string())
    }

    /// Of a call that asks for so many bytes, there or of the processor's for the way there.
    fn of_room(&self, error: DriverError, bytes: usize) -> DeviceError {
        match error.0 {
            driver_sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                DeviceError::OutOfMemory { device: self.name.clone(), bytes }
            }
            _ => self.of_driver(error),
        }
    }

    fn failed(&self, reason: String) -> DeviceError {
        DeviceError::Failed { device: self.name.clone(), reason }
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|error| self.of_driver(error))
    }

    fn function(&self, precision: Precision, kernel: &'static str) -> Result<CudaFunction, DeviceError> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(&(precision.name(), kernel)) {
            return Ok(function.clone());
        }
        let module = self.module(precision)?;
        let function =
            module.load_function(kernel).map_err(|error| self.failed(format!("kernel {kernel}: {error}")))?;
        functions.insert((precision.name(), kernel), function.clone());
        Ok(function)
    }

    /// The kernels, compiled when the first of them is needed.
    fn module(&self, precision: Precision) -> Result<Arc<CudaModule>, DeviceError> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(precision.name()) {
            return Ok(Arc::clone(module));
        }
        let code = compile::compiled(precision, self.architecture).map_err(|reason| self.failed(reason))?;
        let module =
            self.context.load_module(Ptx::from_binary(code.to_vec())).map_err(|error| self.of_driver(error))?;
        modules.insert(precision.name(), Arc::clone(&module));
        Ok(module)
    }

    /// What cuBLASLt is to do. It knows columns first, in which a matrix is its transpose: outᵀ = rightᵀ · leftᵀ.
    fn plan(&self, product: &Product) -> Result<Plan, blas::CublasError> {
        use blas_sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        use blas_sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        };
        let number = |precision| match precision {
            Precision::F32 => blas_sys::cudaDataType_t::CUDA_R_32F,
            Precision::Bf16 => blas_sys::cudaDataType_t::CUDA_R_16BF,
            Precision::F16 => blas_sys::cudaDataType_t::CUDA_R_16F,
        };
        // A matrix [rows, columns] that lies row after row is one of [columns, rows] to cuBLASLt.
        let layout = |precision, (rows, columns): (usize, usize), transposed: bool, stride: usize| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            blas::create_matrix_layout(number(precision), columns as u64, rows as u64, stride as i64)
        };
        let Product { precision, rows, columns, inner, left, right, out, out_precision, .. } = *product;
        let compute = blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = blas::create_matmul_desc(compute, blas_sys::cudaDataType_t::CUDA_R_32F)?;
        for (attribute, transposed) in
            [(CUBLASLT_MATMUL_DESC_TRANSA, right.transposed), (CUBLASLT_MATMUL_DESC_TRANSB, left.transposed)]
        {
            let value = i32::from(transposed);
            // SAFETY: the attribute is a 32-bit number.
            unsafe { blas::set_matmul_desc_attribute(description, attribute, (&raw const value).cast(), 4)? };
        }
        let layouts = [
            layout(precision, (rows, inner), left.transposed, left.stride)?,
            layout(precision, (inner, columns), right.transposed, right.stride)?,
            layout(out_precision, (rows, columns), false, out.stride)?,
        ];
        let preference = blas::create_matmul_pref()?;
        let most = WORKSPACE_BYTES;
        // Parts of a sum that is cut are added up in float32, not in the numbers of the result.
        let schemes = blas_sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let attribute = blas_sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // Without these it takes every matrix to begin at a multiple of 256 bytes.
        let [of_left, of_right, of_out] = alignments(product);
        let numbers = [
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_right),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_left),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_out),
            (CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes),
        ];
        // SAFETY: the attributes are a size and 32-bit numbers; all descriptions are there.
        let found = unsafe {
            blas::set_matmul_pref_attribute(preference, attribute, (&raw const most).cast(), size_of::<usize>())?;
            for (attribute, number) in numbers {
                blas::set_matmul_pref_attribute(preference, attribute, (&raw const number).cast(), 4)?;
            }
            let [left, right, out] = layouts;
            blas::get_matmul_algo_heuristic(self.blas, description, right, left, out, out, preference)
        };
        // SAFETY: it was made above.
        unsafe { blas::destroy_matmul_pref(preference)? };
        Ok(Plan { description, layouts, algorithm: found?.algo })
    }
}

impl Accelerator for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.bind()?;
        // SAFETY: the context is bound.
        let at = unsafe { driver::malloc_sync(bytes) }.map_err(|error| self.of_room(error, bytes))?;
        lock(&self.reserved).insert(at, bytes);
        Ok(at)
    }

    fn reserved(&self) -> usize {
        lock(&self.reserved).values().sum()
    }

    unsafe fn release(&self, at: Address) {
        lock(&self.reserved).remove(&at);
        // What was asked for before may still use it. What failed is said by whoever asks next.
        if self.bind().is_ok() {
            let _ = self.stream.synchronize();
            // SAFETY: the caller's.
            let _ = unsafe { driver::free_sync(at) };
        }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), DeviceError> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        for (from, to) in from.chunks(PIECE_BYTES).zip((to..).step_by(PIECE_BYTES)) {
            if self.pool.busy_bytes() > AHEAD_BYTES {
                self.stream.synchronize().map_err(|error| self.of_driver(error))?;
            }
            // No room in the processor's memory is none that smaller batches would give back.
            let mut piece = self.pool.take(from.len()).map_err(|error| self.of_driver(error))?;
            piece.first(from.len()).copy_from_slice(from);
            // SAFETY: the caller's; the piece is not used again before the GPU is done with it.
            let copied = unsafe { driver::memcpy_htod_async(to, piece.first(from.len()), stream) };
            let recorded = copied.and_then(|()| piece.record(stream));
            self.pool.give(piece);
            recorded.map_err(|error| self.of_driver(error))?;
        }
        Ok(())
    }

    unsafe fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Arrival>, DeviceError> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        let mut piece = self.pool.take(bytes).map_err(|error| self.of_driver(error))?;
        // SAFETY: the caller's; the piece is the arrival's until the GPU is done with it.
        let copied = unsafe { driver::memcpy_dtoh_async(piece.first(bytes), from, stream) };
        let recorded = copied.and_then(|()| piece.record(stream));
        let (device, context, pool) = (self.name.clone(), Arc::clone(&self.context), Arc::clone(&self.pool));
        let landing = Landing { device, context, pool, piece: Some(piece) };
        recorded.map_err(|error| self.of_driver(error))?;
        Ok(Box::new(landing))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let Launch { kernel, precision, blocks: [x, y, z], threads, shared_bytes, arguments } = *launch;
        self.bind()?; // A kernel is looked up in the thread's context too.
        let function = self.function(precision, kernel)?;
        let mut words: Vec<u64> = arguments.iter().map(Argument::bits).collect();
        let mut places: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let stream = self.stream.cu_stream();
        // SAFETY: the caller's; arguments are copied when the kernel is queued.
        unsafe {
            driver::launch_kernel(function.cu_function(), (x, y, z), (threads, 1, 1), shared_bytes, stream, &mut places)
        }
        .map_err(|error| self.failed(format!("kernel {kernel}: {error}")))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.bind()?;
        let Product { precision, rows, columns, inner, left, right, out, out_precision, accumulate } = *product;
        let shape = Shape {
            precision,
            out_precision,
            rows,
            columns,
            inner,
            left: (left.stride, left.transposed),
            right: (right.stride, right.transposed),
            out: out.stride,
            alignments: alignments(product),
        };
        let of_blas = |error: blas::CublasError| self.failed(format!("product {rows} × {inner} × {columns}: {error}"));
        let mut plans = lock(&self.plans);
        if !plans.contains_key(&shape) {
            if plans.len() >= PLANS {
                plans.clear();
            }
            plans.insert(shape, self.plan(product).map_err(of_blas)?);
        }
        let plan = &plans[&shape];
        let (one, of_before) = (1.0_f32, if accumulate { 1.0_f32 } else { 0.0 });
        let [of_left, of_right, of_out] = plan.layouts;
        // SAFETY: the caller's; the plan is for this shape. Factors change places: see `plan`.
        unsafe {
            blas::matmul(
                self.blas,
                plan.description,
                (&raw const one).cast(),
                (&raw const of_before).cast(),
                right.at as *const c_void,
                of_right,
                left.at as *const c_void,
                of_left,
                out.at as *const c_void,
                of_out,
                out.at as *mut c_void,
                of_out,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(of_blas)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        lock(&self.plans).clear();
        if self.bind().is_ok() {
            // SAFETY: both were made in `open`, and nothing is computed any more.
            unsafe {
                let _ = driver::free_sync(self.workspace);
                let _ = blas::destroy_handle(self.blas);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of left, right and out: the largest power of two, up to 256, of which their places are multiples.
fn alignments(product: &Product) -> [u32; 3] {
    [product.left.at, product.right.at, product.out.at].map(|at| 1 << at.trailing_zeros().min(8))
}
