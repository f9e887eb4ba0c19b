//! What the bodies of commands say. Those about corpora and teachers have modules of their own.

use crate::reply::Refusal;
use crate::request::{Asked, invalid_body};
use crate::{Command, Stage};
use hyper::http::StatusCode;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Number;
use std::path::{Path, PathBuf};

/// As in the configuration.
const MOST_RETAINED_HOURS: f64 = 1e6;
/// Larger than any disk.
const MOST_RETAINED_BYTES: u64 = i64::MAX as u64;

/// A whole number, however it is written: to JSON, and to its schemas, `5.0` is one too.
struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// 2^64: what is below it fits.
        const END: f64 = 18_446_744_073_709_551_616.0;
        let number = Number::deserialize(deserializer)?;
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..END).contains(float));
        let whole = number.as_u64().or(float.map(|float| float as u64));
        whole.map(Self).ok_or_else(|| D::Error::custom(format!("{number} is no whole number from 0 on")))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StageBody {
    stage: Option<Stage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportBody {
    out: PathBuf,
    #[serde(default)]
    languages: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseBody {
    steps: Whole,
    out: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelBody {
    level: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetentionBody {
    retain_bytes: Option<Whole>,
    retain_hours: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetryBody {
    ids: Vec<String>,
    all: bool,
    corpus: Option<String>,
}

pub(crate) fn pause(asked: &Asked) -> Result<Command, Refusal> {
    Ok(Command::Pause { stage: asked.body::<StageBody>()?.stage })
}

pub(crate) fn resume(asked: &Asked) -> Result<Command, Refusal> {
    Ok(Command::Resume { stage: asked.body::<StageBody>()?.stage })
}

pub(crate) fn drain(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::Drain)
}

pub(crate) fn checkpoint(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::Checkpoint)
}

pub(crate) fn export(asked: &Asked) -> Result<Command, Refusal> {
    let ExportBody { out, languages } = asked.body()?;
    check_absolute("out", &out)?;
    Ok(Command::Export { out, languages })
}

pub(crate) fn release(asked: &Asked) -> Result<Command, Refusal> {
    let ReleaseBody { steps: Whole(steps), out } = asked.body()?;
    if steps == 0 {
        return Err(invalid_body("`steps` must be at least 1"));
    }
    out.as_deref().map_or(Ok(()), |out| check_absolute("out", out))?;
    Ok(Command::Release { steps, out })
}

pub(crate) fn cancel_release(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::CancelRelease)
}

pub(crate) fn retry_quarantined(asked: &Asked) -> Result<Command, Refusal> {
    let RetryBody { ids, all, corpus } = asked.body()?;
    if ids.is_empty() != all || (corpus.is_some() && !all) {
        return Err(invalid_body("give `ids`, or `all` = true and then, if it is about one alone, `corpus`"));
    }
    Ok(Command::RetryQuarantined { ids, corpus })
}

pub(crate) fn reload(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::Reload)
}

pub(crate) fn set_log_level(asked: &Asked) -> Result<Command, Refusal> {
    let LevelBody { level } = asked.body()?;
    Ok(Command::SetLogLevel { level })
}

pub(crate) fn set_retention(asked: &Asked) -> Result<Command, Refusal> {
    let RetentionBody { retain_bytes, retain_hours } = asked.body()?;
    if retain_bytes.is_none() && retain_hours.is_none() {
        return Err(invalid_body("give `retain_bytes`, `retain_hours`, or both"));
    }
    let long = retain_hours.is_some_and(|hours| !(0.0..=MOST_RETAINED_HOURS).contains(&hours));
    let large = retain_bytes.as_ref().is_some_and(|Whole(bytes)| *bytes > MOST_RETAINED_BYTES);
    if long || large {
        let message =
            format!("`retain_hours` is 0 to {MOST_RETAINED_HOURS}, `retain_bytes` at most {MOST_RETAINED_BYTES}");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_retention", message));
    }
    Ok(Command::SetRetention { retain_bytes: retain_bytes.map(|Whole(bytes)| bytes), retain_hours })
}

pub(crate) fn shutdown(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::Shutdown)
}

/// A path that means the same to the daemon as to the client.
pub(crate) fn check_absolute(key: &str, path: &Path) -> Result<(), Refusal> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(invalid_body(&format!("`{key}` must be an absolute path: the daemon's working directory is not yours")))
}
