//! Commands that change who labels.

use crate::commands::check_absolute;
use crate::reply::Refusal;
use crate::request::Asked;
use crate::{Command, TeachersChange};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    teacher: Map<String, Value>,
    folder: PathBuf,
}

pub(crate) fn add(asked: &Asked) -> Result<Command, Refusal> {
    let AddBody { teacher, folder } = asked.body()?;
    check_absolute("folder", &folder)?;
    Ok(Command::ChangeTeachers(TeachersChange::Add { section: Value::Object(teacher), folder }))
}

pub(crate) fn pause(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::ChangeTeachers(TeachersChange::Pause { teacher: asked.name() }))
}

pub(crate) fn resume(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::ChangeTeachers(TeachersChange::Resume { teacher: asked.name() }))
}
