//! The kernels' own source on this processor: what an accelerator computes, where there is none.
//!
//! A block's threads are coroutines (`cpp/emulator.cpp`), so barriers, shuffles, shared memory and the tensor cores' layout are executed as the kernels say them. Products are plain sums.
//! For tests: slow, and the same result every time. What is asked for is done at once, or as late as it can be.

#![allow(unsafe_code, reason = "places in memory are numbers here")]

use half::{bf16, f16};
use model::device::{
    Accelerator, Address, Argument, Arrival, DeviceChoice, DeviceError, Factor, Launch, Precision, Product,
};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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
pub struct Emulated(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Bytes of what is reserved, by place.
    reserved: Mutex<HashMap<Address, usize>>,
    /// Bytes that can be reserved; `None`: as many as there are.
    capacity: Option<usize>,
    /// The most bytes that were reserved at a time.
    peak: AtomicUsize,
    /// Kernels that it still runs before it fails; `None`: it does not fail.
    launches: Option<AtomicUsize>,
    /// What was asked for and is not done yet; `None`: all is done at once.
    later: Option<Mutex<VecDeque<Work>>>,
    /// Why nothing is done any more.
    failure: Mutex<Option<DeviceError>>,
    life: Arc<()>,
}

/// What an accelerator does in its own time.
#[derive(Debug)]
enum Work {
    Upload(Vec<u8>, Address),
    Launch(OwnLaunch),
    Multiply(Product),
    Fetch(Address, Arc<Mutex<Vec<u8>>>),
}

#[derive(Debug)]
struct OwnLaunch {
    kernel: &'static str,
    precision: Precision,
    blocks: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    words: Vec<u64>,
}

/// What was fetched, or is going to be.
#[derive(Debug)]
struct Fetched {
    from: Arc<Inner>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// What kernels count on: a thread reads so many bytes at a time.
const ALIGNMENT: usize = 16;

impl Emulated {
    /// With room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Arc::new(Inner { capacity: Some(bytes), ..Inner::default() }))
    }

    /// One that fails after so many kernels.
    #[must_use]
    pub fn failing_after(launches: usize) -> Self {
        Self(Arc::new(Inner { launches: Some(AtomicUsize::new(launches)), ..Inner::default() }))
    }

    /// One that does nothing before somebody waits for it: as late as an accelerator can be.
    #[must_use]
    pub fn late() -> Self {
        Self(Arc::new(Inner { later: Some(Mutex::default()), ..Inner::default() }))
    }

    /// As [`Emulated::late`]; it fails after so many kernels.
    #[must_use]
    pub fn late_failing_after(launches: usize) -> Self {
        let launches = Some(AtomicUsize::new(launches));
        Self(Arc::new(Inner { later: Some(Mutex::default()), launches, ..Inner::default() }))
    }

    /// Lives as long as anything of it does, also what was fetched and not waited for.
    #[must_use]
    pub fn life(&self) -> Weak<()> {
        Arc::downgrade(&self.0.life)
    }

    /// The most bytes that were reserved at a time.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.0.peak.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn reserved(&self) -> MutexGuard<'_, HashMap<Address, usize>> {
        lock(&self.reserved)
    }

    /// Does it now, or when somebody waits.
    fn ask(&self, work: Work) -> Result<(), DeviceError> {
        match &self.later {
            Some(later) => {
                lock(later).push_back(work);
                Ok(())
            }
            None => self.work_on(work),
        }
    }

    /// Does all that was asked for.
    fn catch_up(&self) -> Result<(), DeviceError> {
        let Some(later) = &self.later else { return Ok(()) };
        // Who waits beside waits until it is done.
        let mut later = lock(later);
        while let Some(work) = later.pop_front() {
            self.work_on(work)?;
        }
        Ok(())
    }

    fn work_on(&self, work: Work) -> Result<(), DeviceError> {
        if let Some(failure) = &*lock(&self.failure) {
            return Err(failure.clone());
        }
        // SAFETY: those who asked said that what is read and written is reserved; what is released is caught up with before.
        let done = unsafe {
            match work {
                Work::Upload(bytes, to) => {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len());
                    Ok(())
                }
                Work::Fetch(from, to) => {
                    let mut to = lock(&to);
                    std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len());
                    Ok(())
                }
                Work::Launch(launch) => self.launch(launch),
                Work::Multiply(product) => {
                    multiply(&product);
                    Ok(())
                }
            }
        };
        if let Err(error) = &done {
            *lock(&self.failure) = Some(error.clone());
        }
        done
    }

    /// # Safety
    /// The arguments are the kernel's.
    unsafe fn launch(&self, launch: OwnLaunch) -> Result<(), DeviceError> {
        let failed = |reason: String| DeviceError::Failed { device: NAME.to_owned(), reason };
        if let Some(launches) = &self.launches
            && launches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            return Err(failed("it has fallen off the bus".to_owned()));
        }
        let OwnLaunch { kernel, precision, blocks, threads, shared_bytes, mut words } = launch;
        let mut arguments: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let names = [precision.name(), kernel].map(|name| CString::new(name).unwrap_or_default());
        let [of_precision, of_kernel] = &names;
        // SAFETY: the caller's.
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
        Err(failed(format!("kernel {kernel} ({}): {reason}", precision.name())))
    }
}

impl Arrival for Fetched {
    fn wait(self: Box<Self>, to: &mut [u8]) -> Result<(), DeviceError> {
        self.from.catch_up()?;
        if let Some(failure) = &*lock(&self.from.failure) {
            return Err(failure.clone());
        }
        to.copy_from_slice(&lock(&self.bytes)[..to.len()]);
        Ok(())
    }
}

const NAME: &str = "emulator";

