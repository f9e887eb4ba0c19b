//! Texts, or pairs of texts, with a class each.
//!
//! Two formats, told apart by the file's name:
//! - JSON lines (`*.jsonl`, `*.json`, `*.ndjson`): an object per line, with the keys below.
//! - TSV (everything else): columns separated by tabs. The first line names them if one of its cells is a key of a class (names with
//!   a key of a text and none of a class are refused); without such a line the columns are text, second text (of pairs), class. No quoting, as in GLUE's files and PAWS-X's.
//!
//! Keys: of the class `label` or `gold_label`; of the text `text`, `sentence`, `sentence1`, `premise`, `text_a`; of the second text
//! `text2`, `sentence2`, `hypothesis`, `text_b`. Classes are names or whole numbers. Other columns and keys are left alone.

use super::error::{DownstreamError, is_json, read_text};
use serde_json::Value;
use std::path::Path;

const CLASS: &[&str] = &["label", "gold_label"];
const FIRST: &[&str] = &["text", "sentence", "sentence1", "premise", "text_a"];
const SECOND: &[&str] = &["text2", "sentence2", "hypothesis", "text_b"];

/// A text, or a pair of texts, and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifiedText {
    /// The text.
    pub first: String,
    /// Of a pair, the other one.
    pub second: Option<String>,
    /// Its class.
    pub class: String,
}

/// Reads a file of texts; `pairs`: of pairs.
///
/// # Errors
/// When it cannot be read, a line lacks a column or a key, or there are no texts.
pub fn read(path: &Path, pairs: bool) -> Result<Vec<ClassifiedText>, DownstreamError> {
    let text = read_text(path)?;
    let texts = if is_json(path) { json_lines(path, &text, pairs)? } else { table(path, &text, pairs)? };
    if texts.is_empty() {
        return Err(DownstreamError::file(path, "no texts"));
    }
    Ok(texts)
}

fn json_lines(path: &Path, text: &str, pairs: bool) -> Result<Vec<ClassifiedText>, DownstreamError> {
    let mut texts = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let failed = |reason: String| DownstreamError::line(path, number, reason);
        let value: Value = serde_json::from_str(line).map_err(|error| failed(format!("not JSON: {error}")))?;
        let find = |keys: &[&str], what: &str| {
            let found = keys.iter().find_map(|key| value.get(*key).map(|value| (*key, value)));
            match found {
                Some((_, Value::String(text))) => Ok(text.clone()),
                Some((_, Value::Number(number))) if number.is_i64() && keys == CLASS => Ok(number.to_string()),
                Some((key, _)) => Err(failed(format!("`{key}`, the {what}, is no string"))),
                None => Err(failed(format!("no {what}: expected one of the keys {}", keys.join(", ")))),
            }
        };
        let second = if pairs { Some(find(SECOND, "second text")?) } else { None };
        texts.push(ClassifiedText { first: find(FIRST, "text")?, second, class: find(CLASS, "class")? });
    }
    Ok(texts)
}

/// Places of a table's columns.
struct Places {
    first: usize,
    second: Option<usize>,
    class: usize,
}

fn table(path: &Path, text: &str, pairs: bool) -> Result<Vec<ClassifiedText>, DownstreamError> {
    let mut texts = Vec::new();
    let mut places = Places { first: 0, second: pairs.then_some(1), class: if pairs { 2 } else { 1 } };
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let failed = |reason: String| DownstreamError::line(path, number, reason);
        let cells: Vec<&str> = line.split('\t').collect();
        if number == 1 && cells.iter().any(|cell| CLASS.contains(&cell.trim())) {
            places = named(&cells, pairs).map_err(failed)?;
            continue;
        }
        if number == 1 && names_no_class(&cells) {
            let reason = format!("the columns' names lack one of the class: expected one of {}", CLASS.join(", "));
            return Err(failed(reason));
        }
        let cell = |place: usize, what: &str| match cells.get(place) {
            Some(cell) if !cell.trim().is_empty() => Ok(cell.trim().to_owned()),
            Some(_) => Err(failed(format!("column {}, the {what}, is empty", place + 1))),
            None => Err(failed(format!("{} columns, but the {what} is in column {}", cells.len(), place + 1))),
        };
        let second = places.second.map(|place| cell(place, "second text")).transpose()?;
        texts.push(ClassifiedText { first: cell(places.first, "text")?, second, class: cell(places.class, "class")? });
    }
    Ok(texts)
}

