//! `mergedistill bench ingest`: what the ingest stage reads, cuts, tokenises and masks per second.
//!
//! A pass opens the stage as a run does, on a list of files, with one copy per teacher, and takes the groups off its queue as they come. The clock
//! runs from the start of the stage's thread to the last group: what opening costs (a run counts a new corpus once) is apart.

use super::{count, median, memory, peak_rss_mib};
use crate::cli::BenchIngestArgs;
use crate::commands::temporary_folder::TemporaryFolder;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use crossbeam::channel::{Receiver, bounded};
use ingest::quarantine::Quarantine;
use ingest::{CorpusOptions, FeedOptions, Format, FormatOptions, Ingest, IngestOptions, IngestTeacher, Language};
use ingest::{MaskUnit, Overrides};
use model::Tokenizer;
use prometheus::Registry;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};
use store::stage::StageControl;
use store::{Group, Payload, SequenceNumber, SourceCursor};

/// All texts are one corpus, of a language that all teachers have.
const LANGUAGE: &str = "text";
const MASKING_PROBABILITY: f64 = 0.15;

/// What is measured.
#[derive(Debug, Serialize)]
struct IngestFigures {
    threads: usize,
    /// Names of the folders.
    teachers: Vec<String>,
    /// Of the text that the groups cover, of one thread.
    bytes: u64,
    documents: u64,
    examples: u64,
    /// Of all copies, `[CLS]` and `[SEP]` included.
    tokens: u64,
    masked_positions: u64,
    /// Passes that were measured.
    repeat: usize,
    /// Median of a pass.
    seconds: f64,
    /// Median of what it takes to open the stage, which counts the characters of the text.
    open_seconds: f64,
    /// Millions of bytes of text a second, of all threads together; every byte counts once, however many teachers there are.
    mb_per_second: f64,
    /// Tokens of all copies a second, of all threads together.
    tokens_per_second: f64,
    peak_rss_mib: Option<u64>,
}

/// What one stage came to.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    open_seconds: f64,
    seconds: f64,
    bytes: u64,
    documents: u64,
    examples: u64,
    tokens: u64,
    masked_positions: u64,
}

/// Reads a text for some teachers, as often as asked, and prints the figures.
pub(super) fn ingest(args: &BenchIngestArgs) -> Result<(), Failure> {
    let figures = measure(args)?;
    if args.json {
        return print_json(&figures);
    }
    let IngestFigures { bytes, documents, examples, tokens, masked_positions, .. } = figures;
    print_line(&format!(
        "{bytes} bytes of {documents} documents: {examples} examples for {}, {tokens} tokens, {masked_positions} of them masked",
        count(figures.teachers.len(), "teacher")
    ))?;
    print_line(&format!(
        "{:.2} MB/s, {:.0} tokens/s with {}: {:.4} s a pass, the median of {}; {:.4} s to open",
        figures.mb_per_second,
        figures.tokens_per_second,
        count(args.threads, "thread"),
        figures.seconds,
        args.repeat,
        figures.open_seconds
    ))?;
    print_line(&format!("peak memory {}", memory(figures.peak_rss_mib)))
}

fn measure(args: &BenchIngestArgs) -> Result<IngestFigures, Failure> {
    let teachers = open_teachers(&args.teachers)?;
    let folder = TemporaryFolder::create(&std::env::temp_dir())?;
    let mut passes = Vec::new();
    for _ in 0..=args.repeat {
        passes.push(pass(args, &teachers, folder.path())?);
    }
    let measured = &passes[1..];
    let of = |value: fn(&Pass) -> f64| median(&measured.iter().map(value).collect::<Vec<f64>>());
    let (last, seconds) = (passes[args.repeat], of(|pass| pass.seconds));
    let per_second = |amount: u64| amount as f64 * args.threads as f64 / seconds;
    Ok(IngestFigures {
        threads: args.threads,
        teachers: teachers.into_iter().map(|teacher| teacher.name).collect(),
        bytes: last.bytes,
        documents: last.documents,
        examples: last.examples,
        tokens: last.tokens,
        masked_positions: last.masked_positions,
        repeat: args.repeat,
        seconds,
        open_seconds: of(|pass| pass.open_seconds),
        mb_per_second: per_second(last.bytes) / 1e6,
        tokens_per_second: per_second(last.tokens),
        peak_rss_mib: peak_rss_mib(),
    })
}

/// The tokenizers of the teachers, which are named after their folders.
fn open_teachers(folders: &[PathBuf]) -> Result<Vec<IngestTeacher>, Failure> {
    let mut names = BTreeSet::new();
    let open = |path: &PathBuf| {
        if !path.is_dir() {
            let message = format!("there is no folder {}; correct --teacher", path.display());
            return Err(Failure::new(ExitCode::NoInput, message));
        }
        let tokenizer = Tokenizer::load(path).map_err(|error| Failure::new(ExitCode::of_model(&error), error))?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let name = if names.insert(name.clone()) { name } else { path.display().to_string() };
        Ok(IngestTeacher { name, languages: vec![LANGUAGE.to_owned()], labels: true, tokenizer: Arc::new(tokenizer) })
    };
    folders.iter().map(open).collect()
}

