//! The OpenAPI 3.1 document of the HTTP interface.
//!
//! `openapi/document.json` and `openapi/paths.json` are written by hand: what each path is for, what it takes and answers. What is the
//! same for many is filled in here, from the table of endpoints and the list of codes. In `paths.json` an operation may have these
//! keys, which are not OpenAPI's: `body` and `answer` (schemas), `body_required`, `example_body`, `example`, and `errors`, the codes
//! that it has beside those of its kind.

use crate::codes::{CODES, Code};
use crate::reply::JSON;
use crate::routes::{Answers, ENDPOINTS, Endpoint};
use hyper::body::Bytes;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const DOCUMENT: &str = include_str!("openapi/document.json");
const PATHS: &str = include_str!("openapi/paths.json");

/// Codes of every endpoint: those of the doors.
const OF_ALL: &[&str] = &["foreign_host", "foreign_origin", "too_many_connections"];
/// Of those under `/v1`.
const OF_VERSION_1: &[&str] = &["invalid_path", "invalid_query"];
/// Of questions that the daemon answers.
const OF_QUESTIONS: &[&str] = &["internal", "timeout"];
/// Of everything that takes the right to control.
const OF_CONTROL: &[&str] = &["token_needed", "control_needs_socket", "read_only", "internal", "timeout"];
/// Of commands.
const OF_COMMANDS: &[&str] = &[
    "invalid_body",
    "read_timeout",
    "changed_meanwhile",
    "body_too_large",
    "unsupported_media_type",
    "failed",
    "busy",
    "renewing",
    "stopping",
];

/// The document as it is served.
pub(crate) fn served() -> Bytes {
    Bytes::from(format!("{:#}\n", document()))
}

/// The document.
fn document() -> Value {
    let mut document = parsed(DOCUMENT);
    let mut paths = parsed(PATHS);
    for endpoint in ENDPOINTS {
        let method = endpoint.method.as_str().to_ascii_lowercase();
        let item = paths.get_mut(endpoint.path);
        if let Some(operation) = item.and_then(|item| item.get_mut(&method)?.as_object_mut()) {
            complete(endpoint, operation);
        }
    }
    document["paths"] = paths;
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    let meanings = CODES.iter().map(|code| format!("- `{}` ({}): {}", code.name, code.status, code.meaning));
    document["components"]["schemas"]["Code"] = json!({
        "type": "string",
        "enum": CODES.iter().map(|code| code.name).collect::<Vec<_>>(),
        "description": meanings.collect::<Vec<_>>().join("\n"),
    });
    document
}

/// A part of the program; a test sees to it that it is JSON.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Makes an operation OpenAPI's.
fn complete(endpoint: &Endpoint, operation: &mut Map<String, Value>) {
    let mut take = |key: &str| operation.remove(key);
    let (body, answer, errors) = (take("body"), take("answer"), take("errors"));
    let (example_body, example, body_required) = (take("example_body"), take("example"), take("body_required"));
    let is_command = matches!(endpoint.answers, Answers::Command(_));
    if let Some(schema) = body {
        let content = with_example(schema, example_body);
        let required = body_required == Some(Value::Bool(true));
        operation.insert("requestBody".to_owned(), json!({ "required": required, "content": { JSON: content } }));
    }
    if is_command {
        let parameters = operation.entry("parameters").or_insert_with(|| json!([]));
        for parameter in ["IfMatch", "Prefer"] {
            let reference = json!({ "$ref": format!("#/components/parameters/{parameter}") });
            parameters.as_array_mut().into_iter().for_each(|parameters| parameters.push(reference.clone()));
        }
    }
    let needs_control = is_command || matches!(endpoint.answers, Answers::Documents);
    operation.insert("security".to_owned(), if needs_control { json!([{ "token": [] }]) } else { json!([]) });
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    if let Some(schema) = answer {
        let is_tagged = matches!(endpoint.answers, Answers::Status | Answers::Listing(_) | Answers::Changing(_));
        let mut done = json!({ "description": "Done.", "content": { JSON: with_example(schema, example) } });
        if is_tagged {
            done["headers"] = json!({ "ETag": { "$ref": "#/components/headers/ETag" } });
        }
        responses["200"] = done;
    }
    if is_command {
        responses["202"] = json!({
            "description": "It has begun, and can be followed.",
            "headers": { "Location": { "$ref": "#/components/headers/Location" } },
            "content": { JSON: { "schema": { "$ref": "#/components/schemas/Operation" } } },
        });
    }
    let own = errors.iter().flat_map(|errors| errors.as_array()).flatten().filter_map(Value::as_str);
    for (status, codes) in by_status(&codes_of(endpoint, own)) {
        responses[status.to_string()] = refusal(status, &codes);
    }
}

fn with_example(schema: Value, example: Option<Value>) -> Value {
    match example {
        Some(example) => json!({ "schema": schema, "example": example }),
        None => json!({ "schema": schema }),
    }
}

