//! The kernels' own source on this processor: what an accelerator computes, where there is none.
//!
//! A block's threads are coroutines (`cpp/emulator.cpp`), so barriers, shuffles, shared memory and the tensor cores' layout are executed as the kernels say them. Products are plain sums.
//! For tests: slow, and the same result every time.

#![allow(unsafe_code, reason = "places in memory are numbers here")]

use half::bf16;
use model::device::{Accelerator, Address, Argument, DeviceChoice, DeviceError, Factor, Launch, Precision, Product};
use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

unsafe extern "C" {
    fn emulator_launch(
        precision: *const c_char,
        name: *const c_char,
        blocks: *const c_uint,
        threads: c_uint,
        shared_bytes: c_uint,
        arguments: *mut *mut c_void,
    ) -> c_int;
}

/// What tests compute on: the GPU that `MERGEDISTILL_TEST_DEVICE` names (`cuda:0`; see `tests/gpu/run`), otherwise the emulator.
///
/// # Panics
/// When that GPU cannot be opened.
#[must_use]
pub fn accelerator() -> Arc<dyn Accelerator> {
    let Ok(name) = std::env::var("MERGEDISTILL_TEST_DEVICE") else { return Arc::new(Emulated::default()) };
    let choice: DeviceChoice = name.parse().unwrap_or_else(|message| panic!("MERGEDISTILL_TEST_DEVICE: {message}"));
    let opener = choice.opener().unwrap_or_else(|| panic!("MERGEDISTILL_TEST_DEVICE={name} is no GPU"));
    opener.open().unwrap_or_else(|error| panic!("MERGEDISTILL_TEST_DEVICE={name}: {error}"))
}

/// Memory of this process, and kernels that run thread after thread: slow, and the same result every time.
#[derive(Debug, Default)]
pub struct Emulated {
    /// Bytes of what is reserved, by place.
    reserved: Mutex<HashMap<Address, usize>>,
    /// Bytes that can be reserved; `None`: as many as there are.
    capacity: Option<usize>,
    /// The most bytes that were reserved at a time.
    peak: AtomicUsize,
    /// Kernels that it still runs before it fails; `None`: it does not fail.
    launches: Option<AtomicUsize>,
}

/// As an accelerator's allocator aligns.
const ALIGNMENT: usize = 256;

impl Emulated {
    /// With room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { capacity: Some(bytes), ..Self::default() }
    }

    /// One that fails after so many kernels.
    #[must_use]
    pub fn failing_after(launches: usize) -> Self {
        Self { launches: Some(AtomicUsize::new(launches)), ..Self::default() }
    }

    /// The most bytes that were reserved at a time.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    fn reserved(&self) -> std::sync::MutexGuard<'_, HashMap<Address, usize>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, reason: String) -> DeviceError {
        DeviceError::Failed { device: self.name().to_owned(), reason }
    }
}

impl Accelerator for Emulated {
    fn name(&self) -> &str {
        "emulator"
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let full = || DeviceError::OutOfMemory { device: self.name().to_owned(), bytes };
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| full())?;
        if self.capacity.is_some_and(|capacity| self.reserved().values().sum::<usize>() + bytes > capacity) {
            return Err(full());
        }
        // SAFETY: callers ask for at least one byte.
        let at = unsafe { std::alloc::alloc(layout) };
        if at.is_null() {
            return Err(full());
        }
        // What nobody has written must not look like zeros.
        // SAFETY: as many bytes were just reserved.
        unsafe { at.write_bytes(0xa5, bytes) };
        let mut reserved = self.reserved();
        reserved.insert(at as Address, bytes);
        self.peak.fetch_max(reserved.values().sum(), Ordering::Relaxed);
        Ok(at as Address)
    }

    unsafe fn release(&self, at: Address) {
        if let Some(bytes) = self.reserved().remove(&at)
            && let Ok(layout) = Layout::from_size_align(bytes, ALIGNMENT)
        {
            // SAFETY: it was reserved with this layout, and is no longer in the list.
            unsafe { std::alloc::dealloc(at as *mut u8, layout) };
        }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), DeviceError> {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        if let Some(launches) = &self.launches
            && launches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            return Err(self.failed("it has fallen off the bus".to_owned()));
        }
        let mut words: Vec<u64> = launch.arguments.iter().map(Argument::bits).collect();
        let mut arguments: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let Launch { kernel, precision, blocks, threads, shared_bytes, .. } = *launch;
        let names = [precision.name(), kernel].map(|name| CString::new(name).unwrap_or_default());
        let [of_precision, of_kernel] = &names;
        // SAFETY: the caller's: these are the kernel's arguments.
        let outcome = unsafe {
            emulator_launch(
                of_precision.as_ptr(),
                of_kernel.as_ptr(),
                blocks.as_ptr(),
                threads,
                shared_bytes,
                arguments.as_mut_ptr(),
            )
        };
        let reason = match outcome {
            0 => return Ok(()),
            1 => "there is none of this name",
            2 => "it is made for blocks of another size",
            _ => "threads of a block wait for each other at different barriers",
        };
        Err(self.failed(format!("kernel {kernel} ({}): {reason}", precision.name())))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        let Product { precision, rows, columns, inner, left, right, out, out_precision, accumulate } = *product;
        // SAFETY: the caller's: the matrices are reserved.
        let [left, right] = unsafe { [read(precision, left, rows, inner), read(precision, right, inner, columns)] };
        for row in 0..rows {
            for column in 0..columns {
                let sum = (0..inner).map(|at| left[row * inner + at] * right[at * columns + column]).sum::<f32>();
                let place = row * out.stride + column;
                // SAFETY: the caller's.
                unsafe {
                    match out_precision {
                        Precision::F32 => {
                            let at = (out.at as *mut f32).add(place);
                            at.write(if accumulate { at.read() + sum } else { sum });
                        }
                        Precision::Bf16 => {
                            let at = (out.at as *mut bf16).add(place);
                            at.write(bf16::from_f32(if accumulate { at.read().to_f32() + sum } else { sum }));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// `[rows, columns]` of a matrix, not transposed any more.
///
/// # Safety
/// It is reserved.
unsafe fn read(precision: Precision, factor: Factor, rows: usize, columns: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let place = match factor.transposed {
                false => row * factor.stride + column,
                true => column * factor.stride + row,
            };
            // SAFETY: the caller's.
            values.push(unsafe {
                match precision {
                    Precision::F32 => (factor.at as *const f32).add(place).read(),
                    Precision::Bf16 => (factor.at as *const bf16).add(place).read().to_f32(),
                }
            });
        }
    }
    values
}