/// Of so many reserved bytes: how many their pages have, with those around them, and how many of these come before the reserved ones.
fn extent(bytes: usize) -> (usize, usize) {
    let page = rustix::param::page_size();
    let room = bytes.next_multiple_of(page);
    (room + 2 * page, page + room - bytes.next_multiple_of(ALIGNMENT))
}

/// Memory that ends at a page which nobody may touch; so does the one before it. A kernel that reads or writes beyond is stopped (SIGSEGV).
fn fenced(bytes: usize) -> rustix::io::Result<*mut u8> {
    let (pages, of_begin) = extent(bytes);
    let page = rustix::param::page_size();
    // SAFETY: nothing is mapped there before.
    unsafe {
        let begin = rustix::mm::mmap_anonymous(std::ptr::null_mut(), pages, ProtFlags::empty(), MapFlags::PRIVATE)?;
        let inner = begin.cast::<u8>().add(page).cast();
        rustix::mm::mprotect(inner, pages - 2 * page, MprotectFlags::READ | MprotectFlags::WRITE)?;
        Ok(begin.cast::<u8>().add(of_begin))
    }
}

impl Accelerator for Emulated {
    fn name(&self) -> &str {
        NAME
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let full = || DeviceError::OutOfMemory { device: NAME.to_owned(), bytes };
        if self.0.capacity.is_some_and(|capacity| self.reserved() + bytes > capacity) {
            return Err(full());
        }
        let at = fenced(bytes).map_err(|_| full())?;
        // What nobody has written must not look like zeros.
        // SAFETY: as many bytes were just reserved.
        unsafe { at.write_bytes(0xa5, bytes) };
        let mut reserved = self.0.reserved();
        reserved.insert(at as Address, bytes);
        self.0.peak.fetch_max(reserved.values().sum(), Ordering::Relaxed);
        Ok(at as Address)
    }

    unsafe fn release(&self, at: Address) {
        let _ = self.0.catch_up(); // Whoever waits hears of it.
        if let Some(bytes) = self.0.reserved().remove(&at) {
            let (pages, of_begin) = extent(bytes);
            // SAFETY: these are its pages, and it is no longer in the list. Should they stay, only memory is lost.
            let _ = unsafe { rustix::mm::munmap((at as usize - of_begin) as *mut c_void, pages) };
        }
    }

    fn reserved(&self) -> usize {
        self.0.reserved().values().sum()
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), DeviceError> {
        self.0.ask(Work::Upload(from.to_vec(), to))
    }

    unsafe fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Arrival>, DeviceError> {
        let bytes = Arc::new(Mutex::new(vec![0; bytes]));
        self.0.ask(Work::Fetch(from, Arc::clone(&bytes)))?;
        Ok(Box::new(Fetched { from: Arc::clone(&self.0), bytes }))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let Launch { kernel, precision, blocks, threads, shared_bytes, arguments } = *launch;
        let words = arguments.iter().map(Argument::bits).collect();
        self.0.ask(Work::Launch(OwnLaunch { kernel, precision, blocks, threads, shared_bytes, words }))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.0.ask(Work::Multiply(*product))
    }
}

/// A product, sum after sum.
///
/// # Safety
/// The matrices are reserved.
unsafe fn multiply(product: &Product) {
    let Product { precision, rows, columns, inner, left, right, out, out_precision, accumulate } = *product;
    // SAFETY: the caller's.
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
                    Precision::F16 => {
                        let at = (out.at as *mut f16).add(place);
                        at.write(f16::from_f32(if accumulate { at.read().to_f32() + sum } else { sum }));
                    }
                }
            }
        }
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
                    Precision::F16 => (factor.at as *const f16).add(place).read().to_f32(),
                }
            });
        }
    }
    values
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use model::device::{Buffer, numbers};

    #[test]
    fn numbers_are_narrowed_as_the_processor_narrows_them() {
        let device: Arc<dyn Accelerator> = Arc::new(Emulated::default());
        // Halves between two narrow numbers, the smallest ones, the largest ones, and what lies beyond.
        let mut wide =
            vec![0.0, -0.0, 1.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        wide.extend([65_504.0, 65_519.9, 65_520.0, 1e30, f32::MAX, f32::INFINITY, f32::NAN]);
        wide.extend((-30..-10).flat_map(|power| [1.0, 1.25, 1.5, 1.999].map(|by: f32| by * 2.0_f32.powi(power))));
        wide.extend((0..1000).map(|at| (at as f32 - 500.0) * 0.377));
        wide.resize(wide.len().next_multiple_of(8), -3.7e-6);
        let from = Buffer::of(&device, &wide).unwrap();
        for precision in [Precision::Bf16, Precision::F16] {
            let to = Buffer::<u16>::new(&device, wide.len()).unwrap();
            let arguments =
                [Argument::Address(from.at()), Argument::U64(wide.len() as u64), Argument::Address(to.at())];
            let launch = Launch {
                kernel: "narrow",
                precision,
                blocks: [1, 1, 1],
                threads: 256,
                shared_bytes: 0,
                arguments: &arguments,
            };
            // SAFETY: the buffers are alive, and have as many numbers.
            let found = unsafe {
                device.launch(&launch).unwrap();
                numbers(device.as_ref(), precision, to.at(), wide.len()).unwrap()
            };
            for (wide, found) in wide.iter().zip(found) {
                let expected = match precision {
                    Precision::F16 => f16::from_f32(*wide).to_f32(),
                    _ => bf16::from_f32(*wide).to_f32(),
                };
                assert!(
                    found == expected || (found.is_nan() && expected.is_nan()),
                    "{wide} becomes {found}, not {expected}"
                );
            }
        }
    }
}
