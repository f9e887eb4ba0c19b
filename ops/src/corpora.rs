//! Paths that change what is read: corpora, and the shares of languages.

use crate::documents::decoded;
use crate::reply::Refusal;
use crate::routes::{invalid_body, parse};
use crate::{Command, CorporaChange};
use hyper::http::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// One of these paths; names as they stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    All,
    Corpus(&'a str),
    Pause(&'a str),
    Resume(&'a str),
    Share(&'a str),
}

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoBody {}

/// The folder that relative paths of a section are relative to.
pub(crate) fn check_folder(folder: &Path) -> Result<(), Refusal> {
    if folder.is_absolute() {
        return Ok(());
    }
    Err(invalid_body("`folder` must be an absolute path: the daemon's working directory is not yours"))
}

/// The route of a path, and the name under which it is counted.
pub(crate) fn find(path: &str) -> Option<(&'static str, Route<'_>)> {
    if path == "/v1/corpora" {
        return Some(("/v1/corpora", Route::All));
    }
    let named = |name: &str| !name.is_empty() && !name.contains('/');
    if let Some(language) = path.strip_prefix("/v1/languages/").and_then(|rest| rest.strip_suffix("/share")) {
        return named(language).then_some(("/v1/languages/{language}/share", Route::Share(language)));
    }
    let rest = path.strip_prefix("/v1/corpora/")?;
    let (name, found) = match rest.split_once('/') {
        None => (rest, ("/v1/corpora/{name}", Route::Corpus(rest))),
        Some((name, "pause")) => (name, ("/v1/corpora/{name}/pause", Route::Pause(name))),
        Some((name, "resume")) => (name, ("/v1/corpora/{name}/resume", Route::Resume(name))),
        Some(_) => return None,
    };
    named(name).then_some(found)
}

impl Route<'_> {
    /// Whether it is a question, which anybody may ask.
    pub(crate) fn asks(self, method: &Method) -> bool {
        self == Self::All && (method == Method::GET || method == Method::HEAD)
    }

    pub(crate) fn check_method(self, method: &Method) -> Result<(), Refusal> {
        let (methods, allow): (&[Method], _) = match self {
            Self::All => (&[Method::POST], "GET, HEAD, POST"),
            Self::Corpus(_) => (&[Method::DELETE], "DELETE"),
            Self::Pause(_) | Self::Resume(_) => (&[Method::POST], "POST"),
            Self::Share(_) => (&[Method::PUT, Method::DELETE], "PUT, DELETE"),
        };
        if methods.contains(method) { Ok(()) } else { Err(Refusal::method(allow)) }
    }

    pub(crate) fn command(self, method: &Method, body: &[u8]) -> Result<Command, Refusal> {
        let share = match self {
            Self::Share(_) if method == Method::PUT => Some(parse::<ShareBody>(body)?.share),
            Self::All => None,
            _ => {
                let NoBody {} = parse(body)?;
                None
            }
        };
        Ok(Command::ChangeCorpora(match self {
            Self::All => {
                let AddBody { corpus, folder } = parse(body)?;
                check_folder(&folder)?;
                CorporaChange::Add { section: Value::Object(corpus), folder }
            }
            Self::Corpus(name) => CorporaChange::Remove { corpus: decoded(name)? },
            Self::Pause(name) => CorporaChange::Pause { corpus: decoded(name)? },
            Self::Resume(name) => CorporaChange::Resume { corpus: decoded(name)? },
            Self::Share(language) => CorporaChange::Share { language: decoded(language)?, share },
        }))
    }
}
