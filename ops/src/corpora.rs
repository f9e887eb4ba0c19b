//! Commands that change what is read: corpora, and the shares of languages.

use crate::commands::check_absolute;
use crate::reply::Refusal;
use crate::request::Asked;
use crate::{Command, CorporaChange};
use hyper::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    corpus: Map<String, Value>,
    folder: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareBody {
    share: f64,
}

pub(crate) fn add(asked: &Asked) -> Result<Command, Refusal> {
    let AddBody { corpus, folder } = asked.body()?;
    check_absolute("folder", &folder)?;
    Ok(Command::ChangeCorpora(CorporaChange::Add { section: Value::Object(corpus), folder }))
}

pub(crate) fn remove(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::ChangeCorpora(CorporaChange::Remove { corpus: asked.name() }))
}

pub(crate) fn pause(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::ChangeCorpora(CorporaChange::Pause { corpus: asked.name() }))
}

pub(crate) fn resume(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::ChangeCorpora(CorporaChange::Resume { corpus: asked.name() }))
}

pub(crate) fn set_share(asked: &Asked) -> Result<Command, Refusal> {
    let ShareBody { share } = asked.body()?;
    if !(share > 0.0 && share <= 1.0) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_share", "a share is above 0, and at most 1"));
    }
    Ok(Command::ChangeCorpora(CorporaChange::Share { language: asked.name(), share: Some(share) }))
}

pub(crate) fn clear_share(asked: &Asked) -> Result<Command, Refusal> {
    asked.no_body()?;
    Ok(Command::ChangeCorpora(CorporaChange::Share { language: asked.name(), share: None }))
}
