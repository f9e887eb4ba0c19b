//! On which device a teacher or the student runs, and with which numbers: `device` and `precision`.

use super::table::Table;
use model::device::{DeviceChoice, DevicePlace, Precision};
use serde::{Serialize, Serializer};

const NARROW_ON_PROCESSOR: &str = "the processor computes in float32; bfloat16 needs a GPU (device = \"cuda:0\")";

/// `device` and `precision` of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// `cpu` or `cuda:N`.
    #[serde(serialize_with = "device_name")]
    pub device: DeviceChoice,
    /// What is multiplied: float32, and on a GPU also bfloat16.
    #[serde(serialize_with = "precision_name")]
    pub precision: Precision,
}

impl Placement {
    /// This processor.
    pub const PROCESSOR: Self = Self { device: DeviceChoice::Cpu, precision: Precision::F32 };

    /// Reads both keys.
    pub(super) fn read(table: &mut Table) -> Self {
        let device = table.string("device", "cpu").parse().unwrap_or_else(|message| {
            table.problem("device", message);
            DeviceChoice::Cpu
        });
        let all = [Precision::F32, Precision::Bf16];
        let precision = table.optional_string("precision").and_then(|name| {
            let precision = all.into_iter().find(|precision| precision.name() == name);
            if precision.is_none() {
                table.problem("precision", format!("\"{name}\" is not known; use \"float32\" or \"bfloat16\""));
            }
            precision
        });
        Self::new(device, precision).unwrap_or_else(|message| {
            table.problem("precision", message);
            Self::PROCESSOR
        })
    }

    /// What a command line asks for; without a precision it is the device's usual one.
    ///
    /// # Errors
    /// When the device cannot multiply such numbers.
    pub fn new(device: DeviceChoice, precision: Option<Precision>) -> Result<Self, String> {
        let usual = match device {
            DeviceChoice::Cpu => Precision::F32,
            DeviceChoice::Cuda(_) => Precision::Bf16,
        };
        let precision = precision.unwrap_or(usual);
        match device == DeviceChoice::Cpu && precision == Precision::Bf16 {
            true => Err(NARROW_ON_PROCESSOR.to_owned()),
            false => Ok(Self { device, precision }),
        }
    }

    /// What opens the accelerator; `None`: this processor.
    #[must_use]
    pub fn on_device(self) -> Option<DevicePlace> {
        Some(DevicePlace { opener: self.device.opener()?, precision: self.precision })
    }

    /// Whether it is this processor.
    #[must_use]
    pub fn is_processor(self) -> bool {
        self.device == DeviceChoice::Cpu
    }
}

fn device_name<S: Serializer>(device: &DeviceChoice, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(device)
}

fn precision_name<S: Serializer>(precision: &Precision, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(precision.name())
}
