//! GPUs of one machine that reach each other directly: NVIDIA's collective communications library.
//!
//! An exchange is waited for, and where one GPU fails it is given up on all: a GPU waits for the others inside a kernel, and nothing but an abort ends that.

use super::super::{Address, DeviceError, Exchange};
use super::{ADVICE, Cuda, lock};
use cudarc::driver::{result as driver, sys as driver_sys};
use cudarc::nccl::{result as nccl, sys};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often it is looked whether an exchange is done.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// Several GPUs.
#[derive(Debug)]
pub struct Nccl {
    gpus: Vec<Arc<Cuda>>,
    /// One thread at a time speaks for all of them.
    ranks: Mutex<Vec<Connected>>,
}

/// A rank's way to the others.
#[derive(Debug)]
struct Connected {
    communicator: sys::ncclComm_t,
    /// Happens when an exchange is done.
    done: driver_sys::CUevent,
}

// SAFETY: communicators are used under the lock.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Between `gpus`, which are different ones; their places are their ranks.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`] when the library is not there, or cannot connect them.
    pub fn open(gpus: Vec<Arc<Cuda>>) -> Result<Self, DeviceError> {
        // SAFETY: it only looks for a library.
        if !unsafe { sys::is_culib_present() } {
            let device = names(&gpus);
            let reason = format!("libnccl.so is not found (a link to libnccl.so.2 does): {ADVICE}");
            return Err(DeviceError::Unusable { device, reason });
        }
        let numbers: Vec<c_int> = gpus.iter().map(|gpu| gpu.context.ordinal() as c_int).collect();
        let mut communicators: Vec<sys::ncclComm_t> = vec![std::ptr::null_mut(); gpus.len()];
        // SAFETY: there is room for as many communicators as there are numbers.
        unsafe { nccl::comm_init_all(communicators.as_mut_ptr(), numbers.len() as c_int, numbers.as_ptr()) }.map_err(
            |error| DeviceError::Unusable {
                device: names(&gpus),
                reason: format!("NCCL does not connect them ({:?}); NCCL_DEBUG=WARN says more", error.0),
            },
        )?;
        let exchange = Self { gpus, ranks: Mutex::default() };
        for (gpu, communicator) in exchange.gpus.iter().zip(communicators) {
            gpu.bind()?;
            let done = driver::event::create(driver_sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            let done = done.map_err(|error| gpu.of_driver(error))?;
            lock(&exchange.ranks).push(Connected { communicator, done });
        }
        Ok(exchange)
    }

    /// Asks every rank for its part of one exchange, which are one operation to the library, and waits until all are done.
    fn together(
        &self,
        ask: impl FnMut(usize, sys::ncclComm_t, sys::cudaStream_t) -> Result<nccl::NcclStatus, nccl::NcclError>,
    ) -> Result<(), DeviceError> {
        let mut ranks = lock(&self.ranks);
        if ranks.is_empty() {
            let reason = "the exchange between GPUs was given up when one failed".to_owned();
            return Err(DeviceError::Failed { device: names(&self.gpus), reason });
        }
        let done = self.exchange(&ranks, ask);
        if done.is_err() {
            self.give_up(&mut ranks);
        }
        done
    }

    fn exchange(
        &self,
        ranks: &[Connected],
        mut ask: impl FnMut(usize, sys::ncclComm_t, sys::cudaStream_t) -> Result<nccl::NcclStatus, nccl::NcclError>,
    ) -> Result<(), DeviceError> {
        let of_library = |error: nccl::NcclError| {
            let reason = format!("NCCL: {:?}", error.0);
            DeviceError::Failed { device: names(&self.gpus), reason }
        };
        // Before anything is asked: an exchange that not all take part in is never done.
        self.gpus.iter().try_for_each(|gpu| gpu.bind())?;
        nccl::group_start().map_err(of_library)?;
        let asked = self.gpus.iter().zip(ranks).enumerate().try_for_each(|(rank, (gpu, connected))| {
            ask(rank, connected.communicator, gpu.stream.cu_stream().cast()).map(drop)
        });
        let ended = nccl::group_end().map(drop);
        asked.and(ended).map_err(of_library)?;
        for (gpu, connected) in self.gpus.iter().zip(ranks) {
            gpu.bind()?;
            // SAFETY: both are this GPU's.
            let recorded = unsafe { driver::event::record(connected.done, gpu.stream.cu_stream()) };
            recorded.map_err(|error| gpu.of_driver(error))?;
        }
        loop {
            let mut all = true;
            for (gpu, connected) in self.gpus.iter().zip(ranks) {
                gpu.bind()?;
                // SAFETY: as above.
                match unsafe { driver::event::query(connected.done) } {
                    Ok(()) => {}
                    Err(error) if error.0 == driver_sys::cudaError_enum::CUDA_ERROR_NOT_READY => all = false,
                    Err(error) => return Err(gpu.of_driver(error)),
                }
            }
            if all {
                return Ok(());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Ends whatever the GPUs wait for.
    fn give_up(&self, ranks: &mut Vec<Connected>) {
        for (gpu, Connected { communicator, done }) in self.gpus.iter().zip(ranks.drain(..)) {
            // What failed before is told once, by the first call after it.
            if gpu.bind().is_ok() || gpu.bind().is_ok() {
                // SAFETY: both were made in `open`, and are not used any more. Unlike an orderly end, which waits for all ranks, this works also when one has failed.
                unsafe {
                    let _ = nccl::comm_abort(communicator);
                    let _ = driver::event::destroy(done);
                }
            }
        }
    }
}

impl Exchange for Nccl {
    unsafe fn reduce_scatter(&self, arenas: &[Address], part: usize) -> Result<(), DeviceError> {
        let (number, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        self.together(|rank, communicator, stream| {
            let from = arenas[rank] as *const c_void;
            let own = (arenas[rank] + 4 * (rank * part) as u64) as *mut c_void;
            // SAFETY: the caller's; a rank's own part may be written where it is read.
            unsafe { nccl::reduce_scatter(from, own, part, number, sum, communicator, stream) }
        })
    }

    unsafe fn all_gather(&self, arenas: &[Address], part: usize) -> Result<(), DeviceError> {
        let number = sys::ncclDataType_t::ncclFloat32;
        self.together(|rank, communicator, stream| {
            let own = (arenas[rank] + 4 * (rank * part) as u64) as *const c_void;
            let to = arenas[rank] as *mut c_void;
            // SAFETY: as above.
            unsafe { nccl::all_gather(own, to, part, number, communicator, stream) }
        })
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let mut ranks = std::mem::take(&mut *lock(&self.ranks));
        self.give_up(&mut ranks);
    }
}

fn names(gpus: &[Arc<Cuda>]) -> String {
    gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>().join(" and ")
}
