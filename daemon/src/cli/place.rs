//! On which device a command computes.

use crate::configuration::{Placement, StudentPlacement};
use crate::failure::{ExitCode, Failure};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use model::device::{DeviceChoice, Precision};

/// Where a model runs.
#[derive(Clone, Debug, Args)]
pub struct PlaceArgs {
    /// Where the model runs: `cpu`, or a GPU, `cuda:0`.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// What is multiplied there [default: float32 on the processor, bfloat16 on a GPU].
    #[arg(long, value_name = "NUMBERS", value_parser = precision(Precision::ALL))]
    pub precision: Option<Precision>,
}

impl PlaceArgs {
    /// The place.
    ///
    /// # Errors
    /// When the device cannot multiply such numbers.
    pub fn placement(&self) -> Result<Placement, Failure> {
        Placement::new(self.device, self.precision).map_err(|message| Failure::new(ExitCode::Usage, message))
    }
}

/// Where a student is trained.
#[derive(Clone, Debug, Args)]
pub struct StudentPlaceArgs {
    /// Where the student is trained: `cpu`, or GPUs, `cuda:0` or `cuda:0,cuda:1`.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',', default_values_t = [DeviceChoice::Cpu])]
    pub device: Vec<DeviceChoice>,
    /// What is multiplied there [default: float32 on the processor, bfloat16 on GPUs].
    #[arg(long, value_name = "NUMBERS", value_parser = precision(Precision::OF_TRAINING))]
    pub precision: Option<Precision>,
}

impl StudentPlaceArgs {
    /// The place.
    ///
    /// # Errors
    /// When the devices cannot train together, or multiply such numbers.
    pub fn placement(&self) -> Result<StudentPlacement, Failure> {
        StudentPlacement::new(self.device.clone(), self.precision)
            .map_err(|message| Failure::new(ExitCode::Usage, message))
    }
}

/// Some of the precisions, by their names.
pub(super) fn precision<const COUNT: usize>(all: [Precision; COUNT]) -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(all.map(Precision::name))
        .map(move |name| all.into_iter().find(|precision| precision.name() == name).unwrap_or(Precision::F32))
}
