//! Paths that change who labels.

use crate::corpora::check_folder;
use crate::documents::decoded;
use crate::reply::Refusal;
use crate::routes::parse;
use crate::{Command, TeachersChange};
use hyper::http::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// One of these paths; names as they stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    All,
    Pause(&'a str),
    Resume(&'a str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    teacher: Map<String, Value>,
    folder: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoBody {}

/// The route of a path, and the name under which it is counted.
pub(crate) fn find(path: &str) -> Option<(&'static str, Route<'_>)> {
    if path == "/v1/teachers" {
        return Some(("/v1/teachers", Route::All));
    }
    let (name, verb) = path.strip_prefix("/v1/teachers/")?.split_once('/')?;
    let found = match verb {
        "pause" => ("/v1/teachers/{name}/pause", Route::Pause(name)),
        "resume" => ("/v1/teachers/{name}/resume", Route::Resume(name)),
        _ => return None,
    };
    (!name.is_empty()).then_some(found)
}

impl Route<'_> {
    /// Whether it is a question, which anybody may ask.
    pub(crate) fn asks(self, method: &Method) -> bool {
        self == Self::All && (method == Method::GET || method == Method::HEAD)
    }

    pub(crate) fn check_method(self, method: &Method) -> Result<(), Refusal> {
        let allow = if self == Self::All { "GET, HEAD, POST" } else { "POST" };
        if method == Method::POST { Ok(()) } else { Err(Refusal::method(allow)) }
    }

    pub(crate) fn command(self, body: &[u8]) -> Result<Command, Refusal> {
        let change = match self {
            Self::All => {
                let AddBody { teacher, folder } = parse(body)?;
                check_folder(&folder)?;
                TeachersChange::Add { section: Value::Object(teacher), folder }
            }
            Self::Pause(name) => {
                let NoBody {} = parse(body)?;
                TeachersChange::Pause { teacher: decoded(name)? }
            }
            Self::Resume(name) => {
                let NoBody {} = parse(body)?;
                TeachersChange::Resume { teacher: decoded(name)? }
            }
        };
        Ok(Command::ChangeTeachers(change))
    }
}
