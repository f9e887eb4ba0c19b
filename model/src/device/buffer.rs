//! Memory of an accelerator that is somebody's own.

use super::{Accelerator, Address, DeviceError};
use std::marker::PhantomData;
use std::sync::Arc;

/// Numbers in an accelerator's memory.
#[derive(Debug)]
pub struct Buffer<T> {
    device: Arc<dyn Accelerator>,
    at: Address,
    length: usize,
    of: PhantomData<T>,
}

impl<T: bytemuck::Pod> Buffer<T> {
    /// Reserves room for `length` numbers.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(device: &Arc<dyn Accelerator>, length: usize) -> Result<Self, DeviceError> {
        let at = device.allocate((length * size_of::<T>()).max(1))?;
        Ok(Self { device: Arc::clone(device), at, length, of: PhantomData })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// When there is no room.
    pub fn of(device: &Arc<dyn Accelerator>, values: &[T]) -> Result<Self, DeviceError> {
        let buffer = Self::new(device, values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    /// Overwrites its first numbers.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Panics
    /// When it has not as many.
    pub fn write(&self, values: &[T]) -> Result<(), DeviceError> {
        assert!(values.len() <= self.length, "{} numbers into {}", values.len(), self.length);
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer has room for them.
        unsafe { self.device.upload(bytemuck::cast_slice(values), self.at) }
    }

    /// Reads its first numbers.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Panics
    /// When it has not as many.
    pub fn read(&self, values: &mut [T]) -> Result<(), DeviceError> {
        assert!(values.len() <= self.length, "{} numbers from {}", values.len(), self.length);
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer has as many.
        unsafe { self.device.download(self.at, bytemuck::cast_slice_mut(values)) }
    }

    /// Makes room for at least `length` numbers; what was in it is lost if it had less.
    ///
    /// # Errors
    /// When there is no room; the buffer is then empty.
    pub fn grow(&mut self, length: usize) -> Result<(), DeviceError> {
        if length > self.length {
            // A quarter more than before at least, so that batches which are each a little larger do not all wait for the accelerator to reserve; where there is no
            // room for that, what is needed. First the old room goes, so that both are never needed.
            let more = length.max(self.length + self.length / 4);
            *self = Self::new(&self.device, 0)?;
            *self = match Self::new(&self.device, more) {
                Err(DeviceError::OutOfMemory { .. }) if more > length => Self::new(&self.device, length)?,
                grown => grown?,
            };
        }
        Ok(())
    }

    /// Makes room for `values`, and writes them.
    ///
    /// # Errors
    /// When there is no room, or the accelerator fails.
    pub fn fill(&mut self, values: &[T]) -> Result<(), DeviceError> {
        self.grow(values.len())?;
        self.write(values)
    }

    /// Its first number's place.
    #[must_use]
    pub fn at(&self) -> Address {
        self.at
    }

    /// Numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the place is this buffer's own, and nothing else refers to it for longer.
        unsafe { self.device.release(self.at) }
    }
}
