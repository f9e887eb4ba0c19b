//! The fields of a JSON object that a document is made of. The others are read over, and take no memory.

use super::document::{Document, Reason, Rejection};
use super::options::FormatOptions;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The text, the identifier, the language, the time of arrival.
const FIELDS: usize = 4;
const TEXT: usize = 0;
const LANGUAGE: usize = 2;

/// Names of the fields.
pub(super) struct JsonFields {
    names: [Option<String>; FIELDS],
}

/// What a field holds.
enum Value {
    Text(String),
    Number(String),
    Other,
}

/// A field that was found.
struct Found {
    value: Value,
    /// Objects around it: a field `a.b` goes before a field `b` inside of `a`.
    depth: usize,
}

impl JsonFields {
    pub(super) fn new(options: &FormatOptions) -> Self {
        let FormatOptions { text_field, id_field, language_field, arrived_field, .. } = options.clone();
        Self { names: [Some(text_field), id_field, language_field, arrived_field] }
    }

    /// The document in a line.
    pub(super) fn document(&self, offset_bytes: u64, line: &str) -> Document {
        let reject = |reason, detail: String| Err(Rejection::new(reason, detail, line.as_bytes()));
        let [text, id, language, arrived] = match self.find(line) {
            Ok(found) => found,
            Err(detail) => {
                let text = reject(Reason::MalformedJson, detail);
                return Document { offset_bytes, id: None, language: None, arrived_ms: None, text };
            }
        };
        let name = |field: usize| self.names[field].as_deref().unwrap_or_default();
        let text = match text {
            Some(Value::Text(text)) if text.contains('\0') => {
                reject(Reason::NulByte, "the text holds a NUL character".to_owned())
            }
            Some(Value::Text(text)) => Ok(text),
            Some(_) => reject(Reason::MissingText, format!("field `{}` is not a string", name(TEXT))),
            None => reject(Reason::MissingText, format!("the object has no field `{}`", name(TEXT))),
        };
        let id = match id {
            Some(Value::Text(id) | Value::Number(id)) => Some(id),
            Some(Value::Other) | None => None,
        };
        let (language, problem) = match language {
            Some(Value::Text(language)) => (Some(language), None),
            Some(_) => (None, Some("is not a string")),
            None => (None, self.names[LANGUAGE].is_some().then_some("is missing")),
        };
        let text = match problem {
            Some(problem) if text.is_ok() => {
                reject(Reason::MissingLanguage, format!("field `{}` {problem}", name(LANGUAGE)))
            }
            _ => text,
        };
        let arrived_ms = match arrived {
            Some(Value::Number(milliseconds)) => milliseconds.parse().ok(),
            _ => None,
        };
        Document { offset_bytes, id, language, arrived_ms, text }
    }

    fn find(&self, line: &str) -> Result<[Option<Value>; FIELDS], String> {
        if !line.trim_start().starts_with('{') {
            return Err("the line is not a JSON object".to_owned());
        }
        let named = self.names.iter().enumerate().filter_map(|(field, name)| Some((field, name.as_deref()?)));
        let wanted = named.map(|(field, rest)| Wanted { field, rest, depth: 0 }).collect();
        let mut found = [const { None }; FIELDS];
        let mut deserializer = serde_json::Deserializer::from_str(line);
        Node { wanted, found: &mut found }
            .deserialize(&mut deserializer)
            .and_then(|()| deserializer.end())
            .map_err(|error| error.to_string())?;
        Ok(found.map(|found| found.map(|found| found.value)))
    }
}

/// A value in which fields are looked for.
struct Node<'a> {
    wanted: Vec<Wanted<'a>>,
    found: &'a mut [Option<Found>; FIELDS],
}

/// A field that is, or lies inside of, a value.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    field: usize,
    /// Its name below the value; empty: it is the value.
    rest: &'a str,
    depth: usize,
}

impl Node<'_> {
    /// The value is `value`, for each field that it is.
    fn set<E: Error>(&mut self, value: impl Fn() -> Value) -> Result<(), E> {
        for wanted in self.wanted.iter().filter(|wanted| wanted.rest.is_empty()) {
            match &self.found[wanted.field] {
                Some(other) if other.depth == wanted.depth => {
                    return Err(E::custom("a field of the document is there twice"));
                }
                Some(other) if other.depth < wanted.depth => {}
                _ => self.found[wanted.field] = Some(Found { value: value(), depth: wanted.depth }),
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        self.set(|| Value::Text(text.to_owned()))
    }

    fn visit_i64<E: Error>(mut self, number: i64) -> Result<(), E> {
        self.set(|| Value::Number(number.to_string()))
    }

    fn visit_u64<E: Error>(mut self, number: u64) -> Result<(), E> {
        self.set(|| Value::Number(number.to_string()))
    }

    fn visit_f64<E: Error>(mut self, number: f64) -> Result<(), E> {
        self.set(|| Value::Number(number.to_string()))
    }

    fn visit_bool<E: Error>(mut self, _: bool) -> Result<(), E> {
        self.set(|| Value::Other)
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        self.set(|| Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        self.set(|| Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        self.set(|| Value::Other)?;
        while let Some(key) = entries.next_key::<String>()? {
            let wanted: Vec<Wanted> = self.wanted.iter().filter_map(|wanted| wanted.at(&key)).collect();
            if wanted.is_empty() {
                entries.next_value::<IgnoredAny>()?;
            } else {
                entries.next_value_seed(Node { wanted, found: &mut *self.found })?;
            }
        }
        Ok(())
    }
}

impl<'a> Wanted<'a> {
    /// What is wanted of the value of `key`: the field of that name, or one inside of it.
    fn at(self, key: &str) -> Option<Self> {
        if self.rest.is_empty() {
            return None;
        }
        if self.rest == key {
            return Some(Self { rest: "", ..self });
        }
        let rest = self.rest.strip_prefix(key)?.strip_prefix('.')?;
        Some(Self { rest, depth: self.depth + 1, ..self })
    }
}
