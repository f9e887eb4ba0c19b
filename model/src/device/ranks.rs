//! The accelerators that train one student together: data parallelism.

use super::{Accelerator, DeviceChoice, DeviceError, Exchange, OnDevice, Precision, ThroughHost};
use std::ops::Range;
use std::sync::Arc;

/// Accelerators, and the way between them. Each has the whole student, and learns from its part of every batch.
#[derive(Clone, Debug)]
pub struct Ranks {
    devices: Vec<Arc<dyn Accelerator>>,
    exchange: Arc<dyn Exchange>,
    precision: Precision,
}

/// One of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Its place.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

impl Rank {
    /// The only one.
    pub const ALONE: Self = Self { number: 0, of: 1 };

    /// Numbers of each rank's part of an arena of `length` numbers: a multiple of `step`, so that together they may be a few more.
    pub(super) fn part(self, length: usize, step: usize) -> usize {
        length.div_ceil(self.of).next_multiple_of(step)
    }

    /// Its own part of an arena of `length` numbers, whose end the last ranks may have nothing of.
    pub(super) fn own(self, length: usize, step: usize) -> Range<usize> {
        let part = self.part(length, step);
        (self.number * part).min(length)..((self.number + 1) * part).min(length)
    }
}

impl Ranks {
    /// Accelerators that reach each other through `exchange`.
    #[must_use]
    pub fn new(devices: Vec<Arc<dyn Accelerator>>, exchange: Arc<dyn Exchange>, precision: Precision) -> Self {
        Self { devices, exchange, precision }
    }

    /// Accelerators that reach each other by way of the processor's memory.
    #[must_use]
    pub fn through_host(devices: Vec<Arc<dyn Accelerator>>, precision: Precision) -> Self {
        Self::new(devices.clone(), Arc::new(ThroughHost::new(devices)), precision)
    }

    /// Opens devices; `None`: this processor.
    ///
    /// # Errors
    /// When one is not there or does not answer, or the processor is asked for beside others.
    pub fn open(choices: &[DeviceChoice], precision: Precision) -> Result<Option<Self>, DeviceError> {
        let numbers: Vec<usize> = choices
            .iter()
            .filter_map(|choice| match choice {
                DeviceChoice::Cpu => None,
                DeviceChoice::Cuda(number) => Some(*number),
            })
            .collect();
        if numbers.is_empty() {
            return Ok(None);
        }
        if numbers.len() < choices.len() {
            let reason = "a student is trained on GPUs or on the processor, not on both".to_owned();
            return Err(DeviceError::Unusable { device: DeviceChoice::Cpu.to_string(), reason });
        }
        open_cuda(&numbers, precision).map(Some)
    }

    /// The accelerators, by rank.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = OnDevice> + '_ {
        self.devices.iter().map(|device| OnDevice { device: Arc::clone(device), precision: self.precision })
    }

    /// The way between them.
    pub(super) fn exchange(&self) -> &dyn Exchange {
        self.exchange.as_ref()
    }
}

impl From<OnDevice> for Ranks {
    fn from(OnDevice { device, precision }: OnDevice) -> Self {
        Self::through_host(vec![device], precision)
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(numbers: &[usize], precision: Precision) -> Result<Ranks, DeviceError> {
    let opened = numbers.iter().map(|number| super::Cuda::open(*number)).collect::<Result<Vec<_>, _>>()?;
    let devices: Vec<_> = opened.iter().map(|device| Arc::clone(device) as Arc<dyn Accelerator>).collect();
    if devices.len() == 1 {
        return Ok(Ranks::through_host(devices, precision));
    }
    match super::Nccl::open(opened) {
        Ok(exchange) => Ok(Ranks::new(devices, Arc::new(exchange), precision)),
        Err(error @ DeviceError::Unusable { .. }) => {
            tracing::warn!("{error}; gradients go through the processor's memory, which is slower");
            Ok(Ranks::through_host(devices, precision))
        }
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(numbers: &[usize], _: Precision) -> Result<Ranks, DeviceError> {
    Err(super::choice::not_built(numbers[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_an_arena_in_steps() {
        for (length, of) in [(64, 1), (64, 3), (8, 4), (1000, 7)] {
            let own: Vec<_> = (0..of).map(|number| Rank { number, of }.own(length, 8)).collect();
            assert_eq!((own[0].start, own[of - 1].end), (0, length));
            assert!(own.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % 8 == 0), "{own:?}");
            assert!(of * Rank { number: 0, of }.part(length, 8) >= length);
        }
    }

    #[test]
    fn the_processor_trains_alone() {
        assert!(Ranks::open(&[DeviceChoice::Cpu], Precision::F32).is_ok_and(|ranks| ranks.is_none()));
        let both = Ranks::open(&[DeviceChoice::Cpu, DeviceChoice::Cuda(0)], Precision::F32);
        assert!(both.is_err_and(|error| error.to_string().contains("not on both")));
    }
}
