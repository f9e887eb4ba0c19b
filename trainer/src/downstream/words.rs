//! Words with a tag each: part-of-speech tags, named entities.
//!
//! CoNLL's formats: a line per word, columns separated by tabs or white space, an empty line between sentences. Where
//! a file has tabs, only they separate, so words may contain spaces, and lines that begin with `#` and have no tab are comments.
//! Lines that begin with `-DOCSTART-` count as empty. In files called `*.conllu` the word is column 2 and the tag column 4 unless
//! others are asked for, and lines of multiword tokens and empty nodes (`3-4`, `5.1`) are left out.
//!
//! JSON lines (`*.jsonl`, `*.json`, `*.ndjson`): an object per sentence, as data sets of the Hugging Face hub have it. Keys: of the words `tokens` or `words`, of the
//! tags `tags`, `ner_tags`, `upos`, `upos_tags`, `pos_tags` or `labels`: names, or whole numbers, which are taken for names.

use super::error::{DownstreamError, is_json, read_text};
use serde_json::Value;
use std::path::Path;

const WORDS: &[&str] = &["tokens", "words"];
const TAGS: &[&str] = &["tags", "ner_tags", "upos", "upos_tags", "pos_tags", "labels"];

/// A sentence: words, and a tag for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaggedSentence {
    /// `[words]`.
    pub words: Vec<String>,
    /// `[words]`.
    pub tags: Vec<String>,
}

/// Which columns hold what, counted from 1. `None`: the first and the last; in a `.conllu` file 2 and 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Column of the word.
    pub word: Option<usize>,
    /// Column of the tag.
    pub tag: Option<usize>,
}

/// Reads a file of sentences.
///
/// # Errors
/// When it cannot be read, a line lacks a column or a key or has an empty one, or there are no sentences.
pub fn read(path: &Path, columns: Columns) -> Result<Vec<TaggedSentence>, DownstreamError> {
    let text = read_text(path)?;
    let sentences = if is_json(path) { json_lines(path, &text)? } else { lines(path, &text, columns)? };
    if sentences.is_empty() {
        return Err(DownstreamError::file(path, "no sentences; expected a line per word, with its tag"));
    }
    Ok(sentences)
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<TaggedSentence>, DownstreamError> {
    let mut sentences = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let failed = |reason: String| DownstreamError::line(path, number, reason);
        let value: Value = serde_json::from_str(line).map_err(|error| failed(format!("not JSON: {error}")))?;
        let find = |keys: &[&str], what: &str| {
            let Some((key, list)) = keys.iter().find_map(|key| Some((*key, value.get(*key)?))) else {
                return Err(failed(format!("no {what}: expected one of the keys {}", keys.join(", "))));
            };
            let strings = list.as_array().and_then(|list| list.iter().map(|of| word_or_number(of, keys)).collect());
            strings.ok_or_else(|| failed(format!("`{key}`, the {what}, is no list of strings, none of them empty")))
        };
        let (words, tags): (Vec<String>, Vec<String>) = (find(WORDS, "words")?, find(TAGS, "tags")?);
        if words.len() != tags.len() {
            return Err(failed(format!("{} words, but {} tags", words.len(), tags.len())));
        }
        if !words.is_empty() {
            sentences.push(TaggedSentence { words, tags });
        }
    }
    Ok(sentences)
}

/// A string, or a tag's number.
fn word_or_number(value: &Value, keys: &[&str]) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) if keys == TAGS && number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

fn lines(path: &Path, text: &str, columns: Columns) -> Result<Vec<TaggedSentence>, DownstreamError> {
    let by_tabs = text.contains('\t');
    let universal = path.extension().is_some_and(|extension| extension == "conllu");
    let columns = match universal {
        true => Columns { word: columns.word.or(Some(2)), tag: columns.tag.or(Some(4)) },
        false => columns,
    };
    let mut sentences = Vec::new();
    let mut sentence = TaggedSentence::default();
    for (line, number) in text.lines().zip(1..) {
        if by_tabs && line.starts_with('#') && !line.contains('\t') {
            continue;
        }
        if line.trim().is_empty() || line.starts_with("-DOCSTART-") {
            if !sentence.words.is_empty() {
                sentences.push(std::mem::take(&mut sentence));
            }
            continue;
        }
        let cells: Vec<&str> = if by_tabs { line.split('\t').collect() } else { line.split_whitespace().collect() };
        if universal && cells.first().is_some_and(|id| id.contains(['-', '.'])) {
            continue;
        }
        let (word, tag) =
            word_and_tag(&cells, columns).map_err(|reason| DownstreamError::line(path, number, reason))?;
        sentence.words.push(word.to_owned());
        sentence.tags.push(tag.to_owned());
    }
    if !sentence.words.is_empty() {
        sentences.push(sentence);
    }
    Ok(sentences)
}

