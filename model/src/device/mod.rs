//! Accelerators: processors with memory of their own, that run kernels in the order in which they are given.
//!
//! [`Accelerator`] is the narrow place: memory, copies, kernels by name, matrix products. What runs on one ([`Network`]) is written once, against it. Behind it is a
//! GPU (`Cuda`, feature `cuda`), or, in tests, the kernels' own source on this processor (the crate `kernel-emulator`).
//!
//! The kernels ([`KERNELS`]) are CUDA C++, compiled when the first of them is run; nothing is needed to build this crate. Numbers are float32, bfloat16 or
//! float16 ([`Precision`]); sums, LayerNorms, softmaxes, logits and all vectors of parameters are float32 in all of them.

#![allow(unsafe_code, reason = "places in an accelerator's memory are numbers")]

use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt::Debug;

mod batch;
mod buffer;
mod calls;
mod choice;
#[cfg(feature = "cuda")]
mod cuda;
mod exchange;
mod network;
mod ranks;
mod top_k;
mod training;

pub use buffer::Buffer;
pub use choice::{DeviceChoice, DevicePlace, OnDevice, Opener};
#[cfg(feature = "cuda")]
pub use cuda::{ARCHITECTURES, Cuda, Nccl, compile};
pub use exchange::{Exchange, ThroughHost};
pub use network::Network;
pub use ranks::{Rank, Ranks};
pub use top_k::{Best, DecoderPlace, Draws, PendingBest, TopK};
pub use training::{AdamwFactors, DeviceTraining, PositionOutcome, RowTargets};

/// The kernels' source, in the order in which it is compiled.
pub const KERNELS: [(&str, &str); 9] = [
    ("common.cuh", include_str!("kernels/common.cuh")),
    ("dropout.cuh", include_str!("kernels/dropout.cuh")),
    ("rows.cu", include_str!("kernels/rows.cu")),
    ("attention.cu", include_str!("kernels/attention.cu")),
    ("top_k.cu", include_str!("kernels/top_k.cu")),
    ("tail.cu", include_str!("kernels/tail.cu")),
    ("training.cu", include_str!("kernels/training.cu")),
    ("attention_training.cu", include_str!("kernels/attention_training.cu")),
    ("loss.cu", include_str!("kernels/loss.cu")),
];

/// What an accelerator's processor multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// float32.
    F32,
    /// bfloat16, with sums in float32.
    Bf16,
    /// float16, with sums in float32: three bits more than bfloat16, but nothing above 65,504. For labelling only: gradients would vanish.
    F16,
}

impl Precision {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];
    /// Those that a student can be trained in.
    pub const OF_TRAINING: [Self; 2] = [Self::F32, Self::Bf16];

    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// What configurations call it: `float32`, `bfloat16` or `float16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Numbers as they lie in an accelerator's memory, rounded to the nearest.
    fn bits_of(self, values: &[f32]) -> Cow<'_, [u8]> {
        let narrow = |bits: fn(f32) -> u16| values.iter().flat_map(|value| bits(*value).to_ne_bytes()).collect();
        match self {
            Self::F32 => Cow::Borrowed(bytemuck::cast_slice(values)),
            Self::Bf16 => narrow(|value| bf16::from_f32(value).to_bits()),
            Self::F16 => narrow(|value| f16::from_f32(value).to_bits()),
        }
    }
}

/// An error of an accelerator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no room for so many bytes: fewer at a time may do.
    #[error("{device} has no room for {bytes} bytes more")]
    OutOfMemory {
        /// What the accelerator is called.
        device: String,
        /// What was asked for.
        bytes: usize,
    },
    /// It does not answer any more, or an operation failed: nothing that it computes now can be believed.
    #[error("{device} failed: {reason}")]
    Failed {
        /// What the accelerator is called.
        device: String,
        /// What it said.
        reason: String,
    },
    /// It cannot be opened, or cannot run this model.
    #[error("{device}: {reason}")]
    Unusable {
        /// What the accelerator is called.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// A place in an accelerator's memory.
pub type Address = u64;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A place.
    Address(Address),
    /// A 32-bit number.
    U32(u32),
    /// A 64-bit number.
    U64(u64),
    /// A float32.
    F32(f32),
}

impl Argument {
    /// Its bits, from the lowest on: where a kernel looks for them.
    #[must_use]
    pub fn bits(&self) -> u64 {
        match *self {
            Self::Address(at) => at,
            Self::U64(number) => number,
            Self::U32(number) => u64::from(number),
            Self::F32(number) => u64::from(number.to_bits()),
        }
    }
}

