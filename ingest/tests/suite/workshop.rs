//! A folder with corpora, tokenizers and the means to read a corpus through ingest.

use ingest::quarantine::Quarantine;
use ingest::{
    CorpusOptions, FeedOptions, Format, Ingest, IngestError, IngestOptions, IngestTeacher, Language, MaskUnit,
    Overrides,
};
use model::Tokenizer;
use model::random::Philox;
use prometheus::Registry;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Entry, Group, MaskedCopy, Payload, Record, SequenceNumber, SourceCursor};
use tempfile::TempDir;

pub(crate) const WORDS: [&str; 24] = [
    "the", "menu", "opens", "a", "window", "with", "cells", "and", "rows", "click", "to", "save", "your", "table",
    "print", "page", "value", "formula", "chart", "sorting", "letters", "document", "format", "column",
];
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const PUNCTUATION: [&str; 12] = [".", ",", "!", "?", ":", "(", ")", "\"", "。", "[", "]", "-"];
const CHINESE: [&str; 6] = ["表", "格", "文", "件", "打", "开"];

pub(crate) type Cursors = BTreeMap<Arc<str>, SourceCursor>;

/// What a test works in; removed when it ends.
pub(crate) struct Workshop {
    folder: TempDir,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A corpus of one text file.
    pub(crate) fn corpus(&self, name: &str, language: &str, content: impl AsRef<[u8]>) -> CorpusOptions {
        let file = self.write(&format!("{name}.txt"), content);
        corpus_of(name, language, Format::Text, vec![file])
    }

    pub(crate) fn json_corpus(&self, name: &str, language: &str, content: impl AsRef<[u8]>) -> CorpusOptions {
        let file = self.write(&format!("{name}.jsonl"), content);
        corpus_of(name, language, Format::JsonLines, vec![file])
    }

    pub(crate) fn options(&self, corpora: Vec<CorpusOptions>) -> IngestOptions {
        IngestOptions {
            seed: 7,
            alpha: 0.7,
            corpora,
            mask_probability: 0.15,
            mask_unit: MaskUnit::Token,
            max_sequence_length: 32,
            holdout_fraction: 0.0,
            batch_tokens: 200,
            group_tokens: 1000,
            linger: Duration::from_millis(1),
            feeds: self.path("feeds"),
            durable_end: Arc::default(),
            spools: BTreeMap::new(),
            quarantine: Quarantine::new(self.path("quarantine"), 1 << 30).unwrap(),
            overrides: Overrides::default(),
            arrivals: None,
            keep_text: false,
        }
    }

    /// Knows whole words, and spells others.
    pub(crate) fn word_teacher(&self, name: &str, languages: &[&str]) -> IngestTeacher {
        let mut vocabulary = spelling();
        vocabulary.extend(WORDS.map(str::to_owned));
        self.teacher(name, languages, &vocabulary)
    }

    /// Spells every word.
    pub(crate) fn letter_teacher(&self, name: &str, languages: &[&str]) -> IngestTeacher {
        self.teacher(name, languages, &spelling())
    }

    pub(crate) fn teacher(&self, name: &str, languages: &[&str], vocabulary: &[String]) -> IngestTeacher {
        let folder = self.path(&format!("teachers/{name}"));
        fs::create_dir_all(&folder).unwrap();
        let lines: Vec<&str> = SPECIAL.iter().copied().chain(vocabulary.iter().map(String::as_str)).collect();
        fs::write(folder.join("vocab.txt"), lines.join("\n") + "\n").unwrap();
        let settings = r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "tokenize_chinese_chars": true}"#;
        fs::write(folder.join("tokenizer_config.json"), settings).unwrap();
        IngestTeacher {
            name: name.to_owned(),
            languages: languages.iter().map(|language| (*language).to_owned()).collect(),
            labels: true,
            tokenizer: Arc::new(Tokenizer::load(&folder).unwrap()),
        }
    }

    /// The quarantine's files of a corpus, parsed.
    pub(crate) fn quarantined(&self, corpus: &str) -> Vec<serde_json::Value> {
        let Ok(folder) = fs::read_dir(self.path("quarantine").join(corpus)) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }
}

pub(crate) fn corpus_of(name: &str, language: &str, format: Format, files: Vec<PathBuf>) -> CorpusOptions {
    feed_of(name, language, format, FeedOptions::Files(files))
}

