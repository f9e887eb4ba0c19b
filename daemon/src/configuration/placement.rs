//! On which device a teacher or the student runs, and with which numbers: `device` and `precision`.

use super::table::Table;
use model::device::{DeviceChoice, DeviceError, DevicePlace, Precision, Ranks};
use serde::{Serialize, Serializer};

const NARROW_ON_PROCESSOR: &str = "the processor computes in float32; others need a GPU (device = \"cuda:0\")";
const NO_GRADIENTS: &str =
    "a student is not trained in float16, in which small gradients vanish; use \"float32\" or \"bfloat16\"";

/// `device` and `precision` of a teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// `cpu` or `cuda:N`.
    #[serde(serialize_with = "device_name")]
    pub device: DeviceChoice,
    /// What is multiplied: float32, and on a GPU also bfloat16 and float16.
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
        Self::new(device, read_precision(table, &Precision::ALL)).unwrap_or_else(|message| {
            table.problem("precision", message);
            Self::PROCESSOR
        })
    }

    /// What a command line asks for; without a precision it is the device's usual one.
    ///
    /// # Errors
    /// When the device cannot multiply such numbers.
    pub fn new(device: DeviceChoice, precision: Option<Precision>) -> Result<Self, String> {
        Ok(Self { device, precision: precision_on(device, precision)? })
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

impl std::fmt::Display for Placement {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}, {}", self.device, self.precision.name())
    }
}

/// `device` and `precision` of the student, which several GPUs can train together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StudentPlacement {
    /// `cpu`, or one or several of `cuda:N`.
    #[serde(serialize_with = "device_names")]
    pub device: Vec<DeviceChoice>,
    /// What is multiplied: float32, and on GPUs also bfloat16.
    #[serde(serialize_with = "precision_name")]
    pub precision: Precision,
}

impl StudentPlacement {
    /// Reads both keys.
    pub(super) fn read(table: &mut Table) -> Self {
        let names = table.strings_or("device", &["cpu"]);
        let devices: Result<Vec<DeviceChoice>, String> = names.iter().map(|name| name.parse()).collect();
        let (precision, processor) = (read_precision(table, &Precision::OF_TRAINING), vec![DeviceChoice::Cpu]);
        let devices =
            devices.and_then(|devices| check_together(&devices).map(|()| devices)).unwrap_or_else(|message| {
                table.problem("device", message);
                processor.clone()
            });
        Self::new(devices, precision).unwrap_or_else(|message| {
            table.problem("precision", message);
            Self { device: processor, precision: Precision::F32 }
        })
    }

    /// What a command line asks for; without a precision it is the devices' usual one.
    ///
    /// # Errors
    /// When devices do not train together, or cannot multiply such numbers.
    pub fn new(device: Vec<DeviceChoice>, precision: Option<Precision>) -> Result<Self, String> {
        check_together(&device)?;
        if precision == Some(Precision::F16) {
            return Err(NO_GRADIENTS.to_owned());
        }
        Ok(Self { precision: precision_on(device[0], precision)?, device })
    }

    /// Opens the accelerators; `None`: this processor.
    ///
    /// # Errors
    /// When one is not there, or does not answer.
    pub fn open(&self) -> Result<Option<Ranks>, DeviceError> {
        Ranks::open(&self.device, self.precision)
    }

    /// Whether it is this processor.
    #[must_use]
    pub fn is_processor(&self) -> bool {
        self.device == [DeviceChoice::Cpu]
    }
}

impl From<Placement> for StudentPlacement {
    fn from(Placement { device, precision }: Placement) -> Self {
        Self { device: vec![device], precision }
    }
}

/// Whether devices can train one student: the processor alone, or GPUs, each once.
fn check_together(devices: &[DeviceChoice]) -> Result<(), String> {
    match devices {
        [] => Err("empty; give \"cpu\", or one or several GPUs".to_owned()),
        [_] => Ok(()),
        _ if devices.contains(&DeviceChoice::Cpu) => {
            Err("a student is trained on the processor or on GPUs, not on both".to_owned())
        }
        _ => match devices.iter().enumerate().find(|(at, device)| devices[..*at].contains(device)) {
            Some((_, twice)) => Err(format!("\"{twice}\" is there twice")),
            None => Ok(()),
        },
    }
}

/// `wanted`: what there is for whoever is placed.
fn read_precision(table: &mut Table, wanted: &[Precision]) -> Option<Precision> {
    let name = table.optional_string("precision")?;
    let precision = Precision::ALL.into_iter().find(|precision| precision.name() == name);
    if precision.is_none() {
        let known: Vec<String> = wanted.iter().map(|precision| format!("\"{}\"", precision.name())).collect();
        let known = known.join(" or ");
        table.problem("precision", format!("\"{name}\" is not known; use {known}"));
    }
    precision
}

/// What is multiplied on a device: its usual numbers, unless others are asked for.
fn precision_on(device: DeviceChoice, asked: Option<Precision>) -> Result<Precision, String> {
    match (device, asked) {
        (DeviceChoice::Cpu, Some(Precision::Bf16 | Precision::F16)) => Err(NARROW_ON_PROCESSOR.to_owned()),
        (DeviceChoice::Cpu, None | Some(Precision::F32)) => Ok(Precision::F32),
        (DeviceChoice::Cuda(_), asked) => Ok(asked.unwrap_or(Precision::Bf16)),
    }
}

/// One by its name, several as a list.
fn device_names<S: Serializer>(devices: &[DeviceChoice], to: S) -> Result<S::Ok, S::Error> {
    match devices {
        [device] => device_name(device, to),
        _ => to.collect_seq(devices.iter().map(DeviceChoice::to_string)),
    }
}

fn device_name<S: Serializer>(device: &DeviceChoice, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(device)
}

fn precision_name<S: Serializer>(precision: &Precision, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(precision.name())
}
