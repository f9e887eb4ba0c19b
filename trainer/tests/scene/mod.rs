//! A small log of two teachers and two languages, and trainers on it.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use crossbeam::channel::{Receiver, unbounded};
use model::Tokenizer;
use prometheus::Registry;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::stage::StageControl;
use store::{
    Entry, Identity, Label, LogOptions, LogReader, LogWriter, MaskedCopy, Payload, Record, SequenceNumber,
    SourceCursor, Span, TeacherEntry,
};
use tempfile::TempDir;
use trainer::{
    EvaluationOptions, Event, Input, Inputs, Outcome, Request, StudentOptions, TrainOptions, Trainer, TrainerError,
    TrainerOptions, TrainerTeacher, Turns,
};

pub(crate) const TOP_K: usize = 3;
/// The first ordinary token.
pub(crate) const FIRST: u32 = 5;
const WORDS: u32 = 24;
/// log-sum-exp − gold logit of every label.
pub(crate) const TEACHER_LOSS: f32 = 0.75;

/// A folder with two teachers' tokenizers and a log.
pub(crate) struct Scene {
    pub(crate) folder: TempDir,
    pub(crate) teachers: Vec<TrainerTeacher>,
}

/// One record of the log: what the sources are called decides about language and set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Example {
    pub(crate) source: &'static str,
    pub(crate) held_out: bool,
    pub(crate) poisoned: bool,
}

pub(crate) const fn example(source: &'static str) -> Example {
    Example { source, held_out: false, poisoned: false }
}

/// `count` examples: two thirds English (two teachers), one third German (one); every eighth is held out.
pub(crate) fn mixture(count: usize) -> Vec<Example> {
    let source = |at| if at % 3 == 2 { "de" } else { "en" };
    (0..count).map(|at| Example { held_out: at % 8 == 3, ..example(source(at)) }).collect()
}

impl Scene {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The second teacher knows other words too, and in another order.
        let orders: [Vec<u32>; 2] = [(0..WORDS).collect(), (6..WORDS + 6).rev().collect()];
        let languages = [vec!["en".to_owned()], vec!["en".to_owned(), "de".to_owned()]];
        let teachers = ["first", "second"].into_iter().zip(orders).zip(languages).map(|((name, order), languages)| {
            let dir = folder.path().join(name);
            fs::create_dir(&dir).unwrap();
            let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
            let words: Vec<String> = special.into_iter().chain(order.iter().map(|word| format!("w{word}"))).collect();
            fs::write(dir.join("vocab.txt"), words.join("\n")).unwrap();
            fs::write(dir.join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
            let tokenizer = Arc::new(Tokenizer::load(&dir).unwrap());
            TrainerTeacher { name: name.to_owned(), languages, labels: true, folder: Some(dir), tokenizer, shape: None }
        });
        Self { teachers: teachers.collect(), folder }
    }

    /// A teacher that the log does not know, with one token that no other has.
    pub(crate) fn third_teacher(&self) -> TrainerTeacher {
        let third = self.path("third");
        fs::create_dir(&third).unwrap();
        fs::write(third.join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nneu\nw1").unwrap();
        fs::write(third.join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&third).unwrap());
        TrainerTeacher { name: "third".to_owned(), tokenizer, ..self.teachers[0].clone() }
    }

    /// A scene whose log holds `examples` and is closed.
    pub(crate) fn with_log(examples: &[Example]) -> Self {
        let scene = Self::new();
        write_log(scene.writer(), examples);
        scene
    }

    pub(crate) fn writer(&self) -> LogWriter {
        self.writer_of(LogOptions::default().segment_bytes)
    }

    /// A writer of segments of this size.
    pub(crate) fn writer_of(&self, segment_bytes: u64) -> LogWriter {
        self.writer_under(BTreeMap::new(), segment_bytes)
    }