fn word_and_tag<'a>(cells: &[&'a str], columns: Columns) -> Result<(&'a str, &'a str), String> {
    let count = cells.len();
    let cell = |column: usize, what: &str| match column.checked_sub(1).and_then(|at| cells.get(at)) {
        Some(cell) if !cell.trim().is_empty() => Ok(cell.trim()),
        Some(_) => Err(format!("column {column}, the {what}, is empty")),
        None => Err(format!("{count} columns, but the {what} is in column {column}")),
    };
    if columns.tag.is_none() && count < 2 {
        return Err("expected a word and its tag, separated by a tab or a space".to_owned());
    }
    Ok((cell(columns.word.unwrap_or(1), "word")?, cell(columns.tag.unwrap_or(count), "tag")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_as(name: &str, text: &str, columns: Columns) -> Result<Vec<TaggedSentence>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path, columns).map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    fn check(name: &str, text: &str, columns: Columns, expected: &[&str]) {
        let joined = |sentence: &TaggedSentence| {
            let pairs = sentence.words.iter().zip(&sentence.tags);
            pairs.map(|(word, tag)| format!("{word}/{tag}")).collect::<Vec<_>>().join(" ")
        };
        let sentences = read_as(name, text, columns).unwrap();
        assert_eq!(sentences.iter().map(joined).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn columns_are_found() {
        let usual = Columns::default();
        check("a.tsv", "The\tDET\ncat\tNOUN\n\n5 000\tNUM\n", usual, &["The/DET cat/NOUN", "5 000/NUM"]);
        check("a.tsv", "\u{feff}# text = x\n\n#\tSYM\r\n\r\n\r\nx\tX", usual, &["#/SYM", "x/X"]);
        let news = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP B-ORG\n# NN O O\n\n";
        check("a.txt", news, usual, &["EU/B-ORG #/O"]);
        check("a.txt", news, Columns { tag: Some(2), ..usual }, &["EU/NNP #/NN"]);
        let universal = "# sent_id = 1\n1-2\tzum\t_\t_\n1\tzu\tzu\tADP\tx\n2\tdem\tder\tDET\tx\n2.1\tx\tx\tX\tx\n";
        check("a.conllu", universal, usual, &["zu/ADP dem/DET"]);
        check("a.conllu", universal, Columns { word: Some(3), ..usual }, &["zu/ADP der/DET"]);
        // White space alone is an empty line.
        check("a.tsv", "a\tX\n\t\nb\tY\n", usual, &["a/X", "b/Y"]);
        let hub = "{\"tokens\": [\"New York\", \"is\"], \"ner_tags\": [1, 0]}\n\n{\"words\": [], \"tags\": []}\n";
        check("a.jsonl", hub, usual, &["New York/1 is/0"]);
        check("a.json", "{\"words\": [\"EU\"], \"id\": 7, \"tags\": [\"B-ORG\"]}", usual, &["EU/B-ORG"]);
    }

    #[test]
    fn errors_name_file_and_line() {
        let usual = Columns::default();
        for (text, columns, expected) in [
            ("a\tX\nb\n", usual, "a.tsv:2: expected a word and its tag, separated by a tab or a space"),
            ("a\tX\n \tX\n", usual, "a.tsv:2: column 1, the word, is empty"),
            ("a\tX\n", Columns { tag: Some(3), ..usual }, "a.tsv:1: 2 columns, but the tag is in column 3"),
            ("\n\n", usual, "a.tsv: no sentences; expected a line per word, with its tag"),
        ] {
            let error = read_as("a.tsv", text, columns).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        for (text, expected) in [
            ("\na\tX\n", "a.jsonl:2: not JSON: "),
            ("{\"tokens\": [\"a\"]}", "a.jsonl:1: no tags: expected one of the keys tags, ner_tags, "),
            ("{\"tokens\": \"a\", \"tags\": [\"X\"]}", "a.jsonl:1: `tokens`, the words, is no list of strings"),
            ("{\"tokens\": [1], \"tags\": [\"X\"]}", "a.jsonl:1: `tokens`, the words, is no list of strings"),
            ("{\"tokens\": [\"a\"], \"tags\": [\"\"]}", "a.jsonl:1: `tags`, the tags, is no list of strings"),
            ("{\"tokens\": [\"a\"], \"tags\": []}", "a.jsonl:1: 1 words, but 0 tags"),
            ("{\"tokens\": [], \"tags\": []}", "a.jsonl: no sentences"),
        ] {
            let error = read_as("a.jsonl", text, usual).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, b"a\tX\n\xff\tX\n").unwrap();
        assert!(read(&path, usual).unwrap_err().to_string().ends_with("a.tsv:2: not UTF-8"));
        assert!(read(&folder.path().join("b"), usual).unwrap_err().to_string().starts_with("cannot read"));
    }
}
