//! A log whose labels were made by the embedded teachers.

use crate::harness::{mergedistill, text};
use model::Tokenizer;
use prometheus::Registry;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, OnceLock};
use store::{
    Entry, Identity, LogOptions, LogWriter, MaskedCopy, Payload, Precision, Record, SequenceNumber, Skip, SourceCursor,
    Span, TeacherEntry,
};
use teacher::{Runner, RunnerOptions};
use tempfile::TempDir;

pub(crate) const ENTRIES: u64 = 40;
pub(crate) const TOP_K: usize = 4;
const SENTENCES: [&str; 4] = [
    "The menu bar lists every command of the program.",
    "Choose a folder for the new document, and then press the button to save it there.",
    "Text is moved with the arrow keys.",
    "A table has rows and columns, and each cell may hold a formula.",
];

/// A log in a folder of its own. Teachers: `en` and `both`, which label, and `plain`, which does not. Records of `en` have copies
/// of all three, those of `de` of `both` alone; every eighth entry is a skip, every third record has a text.
pub(crate) struct Scene {
    dir: TempDir,
}

/// Folder of an embedded teacher.
pub(crate) fn folder(teacher: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/teachers").join(teacher)
}

impl Scene {
    /// The log as the teachers labelled it.
    pub(crate) fn new(precision: Precision) -> Self {
        Self::with(precision, &identity(), entries().to_vec())
    }

    /// A log of these entries.
    pub(crate) fn with(precision: Precision, identity: &Identity, entries: Vec<Entry>) -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        let mut log = scene.writer(precision, identity);
        entries.chunks(10).for_each(|block| log.append(block).unwrap());
        log.seal().unwrap();
        scene
    }

    /// An empty log that is being written.
    pub(crate) fn live() -> (Self, LogWriter) {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        let log = scene.writer(Precision::Exact, &identity());
        (scene, log)
    }

    fn writer(&self, precision: Precision, identity: &Identity) -> LogWriter {
        let options =
            LogOptions { top_k: TOP_K, precision, keep_text: true, computed_in: true, ..LogOptions::default() };
        LogWriter::open(&self.log(), identity, &options, &Registry::new()).unwrap().0
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("log")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `mergedistill log COMMAND LOG …`
    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> Output {
        mergedistill(&["log", command]).arg(self.log()).args(arguments).output().unwrap()
    }

    /// The lines of `log dump --json`.
    pub(crate) fn dump(&self) -> Vec<Value> {
        let output = self.run("dump", &["--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Exit code, and words in the message.
#[track_caller]
pub(crate) fn expect(output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}\n{}", text(&output.stdout));
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
}

pub(crate) fn identity() -> Identity {
    let entry = |name: &str, teacher: &str, languages: &[&str], labels: bool| {
        let tokenizer = Tokenizer::load(&folder(teacher)).unwrap();
        TeacherEntry {
            name: name.to_owned(),
            languages: languages.iter().map(|language| (*language).to_owned()).collect(),
            labels,
            vocabulary_size: tokenizer.len() as u32,
            tokenizer_fingerprint: tokenizer.fingerprint().to_owned(),
            weights_fingerprint: if labels {
                model::fingerprint_weights(&folder(teacher)).unwrap()
            } else {
                String::new()
            },
        }
    };
    let teachers = vec![
        entry("en", "demo-en", &["en"], true),
        entry("both", "demo-en-de", &["en", "de"], true),
        entry("plain", "demo-en", &["en"], false),
    ];
    Identity { teachers, ..Identity::default() }
}

/// The entries of the log, labelled once for all tests.
pub(crate) fn entries() -> &'static [Entry] {
    static ENTRIES_LABELLED: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES_LABELLED.get_or_init(|| {
        let mut entries: Vec<Entry> = (0..ENTRIES).map(entry).collect();
        for (index, teacher) in [(0, "demo-en"), (1, "demo-en-de")] {
            label(&mut entries, index, &folder(teacher));
        }
        entries
    })
}

fn label(entries: &mut [Entry], index: u16, folder: &Path) {
    let tokenizer = Tokenizer::load(folder).unwrap();
    let options = RunnerOptions { name: "test".to_owned(), index, top_k: TOP_K, tail: None, on: None };
    let runner = Runner::load(folder, &tokenizer, options).unwrap();
    let mut copies: Vec<&mut MaskedCopy> =
        entries.iter_mut().flat_map(copies_of).filter(|copy| copy.teacher == index).collect();
    let labels = runner.label(&copies.iter().map(|copy| &**copy).collect::<Vec<_>>()).unwrap();
    copies.iter_mut().zip(labels).for_each(|(copy, label)| copy.label = Some(label));
}

/// The copies of an entry, if it is a record.
pub(crate) fn copies_of(entry: &mut Entry) -> &mut [MaskedCopy] {
    match &mut entry.payload {
        Payload::Record(record) => &mut record.copies,
        Payload::Skip(_) | Payload::End => &mut [],
    }
}

fn entry(number: u64) -> Entry {
    let language: Arc<str> = if number.is_multiple_of(5) { "de" } else { "en" }.into();
    let document: Arc<str> = format!("{language}.txt@{}", number / 4).into();
    let cursor = SourceCursor::start(Arc::clone(&language), Arc::clone(&language), 1000);
    let teachers: &[(u16, &str)] = match &*language {
        "de" => &[(1, "demo-en-de")],
        _ => &[(0, "demo-en"), (1, "demo-en-de"), (2, "demo-en")],
    };
    let payload = if number % 8 == 7 {
        Payload::Skip(Skip { document, reason: "too short".into() })
    } else {
        Payload::Record(Record {
            source: Arc::clone(&language),
            document,
            span: Span { first: number * 10, end: number * 10 + 7 },
            language,
            round: number as u32 / 20,
            held_out: number % 9 == 2,
            copies: teachers.iter().map(|(index, teacher)| copy(number, *index, teacher)).collect(),
            text: number.is_multiple_of(3).then(|| "Häfen.".into()),
        })
    };
    Entry { sequence: SequenceNumber(number), cursor, payload }
}

fn copy(number: u64, index: u16, teacher: &str) -> MaskedCopy {
    let tokenizer = Tokenizer::load(&folder(teacher)).unwrap();
    let special = tokenizer.special();
    let words = tokenizer.encode(SENTENCES[number as usize % SENTENCES.len()]).unwrap().ids;
    let room = 4 + number as usize % (words.len() - 3);
    let mut token_ids: Vec<u32> =
        [special.cls].into_iter().chain(words[..room].iter().copied()).chain([special.sep]).collect();
    let masked_positions = vec![1, 2 + number as u32 % 2];
    let gold_ids =
        masked_positions.iter().map(|at| std::mem::replace(&mut token_ids[*at as usize], special.mask)).collect();
    MaskedCopy { teacher: index, token_ids, masked_positions, gold_ids, label: None }
}
