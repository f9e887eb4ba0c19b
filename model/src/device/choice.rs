//! Where a model is to run, as configurations say it.

use super::{Accelerator, DeviceError, Precision};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `cpu`, or `cuda:0`, `cuda:1`, …
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// This processor.
    #[default]
    Cpu,
    /// The GPU of this number, as NVIDIA's driver counts them.
    Cuda(usize),
}

/// An accelerator, and what it is to multiply.
#[derive(Clone, Debug)]
pub struct OnDevice {
    /// The accelerator.
    pub device: Arc<dyn Accelerator>,
    /// Its numbers.
    pub precision: Precision,
}

/// Opens an accelerator, each time anew.
#[derive(Clone)]
pub struct Opener(Arc<Open>);

type Open = dyn Fn() -> Result<Arc<dyn Accelerator>, DeviceError> + Send + Sync;

/// Where a model is to be, by way of what opens it.
#[derive(Clone, Debug)]
pub struct DevicePlace {
    /// Opens the accelerator.
    pub opener: Opener,
    /// What it is to multiply.
    pub precision: Precision,
}

impl Opener {
    /// From a function.
    pub fn new(open: impl Fn() -> Result<Arc<dyn Accelerator>, DeviceError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(open))
    }

    /// The accelerator, with a stream of its own.
    ///
    /// # Errors
    /// When it does not answer, or is not there.
    pub fn open(&self) -> Result<Arc<dyn Accelerator>, DeviceError> {
        (self.0)()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Opener")
    }
}

impl DevicePlace {
    /// Opens it.
    ///
    /// # Errors
    /// When it does not answer, or is not there.
    pub fn open(&self) -> Result<OnDevice, DeviceError> {
        Ok(OnDevice { device: self.opener.open()?, precision: self.precision })
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err(format!("\"{text}\" is not a device; use \"cpu\", \"cuda:0\", \"cuda:1\", …")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => to.write_str("cpu"),
            Self::Cuda(number) => write!(to, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// What opens the accelerator; `None`: this processor. It fails when there is none of this number, or this program was built without the feature `cuda`.
    #[must_use]
    pub fn opener(self) -> Option<Opener> {
        match self {
            Self::Cpu => None,
            Self::Cuda(number) => Some(Opener::new(move || open_cuda(number))),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<Arc<dyn Accelerator>, DeviceError> {
    super::Cuda::open(number).map(|device| device as Arc<dyn Accelerator>)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(number: usize) -> Result<Arc<dyn Accelerator>, DeviceError> {
    Err(not_built(number))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn not_built(number: usize) -> DeviceError {
    let reason = "this program was built without GPUs (--features cuda); use device = \"cpu\"".to_owned();
    DeviceError::Unusable { device: DeviceChoice::Cuda(number).to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (text, choice) in
            [("cpu", DeviceChoice::Cpu), ("cuda:0", DeviceChoice::Cuda(0)), ("cuda:12", DeviceChoice::Cuda(12))]
        {
            assert_eq!((text.parse(), choice.to_string().as_str()), (Ok(choice), text));
        }
        for text in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err_and(|error| error.contains(text)), "{text}");
        }
    }
}