/// The codes of an endpoint: its `own`, and those of its kind.
fn codes_of<'a>(endpoint: &Endpoint, own: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let version_1 = if endpoint.path.starts_with("/v1/") { OF_VERSION_1 } else { &[] };
    let of_kind: &[&[&str]] = match endpoint.answers {
        Answers::Page | Answers::Metrics | Answers::OpenApi => &[],
        Answers::Events | Answers::Operations | Answers::Operation => &[],
        Answers::Health | Answers::Ready | Answers::Status | Answers::Listing(_) => &[OF_QUESTIONS],
        Answers::Question(_) | Answers::Changing(_) => &[OF_QUESTIONS, &["failed"]],
        Answers::Command(_) => &[OF_CONTROL, OF_COMMANDS],
        Answers::Documents => &[OF_CONTROL],
    };
    let of_kind = of_kind.iter().copied().flatten().copied();
    own.chain(OF_ALL.iter().copied()).chain(version_1.iter().copied()).chain(of_kind).collect()
}

fn by_status(names: &[&str]) -> BTreeMap<u16, Vec<Code>> {
    let mut found = BTreeMap::<u16, Vec<Code>>::new();
    for code in CODES.iter().filter(|code| names.contains(&code.name)) {
        found.entry(code.status).or_default().push(*code);
    }
    found
}

/// An answer that says no with one of these codes.
fn refusal(status: u16, codes: &[Code]) -> Value {
    let meanings: Vec<String> = codes.iter().map(|code| format!("`{}`: {}", code.name, code.meaning)).collect();
    let names: Vec<&str> = codes.iter().map(|code| code.name).collect();
    let schema = json!({ "allOf": [
        { "$ref": "#/components/schemas/Error" },
        { "properties": { "error": { "properties": { "code": { "enum": names } } } } },
    ] });
    let mut refusal = json!({ "description": meanings.join(" "), "content": { JSON: { "schema": schema } } });
    match status {
        401 => refusal["headers"] = json!({ "WWW-Authenticate": { "$ref": "#/components/headers/WwwAuthenticate" } }),
        503 | 507 => refusal["headers"] = json!({ "Retry-After": { "$ref": "#/components/headers/RetryAfter" } }),
        _ => {}
    }
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_has_every_endpoint_and_nothing_else() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let methods = |(path, item): (&String, &Value)| {
            let methods = item.as_object().expect("a path").keys().filter(|key| *key != "parameters");
            methods.map(|method| (path.clone(), method.to_uppercase())).collect::<Vec<_>>()
        };
        let documented: BTreeSet<_> = paths.iter().flat_map(methods).collect();
        let served = ENDPOINTS
            .iter()
            .map(|endpoint| (endpoint.path.to_owned(), endpoint.method.to_string()))
            .collect::<BTreeSet<_>>();
        assert_eq!(served.len(), ENDPOINTS.len(), "no endpoint is there twice");
        assert_eq!(documented, served);
    }

    #[test]
    fn the_doc_of_the_crate_names_every_path() {
        let table = include_str!("lib.rs");
        ENDPOINTS
            .iter()
            .for_each(|endpoint| assert!(table.contains(&format!("`{}`", endpoint.path)), "{}", endpoint.path));
    }

    #[test]
    fn every_operation_says_what_it_is() {
        let document = document();
        let mut names = BTreeSet::new();
        for endpoint in ENDPOINTS {
            let (path, item) = (endpoint.path, &document["paths"][endpoint.path]);
            let operation = &item[endpoint.method.as_str().to_ascii_lowercase()];
            assert!(operation["summary"].is_string(), "{path}");
            assert!(names.insert(operation["operationId"].as_str().expect("a name")), "{path}: its name is taken");
            let responses = operation["responses"].as_object().expect("responses");
            assert!(responses.contains_key("200") && responses.contains_key("403"), "{path}");
            for key in ["body", "answer", "errors", "example", "example_body", "body_required"] {
                assert!(operation.get(key).is_none(), "{path}: {key}");
            }
            let name = path.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| name);
            let parameters: Vec<&Value> = [item, operation]
                .iter()
                .filter_map(|of| of["parameters"].as_array())
                .flatten()
                .map(|parameter| match parameter["$ref"].as_str() {
                    Some(reference) => document.pointer(&reference[1..]).expect("it leads somewhere"),
                    None => parameter,
                })
                .collect();
            let of_path = parameters.iter().find(|parameter| parameter["in"] == "path");
            assert_eq!(of_path.and_then(|parameter| parameter["name"].as_str()), name, "{path}");
            let of_query = parameters.iter().filter(|parameter| parameter["in"] == "query");
            let of_query: Vec<&str> = of_query.filter_map(|parameter| parameter["name"].as_str()).collect();
            assert_eq!(of_query, endpoint.query, "{path}");
        }
    }

    #[test]
    fn every_code_that_an_operation_names_is_listed() {
        let known = |code: &str| CODES.iter().any(|known| known.name == code);
        for item in parsed(PATHS).as_object().expect("paths").values() {
            for operation in item.as_object().expect("a path").values() {
                let errors = operation["errors"].as_array().into_iter().flatten();
                errors.for_each(|code| assert!(known(code.as_str().expect("a name")), "{code}"));
            }
        }
        for code in [OF_ALL, OF_VERSION_1, OF_QUESTIONS, OF_CONTROL, OF_COMMANDS].iter().copied().flatten() {
            assert!(known(code), "{code}");
        }
    }
}
