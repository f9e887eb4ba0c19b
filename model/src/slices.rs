//! CPU tensors as slices of float32.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of an operation's argument. The callers make their arguments contiguous first.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((first, end)) => Ok(&storage.as_slice::<f32>()?[first..end]),
        None => bail!("a fused operation was given a tensor with gaps"),
    }
}

/// Calls `f` with the values of a tensor, without copying them if they are contiguous.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(values(storage, layout)?),
        _ => bail!("a fused operation for the CPU was given a tensor of another device"),
    }
}

/// Values per task of an element-wise operation: enough to outweigh the hand-over to another thread.
pub(crate) const VALUES_PER_TASK: usize = 1 << 14;

/// Rows per task, so that a task has about [`VALUES_PER_TASK`] values. A function of the shape alone: where a reduction is
/// cut must not depend on the number of threads.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (VALUES_PER_TASK / columns.max(1)).max(1)
}

/// Adds up the tasks' partial results `[tasks, columns]` in the order of the tasks.
pub(crate) fn add_up(partial: &[Vec<f32>], columns: usize) -> Vec<f32> {
    let mut total = vec![0.0_f32; columns];
    for part in partial {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    total
}
