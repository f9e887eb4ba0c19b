//! What accelerators that train one student together tell each other.
//!
//! Each has arenas of `[ranks · part]` float32, and owns the part of its rank: gradients are summed there, the optimiser moves the parameters there, and the parameters go back to all.
//! That is as much traffic as summing all gradients everywhere, and each accelerator keeps and updates its own share of the optimiser's state alone (ZeRO, stage 1).

use super::{Accelerator, Address, DeviceError};
use std::fmt::Debug;
use std::sync::Arc;

/// Numbers of a part that are copied at a time: what the processor holds of them.
const BUCKET: usize = 4 << 20;

/// The way between accelerators. One thread calls, for all of them.
pub trait Exchange: Debug + Send + Sync {
    /// Makes each rank's own part the sum of all ranks' numbers there, after all that was asked of the accelerators before. What is in the other parts then is not defined. `arenas` are
    /// the places of the ranks' arenas, in order.
    ///
    /// # Errors
    /// When an accelerator fails.
    ///
    /// # Safety
    /// At each place `[ranks · part]` float32 are reserved.
    unsafe fn reduce_scatter(&self, arenas: &[Address], part: usize) -> Result<(), DeviceError>;

    /// Copies each rank's own part to all others, after all that was asked of the accelerators before.
    ///
    /// # Errors
    /// When an accelerator fails.
    ///
    /// # Safety
    /// As of [`Exchange::reduce_scatter`].
    unsafe fn all_gather(&self, arenas: &[Address], part: usize) -> Result<(), DeviceError>;
}

/// By way of the processor's memory: for accelerators that do not reach each other. Sums go by rank, so they are the same every time.
#[derive(Debug)]
pub struct ThroughHost {
    devices: Vec<Arc<dyn Accelerator>>,
}

impl ThroughHost {
    /// Between `devices`; their places are their ranks.
    #[must_use]
    pub fn new(devices: Vec<Arc<dyn Accelerator>>) -> Self {
        Self { devices }
    }

    /// Calls `each` with every rank and every bucket of its own part, (first number in the arena, numbers): ranks side by side.
    fn buckets(
        &self,
        part: usize,
        each: impl Fn(usize, usize, usize) -> Result<(), DeviceError> + Sync,
    ) -> Result<(), DeviceError> {
        let of_rank = |rank: usize| {
            let mut buckets = (0..part).step_by(BUCKET);
            buckets.try_for_each(|first| each(rank, rank * part + first, BUCKET.min(part - first)))
        };
        std::thread::scope(|scope| {
            let of_rank = &of_rank;
            let threads: Vec<_> = (0..self.devices.len()).map(|rank| scope.spawn(move || of_rank(rank))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn read(&self, rank: usize, at: Address, to: &mut [f32]) -> Result<(), DeviceError> {
        // SAFETY: the callers of this module's functions say that so much is reserved.
        unsafe { self.devices[rank].download(at, bytemuck::cast_slice_mut(to)) }
    }

    fn write(&self, rank: usize, from: &[f32], at: Address) -> Result<(), DeviceError> {
        // SAFETY: as in `read`.
        unsafe { self.devices[rank].upload(bytemuck::cast_slice(from), at) }
    }
}

fn place(arena: Address, number: usize) -> Address {
    arena + 4 * number as u64
}

impl Exchange for ThroughHost {
    unsafe fn reduce_scatter(&self, arenas: &[Address], part: usize) -> Result<(), DeviceError> {
        self.buckets(part, |rank, first, count| {
            let (mut sum, mut other) = (vec![0.0; count], vec![0.0; count]);
            for (of, arena) in arenas.iter().enumerate() {
                self.read(of, place(*arena, first), &mut other)?;
                sum.iter_mut().zip(&other).for_each(|(sum, other)| *sum += other);
            }
            self.write(rank, &sum, place(arenas[rank], first))
        })
    }

    unsafe fn all_gather(&self, arenas: &[Address], part: usize) -> Result<(), DeviceError> {
        self.buckets(part, |rank, first, count| {
            let mut numbers = vec![0.0; count];
            self.read(rank, place(arenas[rank], first), &mut numbers)?;
            let others = arenas.iter().enumerate().filter(|(other, _)| *other != rank);
            others.into_iter().try_for_each(|(other, arena)| self.write(other, &numbers, place(*arena, first)))
        })
    }
}
