//! A tensor's numbers as a slice, without copying: for kernels of our own on candle's storage.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use std::cell::RefCell;

/// Calls `read` with the numbers of `tensor`, which must be contiguous `f32` on the CPU.
pub(crate) fn read<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("the student is trained on the CPU") };
    let Some((first, end)) = layout.contiguous_offsets() else { bail!("a tensor that is not contiguous") };
    Ok(read(&storage.as_slice::<f32>()?[first..end]))
}

/// Calls `write` with the numbers of `tensor`, which must be contiguous `f32` on the CPU. Whoever shares the
/// tensor's storage sees the change.
pub(crate) fn write<T>(tensor: &Tensor, write: impl FnOnce(&mut [f32]) -> T) -> Result<T> {
    let op = Write { call: RefCell::new(Some(write)), result: RefCell::new(None) };
    tensor.inplace_op1(&op)?;
    match op.result.into_inner() {
        Some(result) => Ok(result),
        None => bail!("an operation in place was not carried out"),
    }
}

struct Write<F, T> {
    call: RefCell<Option<F>>,
    result: RefCell<Option<T>>,
}

impl<T, F: FnOnce(&mut [f32]) -> T> InplaceOp1 for Write<F, T> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((first, end)) = layout.contiguous_offsets() else { bail!("a tensor that is not contiguous") };
        let CpuStorage::F32(numbers) = storage else { bail!("a tensor that is not f32") };
        if let Some(call) = self.call.borrow_mut().take() {
            *self.result.borrow_mut() = Some(call(&mut numbers[first..end]));
        }
        Ok(())
    }
}