/// A kernel on blocks of threads.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Its name in the source.
    pub kernel: &'static str,
    /// For which numbers it is compiled.
    pub precision: Precision,
    /// Blocks in three directions.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that a block gets besides what the kernel says.
    pub shared_bytes: u32,
    /// In the order of the kernel's parameters.
    pub arguments: &'a [Argument],
}

/// A matrix of numbers in an accelerator's memory, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    /// Its first number.
    pub at: Address,
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Whether its transpose is meant.
    pub transposed: bool,
}

/// out `[rows, columns]` (+)= left `[rows, inner]` · right `[inner, columns]`, of one precision; sums are float32.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// What the factors are.
    pub precision: Precision,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Columns of the left and rows of the right factor.
    pub inner: usize,
    /// The left factor.
    pub left: Factor,
    /// The right factor.
    pub right: Factor,
    /// The result, which is not transposed.
    pub out: Factor,
    /// What the result is.
    pub out_precision: Precision,
    /// Whether it is added to what is there.
    pub accumulate: bool,
}

/// Bytes that are on their way from an accelerator.
pub trait Arrival: Debug + Send {
    /// Waits for them, and copies the first of them.
    ///
    /// # Errors
    /// When the accelerator failed, also in what was asked for before them.
    fn wait(self: Box<Self>, to: &mut [u8]) -> Result<(), DeviceError>;
}

/// Bytes that are fetched at a time when many are read back.
const FETCH_BYTES: usize = 16 << 20;

/// A processor with memory of its own. Copies, kernels and products happen in the order of the calls; only who waits for what was fetched waits for them.
pub trait Accelerator: Debug + Send + Sync {
    /// What messages call it.
    fn name(&self) -> &str;

    /// Reserves memory; what is in it is not defined.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], among others.
    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `at` comes from [`Accelerator::allocate`] and is not used afterwards.
    unsafe fn release(&self, at: Address);

    /// Copies to the accelerator. `from` may be changed when this returns.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Safety
    /// As many bytes at `to` are reserved.
    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), DeviceError>;

    /// Begins to copy back what is there after all that was asked for before. What is asked for afterwards may overwrite it.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Safety
    /// As many bytes at `from` are reserved.
    unsafe fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Arrival>, DeviceError>;

    /// Copies back, after all that was asked for before.
    ///
    /// # Errors
    /// When the accelerator fails, also in what was asked for before.
    ///
    /// # Safety
    /// As many bytes at `from` are reserved.
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), DeviceError> {
        let places = (from..).step_by(FETCH_BYTES);
        to.chunks_mut(FETCH_BYTES).zip(places).try_for_each(|(to, from)| {
            // SAFETY: the caller's.
            unsafe { self.fetch(from, to.len())? }.wait(to)
        })
    }

    /// Bytes that are reserved through it, its own included.
    fn reserved(&self) -> usize;

    /// Runs a kernel.
    ///
    /// # Errors
    /// When there is none of this name, or the accelerator fails.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and it stays within what is reserved.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError>;

    /// Multiplies matrices.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Safety
    /// The matrices lie within what is reserved.
    unsafe fn multiply(&self, product: &Product) -> Result<(), DeviceError>;
}

/// Numbers of an accelerator's memory, as float32.
///
/// # Errors
/// When the accelerator fails.
///
/// # Safety
/// As many are reserved at `at`.
pub unsafe fn numbers(
    device: &dyn Accelerator,
    precision: Precision,
    at: Address,
    count: usize,
) -> Result<Vec<f32>, DeviceError> {
    let narrow = |number: fn(u16) -> f32| {
        let mut bits = vec![0_u16; count];
        // SAFETY: the caller's.
        unsafe { device.download(at, bytemuck::cast_slice_mut(&mut bits))? };
        Ok(bits.into_iter().map(number).collect())
    };
    match precision {
        Precision::F32 => {
            let mut values = vec![0.0_f32; count];
            // SAFETY: the caller's.
            unsafe { device.download(at, bytemuck::cast_slice_mut(&mut values))? };
            Ok(values)
        }
        Precision::Bf16 => narrow(|bits| bf16::from_bits(bits).to_f32()),
        Precision::F16 => narrow(|bits| f16::from_bits(bits).to_f32()),
    }
}