/// One pass of each thread; the seconds are those of the slowest.
fn pass(args: &BenchIngestArgs, teachers: &[IngestTeacher], folder: &Path) -> Result<Pass, Failure> {
    let stages: Result<Vec<(f64, Ingest)>, Failure> = (0..args.threads)
        .map(|number| {
            let start = Instant::now();
            let stage = open(args, teachers, &folder.join(number.to_string()))?;
            Ok((start.elapsed().as_secs_f64(), stage))
        })
        .collect();
    let passes: Result<Vec<Pass>, Failure> = thread::scope(|scope| {
        let started = stages?.into_iter().map(|(open_seconds, stage)| {
            scope.spawn(move || Ok(Pass { open_seconds, ..drain(stage, args.limit_tokens)? }))
        });
        let threads: Vec<_> = started.collect();
        let panicked = |_| Failure::new(ExitCode::Software, "a thread of the bench panicked; this is a bug");
        threads.into_iter().map(|thread| thread.join().map_err(panicked)?).collect()
    });
    let slowest = passes?.into_iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap_or_default();
    if slowest.examples == 0 {
        return Err(Failure::new(ExitCode::DataError, "there is no text in the files; give others with --text"));
    }
    Ok(slowest)
}

/// The stage as a run opens it, with a folder for what it keeps.
fn open(args: &BenchIngestArgs, teachers: &[IngestTeacher], folder: &Path) -> Result<Ingest, Failure> {
    let failed = |error: std::io::Error| Failure::io("create", folder, &error);
    let feeds = folder.join("feeds");
    fs::create_dir_all(&feeds).map_err(failed)?;
    let corpus = CorpusOptions {
        name: "text".to_owned(),
        language: Language::Fixed(LANGUAGE.to_owned()),
        feed: FeedOptions::Files(args.text.clone()),
        format: FormatOptions::from(Format::Text),
        rounds: 1,
        evaluation_only: false,
        deduplicate: 0,
        retry: false,
    };
    let options = IngestOptions {
        seed: args.seed,
        alpha: 0.7,
        corpora: vec![corpus],
        mask_probability: MASKING_PROBABILITY,
        mask_unit: MaskUnit::Token,
        max_sequence_length: args.max_length,
        holdout_fraction: 0.0,
        batch_tokens: args.batch_tokens,
        group_tokens: args.batch_tokens * teachers.len(),
        linger: Duration::from_secs(1),
        feeds,
        durable_end: Arc::default(),
        spools: BTreeMap::new(),
        quarantine: Quarantine::new(folder.join("quarantine"), u64::MAX)?,
        overrides: Overrides::default(),
        keep_text: false,
        arrivals: None,
    };
    Ok(Ingest::open(options, teachers.to_vec(), &BTreeMap::new(), SequenceNumber(0), &Registry::new())?)
}

/// Runs the stage on this thread, while another one takes the groups.
fn drain(stage: Ingest, limit_tokens: Option<usize>) -> Result<Pass, Failure> {
    let control = StageControl::default();
    let (sender, groups) = bounded::<Group>(1);
    thread::scope(|scope| {
        let switch = control.clone();
        let start = Instant::now();
        let taking = scope.spawn(move || take(&groups, limit_tokens, &switch, start));
        stage.run(&control, &|_| true, sender)?;
        let panicked = |_| Failure::new(ExitCode::Software, "a thread of the bench panicked; this is a bug");
        taking.join().map_err(panicked)
    })
}

/// Counts what is in the groups; stops the stage once they have enough tokens.
fn take(groups: &Receiver<Group>, limit_tokens: Option<usize>, switch: &StageControl, start: Instant) -> Pass {
    let mut pass = Pass::default();
    for group in groups {
        for entry in &group.entries {
            pass.documents += u64::from(entry.cursor.next_byte == SourceCursor::DOCUMENT_DONE && !entry.cursor.ended);
            let Payload::Record(record) = &entry.payload else { continue };
            pass.examples += 1;
            pass.bytes += record.span.end - record.span.first;
            pass.tokens += record.copies.iter().map(|copy| copy.token_ids.len() as u64).sum::<u64>();
            pass.masked_positions += record.copies.iter().map(|copy| copy.masked_positions.len() as u64).sum::<u64>();
        }
        pass.seconds = start.elapsed().as_secs_f64();
        if limit_tokens.is_some_and(|limit| pass.tokens >= limit as u64) {
            switch.stop();
            break;
        }
    }
    pass
}
