//! The OpenAPI document, and every answer of the other tests held against it.

use crate::harness::{Answer, Running, exchange};
use ops::CODES;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The document of each server is the same: it is asked for once.
static DOCUMENT: Mutex<Option<Value>> = Mutex::new(None);

pub(crate) fn document(running: &Running) -> Value {
    let mut known = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let document = known.get_or_insert_with(|| {
        let request = "GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        exchange(running.unix(), request).json()
    });
    document.clone()
}

/// Holds an answer against the document: status, type, body and headers are what it says of the operation.
pub(crate) fn check(document: &Value, method: &str, target: &str, answer: &Answer) {
    let path = target.split('?').next().unwrap();
    let what = format!("{method} {target}: {} {}", answer.status, answer.body);
    let item = document["paths"].as_object().unwrap().iter().find(|(form, _)| is_of(form, path)).map(|(_, item)| item);
    let method = if method == "HEAD" { "get".to_owned() } else { method.to_ascii_lowercase() };
    let operation = item.and_then(|item| item.get(&method));
    let response = match (item, operation) {
        (_, Some(operation)) => &operation["responses"][answer.status.to_string()],
        // What the document says of all paths: nothing else than an error that is known.
        (Some(_), None) if answer.status == 405 => &json!(null),
        (None, None) if answer.status == 404 => &json!(null),
        _ if answer.status == 403 => &json!(null),
        _ => panic!("the document has no such operation: {what}"),
    };
    if response.is_null() {
        assert!(operation.is_none(), "the document has no such answer: {what}");
        validate(document, &json!({ "$ref": "#/components/schemas/Error" }), &answer.json(), &what);
        return;
    }
    for header in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
        let is_there = answer.header(&header.to_ascii_lowercase()).is_some();
        assert!(is_there || header == "Retry-After", "{header} is missing: {what}");
    }
    let content = response["content"].as_object().unwrap();
    let (media_type, content) = content.iter().next().unwrap();
    assert_eq!(answer.header("content-type"), Some(media_type.as_str()), "{what}");
    if media_type == "application/json" && !answer.body.is_empty() {
        validate(document, &content["schema"], &answer.json(), &what);
    }
}

/// Whether a path is of this form.
fn is_of(form: &str, path: &str) -> bool {
    let (form, path): (Vec<&str>, Vec<&str>) = (form.split('/').collect(), path.split('/').collect());
    let fits = |(form, part): (&&str, &&str)| form == part || (form.starts_with('{') && !part.is_empty());
    form.len() == path.len() && form.iter().zip(&path).all(fits)
}

fn validate(document: &Value, schema: &Value, instance: &Value, what: &str) {
    let whole = json!({ "allOf": [schema], "components": document["components"] });
    let validator = jsonschema::draft202012::new(&whole).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(instance).map(|error| format!("{} at {}", error, error.instance_path())).collect();
    assert_eq!(errors, [""; 0], "{what}");
}

#[test]
fn examples_are_what_their_schemas_say() {
    let running = Running::start();
    let document = document(&running);
    let mut examples = 0;
    let mut check = |place: &str, content: &Value| {
        if let Some(example) = content.get("example") {
            validate(&document, &content["schema"], example, place);
            examples += 1;
        }
    };
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values().filter(|operation| operation.is_object()) {
            let bodies = operation["requestBody"]["content"].as_object();
            bodies.into_iter().flatten().for_each(|(_, content)| check(path, content));
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{path} {status}");
                response["content"].as_object().unwrap().values().for_each(|content| check(path, content));
            }
        }
    }
    assert!(examples > 20, "{examples}");
}

#[test]
fn every_reference_leads_somewhere() {
    let running = Running::start();
    let document = document(&running);
    let mut left = vec![&document];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                }
                left.extend(fields.values());
            }
            Value::Array(values) => left.extend(values),
            _ => {}
        }
    }
}

/// Codes stand in the sources as `404, "unknown_corpus"`, `StatusCode::NOT_FOUND, "not_found"`, `code: "failed"` and the like.
fn codes_of(source: &str) -> Vec<(Option<u16>, String)> {
    let parts: Vec<&str> = source.split('"').collect();
    let of_code = |pair: &[&str]| {
        let (before, text) = (pair[0].trim_end(), pair[1]);
        let is_name = text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let before = before.trim_end_matches(',');
        let number = before.get(before.len().saturating_sub(3)..).and_then(|digits| digits.parse::<u16>().ok());
        let status = number.filter(|number| (400..600).contains(number));
        let last =
            before.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).next().unwrap_or_default();
        let named =
            last.starts_with("StatusCode::") || before.ends_with("code:") || before.ends_with("Refusal::forbidden(");
        (is_name && (status.is_some() || named)).then(|| (status, text.to_owned()))
    };
    parts.windows(2).filter_map(of_code).collect()
}

fn sources(folder: &Path, found: &mut BTreeMap<String, Vec<(Option<u16>, String)>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("codes.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap();
            found.insert(path.display().to_string(), codes_of(source));
        }
    }
}

#[test]
fn every_code_in_the_sources_is_listed_and_the_other_way_round() {
    assert_eq!(codes_of(r#"error(404, "no_way") Refusal::new(StatusCode::OK, "one_way") f(1, "a")"#).len(), 2);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    for folder in ["src", "../daemon/src"] {
        sources(&root.join(folder), &mut found);
    }
    for (file, codes) in &found {
        for (status, code) in codes {
            let listed = CODES.iter().find(|listed| listed.name == code);
            let listed = listed.unwrap_or_else(|| panic!("{file}: `{code}` is not among ops::CODES"));
            assert!(status.is_none_or(|status| status == listed.status), "{file}: {code} with {status:?}");
        }
    }
    let text: String = found.keys().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for code in CODES {
        assert!(text.contains(&format!("\"{}\"", code.name)), "nothing answers `{}`", code.name);
        assert!(!code.meaning.is_empty() && code.meaning.ends_with('.'), "{}", code.name);
    }
    let mut names: Vec<&str> = CODES.iter().map(|code| code.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CODES.len(), "a code has one status and one meaning");
}
