//! A TOML table that is read key by key: what is missing, of the wrong type, out of range or left over becomes a
//! [`Problem`] that names the key.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key it is about, e.g. `train.steps`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => self.message.fmt(f),
            key => write!(f, "{key}: {}", self.message),
        }
    }
}

/// Problems found so far. Cloning shares the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Problems(Rc<RefCell<Vec<Problem>>>);

impl Problems {
    pub(super) fn add(&self, key: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(Problem { key: key.into(), message: message.into() });
    }

    /// All of them in one text; `None`: there are none.
    pub(super) fn into_text(self) -> Option<String> {
        let problems: Vec<String> = self.into_vec().iter().map(Problem::to_string).collect();
        if problems.is_empty() { None } else { Some(problems.join("; ")) }
    }

    pub(super) fn into_vec(self) -> Vec<Problem> {
        self.0.take()
    }
}

/// A table being read. Dropping it without [`Table::finish`] would let unknown keys pass.
#[derive(Debug)]
pub(super) struct Table {
    path: String,
    values: toml::Table,
    known: Vec<&'static str>,
    problems: Problems,
}

impl Table {
    pub(super) fn new(path: impl Into<String>, values: toml::Table, problems: &Problems) -> Self {
        Self { path: path.into(), values, known: Vec::new(), problems: problems.clone() }
    }

    /// Full name of `key`.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.problems.add(self.name(key), message);
    }

    /// A sub-table, empty if it is not there.
    pub(super) fn table(&mut self, key: &'static str) -> Table {
        let values = self.optional_table(key).unwrap_or_default();
        Table::new(self.name(key), values, &self.problems)
    }

    /// A sub-table, if it is there.
    pub(super) fn table_if_present(&mut self, key: &'static str) -> Option<Table> {
        let values = self.optional_table(key)?;
        Some(Table::new(self.name(key), values, &self.problems))
    }

    fn optional_table(&mut self, key: &'static str) -> Option<toml::Table> {
        match self.take(key)? {
            toml::Value::Table(table) => Some(table),
            other => {
                self.wrong_type(key, "a table", &other);
                None
            }
        }
    }

    /// The tables of an array of tables (`[[key]]`).
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table> {
        let values = match self.take(key) {
            None => return Vec::new(),
            Some(toml::Value::Array(values)) => values,
            Some(other) => {
                self.wrong_type(key, &format!("an array of tables ([[{key}]])"), &other);
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            match value {
                toml::Value::Table(table) => {
                    let name = table.get("name").and_then(toml::Value::as_str).map_or(index.to_string(), str::to_owned);
                    tables.push(Table::new(format!("{}[{name}]", self.name(key)), table, &self.problems));
                }
                other => self.wrong_type(key, "an array of tables", &other),
            }
        }
        tables
    }

    /// A whole number within `range`.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        default: u64,
        range: impl RangeBounds<u64> + fmt::Debug,
    ) -> u64 {
        match self.take(key) {
            None => default,
            Some(toml::Value::Integer(value)) => match u64::try_from(value) {
                Ok(value) if range.contains(&value) => value,
                _ => {
                    self.problem(key, format!("{value} is out of range; it must be within {range:?}"));
                    default
                }
            },
            Some(other) => {
                self.wrong_type(key, "a whole number", &other);
                default
            }
        }
    }

    /// As [`Table::integer`], for sizes that index memory.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: usize,
        range: impl RangeBounds<u64> + fmt::Debug,
    ) -> usize {
        self.integer(key, default as u64, range) as usize
    }

    /// A number within `range`.
    pub(super) fn number(&mut self, key: &'static str, default: f64, range: impl RangeBounds<f64> + fmt::Debug) -> f64 {
        let value = match self.take(key) {
            None => return default,
            Some(toml::Value::Float(value)) => value,
            Some(toml::Value::Integer(value)) => value as f64,
            Some(other) => {
                self.wrong_type(key, "a number", &other);
                return default;
            }
        };
        if range.contains(&value) {
            return value;
        }
        self.problem(key, format!("{value} is out of range; it must be within {range:?}"));
        default
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(toml::Value::Boolean(value)) => value,
            Some(other) => {
                self.wrong_type(key, "true or false", &other);
                default
            }
        }
    }

    pub(super) fn string(&mut self, key: &'static str, default: &str) -> String {
        self.optional_string(key).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn optional_string(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            toml::Value::String(value) => Some(value),
            other => {
                self.wrong_type(key, "a string", &other);
                None
            }
        }
    }

    /// A string that has to be there and not be empty.
    pub(super) fn required_string(&mut self, key: &'static str, what: &str) -> String {
        match self.take(key) {
            None => self.problem(key, format!("missing; give {what}")),
            Some(toml::Value::String(value)) if value.is_empty() => self.problem(key, format!("empty; give {what}")),
            Some(toml::Value::String(value)) => return value,
            Some(other) => self.wrong_type(key, "a string", &other),
        }
        String::new()
    }

    /// A string, or an array of strings; `default` if the key is not there.
    pub(super) fn strings_or(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        if self.values.contains_key(key) {
            return self.strings(key);
        }
        self.known.push(key);
        default.iter().map(|&text| text.to_owned()).collect()
    }

    /// A string, or an array of strings.
    pub(super) fn strings(&mut self, key: &'static str) -> Vec<String> {
        match self.take(key) {
            None => Vec::new(),
            Some(toml::Value::String(value)) => vec![value],
            Some(toml::Value::Array(values)) => {
                let mut strings = Vec::new();
                for value in values {
                    match value {
                        toml::Value::String(value) => strings.push(value),
                        other => self.wrong_type(key, "a string or an array of strings", &other),
                    }
                }
                strings
            }
            Some(other) => {
                self.wrong_type(key, "a string or an array of strings", &other);
                Vec::new()
            }
        }
    }

    /// A path or glob pattern: `${NAME}` stands for an environment variable, and what is relative is so to `folder`.
    pub(super) fn resolve(&self, key: &str, folder: &Path, text: &str) -> PathBuf {
        let mut resolved = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else { break };
            resolved.push_str(before);
            match std::env::var(name) {
                Ok(value) => resolved.push_str(&value),
                Err(_) => self.problem(key, format!("environment variable {name} is not set")),
            }
            rest = after;
        }
        resolved.push_str(rest);
        folder.join(resolved)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        let default = choices[0].1;
        let Some(value) = self.optional_string(key) else { return default };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == value) {
            return *choice;
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.problem(key, format!("\"{value}\" is not known; use {}", names.join(" or ")));
        default
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self) {
        for key in self.values.keys() {
            let nearest = self
                .known
                .iter()
                .map(|known| (strsim::normalized_damerau_levenshtein(key, known), known))
                .filter(|(similarity, _)| *similarity > 0.4)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let advice = match nearest {
                Some((_, known)) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.problem(key, format!("unknown key; {advice}"));
        }
    }

    fn take(&mut self, key: &'static str) -> Option<toml::Value> {
        self.known.push(key);
        self.values.remove(key)
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &toml::Value) {
        self.problem(key, format!("must be {expected}, not {} ({found})", found.type_str()));
    }
}