    /// A writer of a log of these settings.
    pub(crate) fn writer_under(&self, settings: BTreeMap<String, String>, segment_bytes: u64) -> LogWriter {
        let fingerprint = |teacher: &TrainerTeacher| model::fingerprint_weights(teacher.folder.as_deref()?).ok();
        let teachers = self.teachers.iter().map(|teacher| TeacherEntry {
            name: teacher.name.clone(),
            languages: teacher.languages.clone(),
            labels: teacher.labels,
            vocabulary_size: teacher.tokenizer.len() as u32,
            tokenizer_fingerprint: teacher.tokenizer.fingerprint().to_owned(),
            weights_fingerprint: fingerprint(teacher).unwrap_or_else(|| "none".to_owned()),
        });
        let identity = Identity { teachers: teachers.collect(), settings };
        let options = LogOptions { top_k: TOP_K, segment_bytes, ..LogOptions::default() };
        LogWriter::open(&self.log(), &identity, &options, &Registry::new()).unwrap().0
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Options of a small run with its state in `state`.
    pub(crate) fn options(&self, state: &str) -> TrainerOptions {
        TrainerOptions {
            seed: 7,
            state_dir: self.path(state),
            student: StudentOptions {
                layers: 1,
                hidden_size: 8,
                heads: 2,
                intermediate_size: 16,
                embedding_size: 8,
                max_sequence_length: 12,
                dropout: 0.1,
                ..StudentOptions::default()
            },
            train: TrainOptions {
                steps: Some(9),
                batch_examples: 5,
                micro_batch_tokens: 24,
                learning_rate: 1e-2,
                warmup_steps: 2,
                shuffle_examples: 8,
                checkpoint_every_steps: 3,
                keep_checkpoints: 2,
                ..TrainOptions::default()
            },
            evaluation: EvaluationOptions { every_steps: 2, max_examples: 6 },
            tensorboard: true,
            alpha: 0.7,
            teachers: self.teachers.clone(),
            inputs: Inputs::default(),
            on: None,
            pool: None,
            turns: Turns::default(),
            trunk: None,
        }
    }

    pub(crate) fn reader(&self) -> LogReader {
        LogReader::open(&self.log()).unwrap()
    }

    pub(crate) fn open(&self, options: &TrainerOptions) -> Result<Trainer, TrainerError> {
        Trainer::open(options.clone(), self.reader(), Arc::default(), &Registry::new())
    }

    /// Opens a trainer and runs it to its end.
    pub(crate) fn run(&self, options: &TrainerOptions, events: impl FnMut(Event)) -> Result<Outcome, TrainerError> {
        run(&mut self.open(options)?, events)
    }
}

/// Runs a trainer that nobody controls.
pub(crate) fn run(trainer: &mut Trainer, mut events: impl FnMut(Event)) -> Result<Outcome, TrainerError> {
    trainer.run(&StageControl::default(), &no_requests(), &mut events)
}

pub(crate) fn no_requests() -> Receiver<Request> {
    unbounded().1
}

/// The sources of [`mixture`], as inputs that are still being read.
pub(crate) fn inputs() -> Vec<Input> {
    let input = |name: &str| Input { source: name.to_owned(), language: name.to_owned(), finite: true };
    ["en", "de"].map(input).to_vec()
}

/// Writes `examples`, and closes the log.
pub(crate) fn write_log(mut writer: LogWriter, examples: &[Example]) {
    append(&mut writer, examples, 8);
    append_ends(&mut writer);
    writer.seal().unwrap();
}

/// Appends examples in blocks of `block`, durably.
pub(crate) fn append(writer: &mut LogWriter, examples: &[Example], block: usize) {
    for examples in examples.chunks(block) {
        let entries: Vec<Entry> =
            examples.iter().zip(writer.next().0..).map(|(example, sequence)| entry(*example, sequence)).collect();
        writer.append(&entries).unwrap();
    }
    writer.sync().unwrap();
}

/// The ends of all sources.
pub(crate) fn append_ends(writer: &mut LogWriter) {
    let cursors: Vec<SourceCursor> = writer.cursors().values().cloned().collect();
    let ends: Vec<Entry> = cursors
        .into_iter()
        .zip(writer.next().0..)
        .map(|(cursor, sequence)| Entry {
            sequence: SequenceNumber(sequence),
            cursor: SourceCursor { ended: true, ..cursor },
            payload: Payload::End,
        })
        .collect();
    writer.append(&ends).unwrap();
    writer.sync().unwrap();
}

/// Entry `sequence`, of this example's language and set.
pub(crate) fn entry(example: Example, sequence: u64) -> Entry {
    let language = example.source.rsplit('/').next().unwrap();
    let teachers: &[u16] = if language == "en" { &[0, 1] } else { &[1] };
    let record = Record {
        source: example.source.into(),
        document: format!("file@{sequence}").into(),
        span: Span { first: 0, end: 40 },
        language: language.into(),
        round: 0,
        held_out: example.held_out || example.source.starts_with("evaluate/"),
        copies: teachers.iter().map(|teacher| copy(*teacher, sequence, example.poisoned)).collect(),
        text: None,
    };
    let mut cursor =
        SourceCursor::start(example.source.into(), language.into(), if language == "en" { 900 } else { 400 });
    cursor.document_offset_bytes = sequence;
    Entry { sequence: SequenceNumber(sequence), cursor, payload: Payload::Record(record) }
}

/// Words that count up, two of them masked; so there is something to learn.
fn copy(teacher: u16, sequence: u64, poisoned: bool) -> MaskedCopy {
    let length = 6 + ((sequence + u64::from(teacher)) % 5) as u32;
    let word = |position: u32| FIRST + (sequence as u32 * 3 + position) % WORDS;
    let mut token_ids: Vec<u32> = [2].into_iter().chain((1..length - 1).map(word)).chain([3]).collect();
    let masked_positions = vec![1, 3];
    let gold_ids: Vec<u32> = masked_positions.iter().map(|position| word(*position)).collect();
    for position in &masked_positions {
        token_ids[*position as usize] = 4;
    }
    let top_ids = gold_ids.iter().flat_map(|gold| [*gold, FIRST, 1]).collect();
    let gold_logit = if poisoned { f32::NAN } else { 3.0 };
    let label = Label {
        top_k: TOP_K,
        top_ids,
        top_logits: [gold_logit, 2.0, 1.0].repeat(2),
        log_sum_exp: vec![gold_logit + TEACHER_LOSS; 2],
        gold_logits: vec![gold_logit; 2],
        ..Label::default()
    };
    MaskedCopy { teacher, token_ids, masked_positions, gold_ids, label: Some(label) }
}

/// Bytes of weights and optimiser in a checkpoint.
pub(crate) fn checkpoint(state: &Path, step: u64) -> [Vec<u8>; 2] {
    let folder = state.join(format!("checkpoints/step-{step}"));
    ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(folder.join(name)).unwrap())
}

/// `metrics.jsonl`, without what a clock says.
pub(crate) fn metrics(state: &Path) -> Vec<Value> {
    let text = fs::read_to_string(state.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .map(|mut line: Value| {
            line.as_object_mut().unwrap().remove("seconds");
            line
        })
        .collect()
}

/// Copies a state folder as a crash would leave it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Makes a weight of a checkpoint no number.
pub(crate) fn poison(checkpoint: &Path) {
    let (model, manifest) = (checkpoint.join("model.safetensors"), checkpoint.join("manifest.json"));
    let hash = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut bytes = fs::read(&model).unwrap();
    let before = hash(&bytes);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&model, &bytes).unwrap();
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains(&before));
    fs::write(&manifest, text.replace(&before, &hash(&bytes))).unwrap();
}
