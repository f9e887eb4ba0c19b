//! GPUs of one machine that reach each other directly: NVIDIA's collective communications library.

use super::super::{Address, DeviceError, Exchange};
use super::{ADVICE, Cuda, lock};
use cudarc::nccl::{result as nccl, sys};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex};

/// Several GPUs. Their streams wait for one another where they exchange, and the processor for none of them.
#[derive(Debug)]
pub struct Nccl {
    gpus: Vec<Arc<Cuda>>,
    /// By rank; one thread at a time speaks for all of them.
    ranks: Mutex<Vec<sys::ncclComm_t>>,
}

// SAFETY: communicators are used under the lock.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Between `gpus`, which are different ones; their places are their ranks.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`] when the library is not there; others when it cannot connect them.
    pub fn open(gpus: Vec<Arc<Cuda>>) -> Result<Self, DeviceError> {
        // SAFETY: it only looks for a library.
        if !unsafe { sys::is_culib_present() } {
            let device = names(&gpus);
            return Err(DeviceError::Unusable { device, reason: format!("libnccl.so is not found: {ADVICE}") });
        }
        let numbers: Vec<c_int> = gpus.iter().map(|gpu| gpu.context.ordinal() as c_int).collect();
        let mut ranks: Vec<sys::ncclComm_t> = vec![std::ptr::null_mut(); gpus.len()];
        // SAFETY: there is room for as many communicators as there are numbers.
        unsafe { nccl::comm_init_all(ranks.as_mut_ptr(), numbers.len() as c_int, numbers.as_ptr()) }
            .map_err(|error| failed(&gpus, &error))?;
        Ok(Self { gpus, ranks: Mutex::new(ranks) })
    }

    /// Asks every rank for its part of one exchange; they are one operation to the library.
    fn together(
        &self,
        mut ask: impl FnMut(usize, sys::ncclComm_t, sys::cudaStream_t) -> Result<nccl::NcclStatus, nccl::NcclError>,
    ) -> Result<(), DeviceError> {
        let ranks = lock(&self.ranks);
        let of_library = |error| failed(&self.gpus, &error);
        nccl::group_start().map_err(of_library)?;
        let asked = self.gpus.iter().zip(&*ranks).enumerate().try_for_each(|(rank, (gpu, communicator))| {
            gpu.bind()?;
            ask(rank, *communicator, gpu.stream.cu_stream().cast()).map(drop).map_err(of_library)
        });
        // What was begun ends, also when something in it failed.
        let ended = nccl::group_end().map(drop).map_err(of_library);
        asked.and(ended)
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
        for (gpu, communicator) in self.gpus.iter().zip(lock(&self.ranks).drain(..)) {
            if gpu.bind().is_ok() {
                // SAFETY: it was made in `open`, and is not used any more. Unlike its end, which waits for all ranks, this works also when one has failed.
                let _ = unsafe { nccl::comm_abort(communicator) };
            }
        }
    }
}

fn names(gpus: &[Arc<Cuda>]) -> String {
    gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>().join(" and ")
}

fn failed(gpus: &[Arc<Cuda>], error: &nccl::NcclError) -> DeviceError {
    DeviceError::Failed { device: names(gpus), reason: format!("NCCL: {:?}", error.0) }
}
