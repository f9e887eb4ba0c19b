//! What a request says: the name in its path, its query and its body.

use crate::Limits;
use crate::reply::{JSON, Refusal};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

/// A request whose parts have been read.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    name: String,
    query: Vec<(String, String)>,
    body: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoBody {}

impl Asked {
    /// Reads the name in a path, and the query, which may have the `known` parameters, once each.
    pub(crate) fn new(name: Option<&str>, query: Option<&str>, known: &[&str]) -> Result<Self, Refusal> {
        let name = name.map(decoded).transpose()?.unwrap_or_default();
        let mut found = Vec::<(String, String)>::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let (key, value) = (decoded(key)?, decoded(&value.replace('+', " "))?);
            if !known.contains(&key.as_str()) {
                return Err(invalid_query(&match known {
                    [] => format!("`{key}` is not known; this path takes none"),
                    _ => format!("`{key}` is not known; this path takes {}", known.join(", ")),
                }));
            }
            if found.iter().any(|(other, _)| *other == key) {
                return Err(invalid_query(&format!("`{key}` is there twice")));
            }
            found.push((key, value));
        }
        Ok(Self { name, query: found, body: Bytes::new() })
    }

    /// With a body, which must be JSON if there is any.
    pub(crate) async fn with_body(
        mut self,
        limits: &Limits,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Self, Refusal> {
        if !body.is_end_stream() {
            check_media_type(headers)?;
        }
        self.body = read_body(limits, body).await?;
        Ok(self)
    }

    /// The name in the path.
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// A parameter of the query.
    pub(crate) fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The body, a JSON object; none at all is the empty one.
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let value: Value = match self.body.trim_ascii() {
            [] => json!({}),
            body => serde_json::from_slice(body).map_err(|error| invalid_body(&error.to_string()))?,
        };
        if !value.is_object() {
            return Err(invalid_body("it must be a JSON object"));
        }
        T::deserialize(value).map_err(|error| invalid_body(&error.to_string()))
    }

    /// There is nothing to say in the body.
    pub(crate) fn no_body(&self) -> Result<(), Refusal> {
        self.body().map(|NoBody {}| ())
    }
}

/// A body without a type is taken for what it has to be.
fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let unsupported =
        |message: &str| Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    let value = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let media_type = value.map(|value| value.split(';').next().unwrap_or_default().trim());
    if media_type.is_some_and(|media_type| !media_type.eq_ignore_ascii_case(JSON)) {
        return unsupported("the Content-Type must be application/json");
    }
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return unsupported("the body must not be compressed");
    }
    Ok(())
}

async fn read_body(limits: &Limits, body: Incoming) -> Result<Bytes, Refusal> {
    let too_large = || {
        let message = format!("a request's body may have {} bytes", limits.body_bytes);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(too_large());
    }
    match timeout(limits.read_timeout, Limited::new(body, limits.body_bytes).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(invalid_body(&format!("it cannot be read: {error}"))),
        Err(_elapsed) => {
            let message = format!("the request's body was not complete after {:?}", limits.read_timeout);
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "read_timeout", message))
        }
    }
}

pub(crate) fn invalid_body(reason: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_body", format!("the request's body: {reason}"))
}

pub(crate) fn invalid_query(reason: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", format!("the query: {reason}"))
}

/// A part of a path or query without its percent encoding.
pub(crate) fn decoded(part: &str) -> Result<String, Refusal> {
    let invalid = || {
        let message = "the path and the query must be UTF-8 in percent encoding";
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_path", message)
    };
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else { return Err(invalid()) };
        bytes.push((16 * high + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}
