//! Page-locked memory of the processor: what a GPU copies from and to by itself, while both go on.

use super::lock;
use cudarc::driver::{CudaContext, DriverError, result as driver, sys};
use std::sync::{Arc, Mutex};

/// The most bytes of a piece: larger copies go in several.
pub(super) const PIECE_BYTES: usize = super::super::FETCH_BYTES;
const SMALLEST_BYTES: usize = 64 << 10;
/// No larger piece serves than so many times what is asked for: the pieces of large copies stay free for those.
const TOO_LARGE: usize = 4;

/// A piece of it, and when the GPU is done with it.
#[derive(Debug)]
pub(super) struct Piece {
    at: *mut u8,
    bytes: usize,
    event: sys::CUevent,
}

// SAFETY: it is its owner's alone.
unsafe impl Send for Piece {}

impl Piece {
    /// Its first bytes.
    pub(super) fn first(&mut self, bytes: usize) -> &mut [u8] {
        assert!(bytes <= self.bytes, "{bytes} bytes of {}", self.bytes);
        // SAFETY: so many are reserved, they were written when they were, and nobody else has the piece.
        unsafe { std::slice::from_raw_parts_mut(self.at, bytes) }
    }

    /// From now on the GPU is done with it when it has done what was asked of the stream so far.
    pub(super) fn record(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: event and stream belong to the context that is bound.
        unsafe { driver::event::record(self.event, stream) }
    }

    /// Waits until the GPU is done with it.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event is the piece's own.
        unsafe { driver::event::synchronize(self.event) }
    }

    fn is_done(&self) -> bool {
        // SAFETY: as above.
        unsafe { driver::event::query(self.event) }.is_ok()
    }
}

/// Pieces that are used again.
#[derive(Debug)]
pub(super) struct Pool {
    context: Arc<CudaContext>,
    pieces: Mutex<Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    free: Vec<Piece>,
    /// The GPU may still be at work on them.
    busy: Vec<Piece>,
}

impl Pool {
    pub(super) fn new(context: Arc<CudaContext>) -> Self {
        Self { context, pieces: Mutex::default() }
    }

    /// A piece of at least so many bytes. The context is bound.
    pub(super) fn take(&self, bytes: usize) -> Result<Piece, DriverError> {
        let mut pieces = lock(&self.pieces);
        let Pieces { free, busy } = &mut *pieces;
        free.extend(busy.extract_if(.., |piece| piece.is_done()));
        let asked = bytes.next_power_of_two().max(SMALLEST_BYTES);
        let fitting = free.iter().enumerate().filter(|(_, piece)| (bytes..=TOO_LARGE * asked).contains(&piece.bytes));
        if let Some((number, _)) = fitting.min_by_key(|(_, piece)| piece.bytes) {
            return Ok(free.swap_remove(number));
        }
        let bytes = asked;
        // Who waits for it leaves the core to others.
        let flags =
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        // SAFETY: the context is bound; as many bytes as were reserved are written.
        unsafe {
            let at = driver::malloc_host(bytes, 0)?.cast::<u8>();
            at.write_bytes(0, bytes);
            let mut event = std::ptr::null_mut();
            if let Err(error) = sys::cuEventCreate(&raw mut event, flags).result() {
                let _ = driver::free_host(at.cast());
                return Err(error);
            }
            Ok(Piece { at, bytes, event })
        }
    }

    /// Bytes that the GPU was still at work on when it was looked at last.
    pub(super) fn busy_bytes(&self) -> usize {
        lock(&self.pieces).busy.iter().map(|piece| piece.bytes).sum()
    }

    /// Takes back a piece on which the GPU may be at work.
    pub(super) fn give(&self, piece: Piece) {
        lock(&self.pieces).busy.push(piece);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // What failed before is told once, by the first call after it.
        if self.context.bind_to_thread().is_err() && self.context.bind_to_thread().is_err() {
            return;
        }
        let Pieces { free, busy } = std::mem::take(&mut *lock(&self.pieces));
        for piece in free.into_iter().chain(busy) {
            let _ = piece.wait();
            // SAFETY: both were made for the piece, and the GPU is done with it, or lost.
            unsafe {
                let _ = driver::event::destroy(piece.event);
                let _ = driver::free_host(piece.at.cast());
            }
        }
    }
}