pub(crate) fn feed_of(name: &str, language: &str, format: Format, feed: FeedOptions) -> CorpusOptions {
    let (name, language) = (name.to_owned(), Language::Fixed(language.to_owned()));
    let (rounds, evaluation_only, deduplicate, retry) = (1, false, 0, false);
    CorpusOptions { name, language, feed, format: format.into(), rounds, evaluation_only, deduplicate, retry }
}

/// Letters, digits, punctuation and a few Chinese characters: nothing else can be spelt.
fn spelling() -> Vec<String> {
    let letters = ('a'..='z').chain('0'..='9');
    let mut tokens: Vec<String> = letters.flat_map(|c| [c.to_string(), format!("##{c}")]).collect();
    tokens.extend(PUNCTUATION.iter().chain(&CHINESE).map(|token| (*token).to_owned()));
    tokens
}

pub(crate) fn open(options: &IngestOptions, teachers: &[IngestTeacher]) -> Result<Ingest, IngestError> {
    reopen(options, teachers, &Cursors::new(), SequenceNumber(0))
}

pub(crate) fn reopen(
    options: &IngestOptions,
    teachers: &[IngestTeacher],
    cursors: &Cursors,
    next: SequenceNumber,
) -> Result<Ingest, IngestError> {
    Ingest::open(options.clone(), teachers.to_vec(), cursors, next, &Registry::new())
}

pub(crate) fn groups(mut ingest: Ingest) -> Vec<Group> {
    let mut groups = Vec::new();
    while let Some(group) = ingest.next_group().unwrap() {
        groups.push(group);
    }
    groups
}

/// All entries of a run from the start.
pub(crate) fn entries(options: &IngestOptions, teachers: &[IngestTeacher]) -> Vec<Entry> {
    groups(open(options, teachers).unwrap()).into_iter().flat_map(|group| group.entries).collect()
}

pub(crate) fn records(entries: &[Entry]) -> Vec<&Record> {
    entries
        .iter()
        .filter_map(|entry| match &entry.payload {
            Payload::Record(record) => Some(record),
            _ => None,
        })
        .collect()
}

/// (document, reason) of every skipped document.
pub(crate) fn skips(entries: &[Entry]) -> Vec<(&str, &str)> {
    entries
        .iter()
        .filter_map(|entry| match &entry.payload {
            Payload::Skip(skip) => Some((&*skip.document, &*skip.reason)),
            _ => None,
        })
        .collect()
}

/// A copy's ids before masking, without [CLS] and [SEP].
pub(crate) fn unmasked(copy: &MaskedCopy) -> Vec<u32> {
    let mut ids = copy.token_ids.clone();
    for (position, gold) in copy.masked_positions.iter().zip(&copy.gold_ids) {
        ids[*position as usize] = *gold;
    }
    ids[1..ids.len() - 1].to_vec()
}

/// The text of a record from a text file, by what its identifier and span say.
pub(crate) fn text_of(record: &Record, file: &Path) -> String {
    let offset: usize = record.document.rsplit_once('@').unwrap().1.parse().unwrap();
    let bytes = fs::read(file).unwrap();
    let (first, end) = (record.span.first as usize, record.span.end as usize);
    String::from_utf8(bytes[offset + first..offset + end].to_vec()).unwrap()
}

/// `documents` documents of 1 to 30 lines, with sentences of 3 to 12 known or unknown words.
pub(crate) fn prose(seed: u64, documents: u64) -> String {
    let stream = Philox::new(seed, "prose", &[]);
    let mut drawn = 0;
    let mut below = |bound: u64| {
        drawn += 1;
        stream.below(bound, drawn, 0)
    };
    let mut text = String::new();
    for _ in 0..documents {
        for _ in 0..=below(30) {
            for word in 0..3 + below(10) {
                if word > 0 {
                    text.push_str(if below(8) == 0 { ", " } else { " " });
                }
                text.push_str(WORDS[below(WORDS.len() as u64) as usize]);
                if below(12) == 0 {
                    text.push('s');
                }
            }
            text.push_str(if below(3) == 0 { ". " } else { ".\n" });
        }
        text.push_str("\n\n");
    }
    text
}