/// Whether a first line names columns, but no class: a line of one word each, of which one is a key of a text, is no example.
fn names_no_class(cells: &[&str]) -> bool {
    let is_key = |cell: &&str| FIRST.contains(&cell.trim()) || SECOND.contains(&cell.trim());
    cells.iter().any(is_key) && cells.iter().all(|cell| !cell.trim().contains(char::is_whitespace))
}

/// Places by the names in a table's first line.
fn named(cells: &[&str], pairs: bool) -> Result<Places, String> {
    let find = |keys: &[&str], what: &str| {
        let found = cells.iter().position(|cell| keys.contains(&cell.trim()));
        found.ok_or_else(|| format!("no column of the {what}: expected one of {}", keys.join(", ")))
    };
    let second = if pairs { Some(find(SECOND, "second text")?) } else { None };
    Ok(Places { first: find(FIRST, "text")?, second, class: find(CLASS, "class")? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_as(name: &str, text: &str, pairs: bool) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let shown = |text: &ClassifiedText| {
            let second = text.second.as_ref().map_or_else(String::new, |second| format!("|{second}"));
            format!("{}{second}/{}", text.first, text.class)
        };
        let texts = read(&path, pairs);
        let texts = texts.map(|texts| texts.iter().map(shown).collect::<Vec<_>>().join(" "));
        texts.map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn tables_and_json_lines_are_read() {
        for (name, text, pairs, expected) in [
            ("a.tsv", "x y\tgood\n\nz\tbad\n", false, "x y/good z/bad"),
            ("a.tsv", "x\ty\t1\r\n", true, "x|y/1"),
            ("a.tsv", "id\tlabel\tsentence\n7\tgood\tx\n", false, "x/good"),
            ("a.tsv", "premise\thypothesis\tgold_label\nx\ty\tneutral\n", true, "x|y/neutral"),
            ("a.jsonl", "{\"text\": \"x\", \"label\": 1}\n\n{\"label\": \"b\", \"text\": \"y\"}\n", false, "x/1 y/b"),
            ("a.json", "{\"sentence1\": \"x\", \"sentence2\": \"\", \"label\": \"b\"}\n", true, "x|/b"),
        ] {
            assert_eq!(read_as(name, text, pairs).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn errors_name_file_and_line() {
        for (name, text, pairs, expected) in [
            ("a.tsv", "x\tgood\ny\n", false, "a.tsv:2: 1 columns, but the class is in column 2"),
            ("a.tsv", "x\t \n", false, "a.tsv:1: column 2, the class, is empty"),
            ("a.tsv", "label\tsentence\n", true, "a.tsv:1: no column of the second text: expected one of text2, "),
            ("a.tsv", "label\tsentence\n", false, "a.tsv: no texts"),
            ("a.tsv", "text\tcategory\nx\t1\n", false, "a.tsv:1: the columns' names lack one of the class"),
            ("a.jsonl", "{\"text\": \"x\"}", false, "a.jsonl:1: no class: expected one of the keys label, gold_label"),
            ("a.jsonl", "\n{\"text\": 1, \"label\": 1}", false, "a.jsonl:2: `text`, the text, is no string"),
            ("a.jsonl", "{\"text\": \"x\", \"label\": 0.5}", false, "a.jsonl:1: `label`, the class, is no string"),
            ("a.jsonl", "x", false, "a.jsonl:1: not JSON: "),
        ] {
            let error = read_as(name, text, pairs).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
