//! `mergedistill log relabel`: a log whose texts were kept, with the labels of a teacher that comes later.
//!
//! Copies are masked as ingestion would have masked them, by the settings in the log's identity, and labelled as in a run. The
//! new log is written block by block; what a block's batches are follows from the block alone, so labels do not depend on where
//! the work was interrupted.

mod labelling;
mod settings;

use super::super::{print_json, print_line};
use super::{Bar, model_failure, open_tokenizer};
use crate::cli::LogRelabelArgs;
use crate::failure::{ExitCode, Failure};
use crate::inputs::SEQUENCE_LENGTH_KEY;
use indicatif::HumanCount;
use ingest::{IngestTeacher, LaterTeacher, MaskUnit};
use labelling::{Relabeller, Tally};
use model::{RolePool, Tokenizer};
use serde::Serialize;
use settings::Settings;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::log::{ExtendedLog, Pass, Progress};
use store::{Entry, Identity, LogReader, SequenceNumber, TeacherEntry};
use teacher::{Runner, RunnerOptions, TailOptions, computed_in};

/// Between two lines about the progress, where there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(30);

/// What was done. Counts are those of this call: a call that goes on with a log counts from `from` on.
#[derive(Debug, Serialize)]
struct Report {
    teacher: String,
    /// As they have to be in a configuration, in this order.
    languages: Vec<String>,
    device: String,
    /// The first entry that was written, and the one after the last.
    from: SequenceNumber,
    to: SequenceNumber,
    #[serde(flatten)]
    tally: Tally,
    seconds: f64,
    tokens_per_second: f64,
    /// Of the new log as a whole.
    segments: u64,
    bytes: u64,
}

/// Writes a log with the copies of one teacher more.
pub(super) fn relabel(args: &LogRelabelArgs) -> Result<(), Failure> {
    let reader = LogReader::open(&args.dir)?;
    let mut settings = Settings::of(reader.identity())?;
    settings.lengthen(args.max_sequence_length)?;
    let languages = languages(args, &reader)?;
    let tokenizer = Arc::new(open_tokenizer(&args.teacher)?);
    let name = name(args)?;
    let entry = TeacherEntry {
        name: name.clone(),
        languages: languages.clone(),
        labels: true,
        vocabulary_size: tokenizer.len() as u32,
        tokenizer_fingerprint: tokenizer.fingerprint().to_owned(),
        weights_fingerprint: model::fingerprint_weights(&args.teacher).map_err(model_failure)?,
    };
    let length = (SEQUENCE_LENGTH_KEY.to_owned(), settings.max_sequence_length.to_string());
    let place = args.place.placement()?;
    let computed_in = computed_in(place.precision);
    let log = ExtendedLog::open(&args.dir, &args.out, entry, [length].into(), args.segment_bytes, computed_in)?;
    let others = others(args, reader.identity(), &settings, &languages)?;
    let labelled: BTreeSet<String> = languages.iter().cloned().collect();
    check_texts(args, &log, &labelled)?;
    let pool = RolePool::alone("relabel", args.threads.unwrap_or_else(crate::threads::cores)).map_err(model_failure)?;
    let tail = TailOptions::of(reader.identity().tail_samples(), settings.masking.seed);
    let on = place.on_device();
    let options = RunnerOptions { name: name.clone(), index: log.teacher(), top_k: log.top_k(), tail, on };
    let runner = pool.install(|| Runner::load(&args.teacher, &tokenizer, options))?;
    let positions = runner.configuration().max_position_embeddings;
    let limit = settings.limit(&name, positions);
    let teacher = ingest_teacher(&name, tokenizer);
    let others = others.iter().map(|(index, other)| (*index, other));
    let later = LaterTeacher::new(log.teacher(), &teacher, others, settings.masking, limit);
    let mut relabeller = Relabeller::new(later, runner, labelled, args.batch_tokens, args.skip_without_text);
    let (from, to) = log.range();
    let mut watch = Watch::new(from, to);
    let start = Instant::now();
    let (segments, bytes) = log.write(|entries: &mut [Entry]| {
        pool.install(|| relabeller.extend(entries))?;
        watch.show(entries, &relabeller.tally);
        Ok::<_, Failure>(())
    })?;
    drop(watch);
    let (tally, seconds) = (relabeller.tally, start.elapsed().as_secs_f64());
    let tokens_per_second = tally.tokens as f64 / seconds.max(f64::EPSILON);
    let device = args.place.device.to_string();
    let report =
        Report { teacher: name, languages, device, from, to, tally, seconds, tokens_per_second, segments, bytes };
    report.print(args)?;
    if tally.too_many_tokens > 0 && limit < positions && !args.json {
        let advice = "longer copies are possible with --max-sequence-length, for a student and runs that take them";
        print_line(&format!("The teacher has {positions} positions and was given {limit}: {advice}"))?;
    }
    Ok(())
}

/// The teacher's name: given, or the folder's.
fn name(args: &LogRelabelArgs) -> Result<String, Failure> {
    let of_folder = || args.teacher.canonicalize().ok()?.file_name()?.to_str().map(str::to_owned);
    args.name.clone().or_else(of_folder).filter(|name| !name.is_empty()).ok_or_else(|| {
        Failure::new(
            ExitCode::Usage,
            "the teacher's folder has no name that could be the teacher's; give one with --name",
        )
    })
}

/// The languages that the teacher gets copies of: those that are given, or the only one in the log.
fn languages(args: &LogRelabelArgs, reader: &LogReader) -> Result<Vec<String>, Failure> {
    let known = reader.languages(reader.durable());
    let list = || known.iter().map(|language| format!("`{language}`")).collect::<Vec<_>>().join(", ");
    if args.languages.is_empty() {
        let mut known_languages = known.iter();
        if let (Some(only), None) = (known_languages.next(), known_languages.next()) {
            return Ok(vec![only.to_string()]);
        }
        let message = format!("say with --languages what the teacher labels; the log has {}", list());
        return Err(Failure::new(ExitCode::Usage, message));
    }
    if !args.languages.iter().any(|language| known.contains(language.as_str())) {
        let message = format!("the log has no record of these languages, only of {}; correct --languages", list());
        return Err(Failure::new(ExitCode::Usage, message));
    }
    for language in args.languages.iter().filter(|language| !known.contains(language.as_str())) {
        tracing::warn!(language, "the log has no record of this language");
    }
    let mut seen = BTreeSet::new();
    Ok(args.languages.iter().filter(|language| seen.insert(*language)).cloned().collect())
}

/// The tokenizers of the log's teachers, by index. They are needed where the copies of an example mask the same words.
fn others(
    args: &LogRelabelArgs,
    identity: &Identity,
    settings: &Settings,
    languages: &[String],
) -> Result<Vec<(u16, IngestTeacher)>, Failure> {
    if settings.masking.unit != MaskUnit::SharedWord {
        return Ok(Vec::new());
    }
    let folders = args.tokenizers.iter().map(|folder| open_tokenizer(folder).map(Arc::new));
    let tokenizers = folders.collect::<Result<Vec<Arc<Tokenizer>>, _>>()?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (index, teacher) in (0..).zip(&identity.teachers) {
        if !teacher.languages.iter().any(|language| languages.contains(language)) {
            continue;
        }
        match tokenizers.iter().find(|tokenizer| tokenizer.fingerprint() == teacher.tokenizer_fingerprint) {
            Some(tokenizer) => found.push((index, ingest_teacher(&teacher.name, Arc::clone(tokenizer)))),
            None => missing.push(format!("`{}`", teacher.name)),
        }
    }
    if missing.is_empty() {
        return Ok(found);
    }
    let message = format!(
        "the log was made with masking.align_masks: the new copies mask the words that the others mask, and to find them takes the \
         tokenizers of {}; give their folders with --tokenizer",
        missing.join(", ")
    );
    Err(Failure::new(ExitCode::Usage, message))
}

fn ingest_teacher(name: &str, tokenizer: Arc<Tokenizer>) -> IngestTeacher {
    IngestTeacher { name: name.to_owned(), languages: Vec::new(), labels: true, tokenizer }
}

/// Refuses records without text, unless they are to be left as they are.
fn check_texts(args: &LogRelabelArgs, log: &ExtendedLog, languages: &BTreeSet<String>) -> Result<(), Failure> {
    if args.skip_without_text {
        return Ok(());
    }
    let bar = Bar::new("texts");
    let watch = |progress| bar.show(progress);
    let texts = log.texts(languages, &Pass { threads: args.threads, watch: &watch, ..Pass::default() })?;
    drop(bar);
    if texts.without == 0 {
        return Ok(());
    }
    let message = format!(
        "{} of {} records have no text, because they were labelled without `[store] keep_text = true`: label them in a run, or give \
         --skip-without-text to leave them without a copy of this teacher",
        texts.without,
        texts.with + texts.without
    );
    Err(Failure::new(ExitCode::DataError, message))
}

/// Shows how far the work is, on standard error.
struct Watch {
    bar: Bar,
    progress: Progress,
    /// When a line was written last; `None`: there is a terminal, and so a bar.
    told: Option<Instant>,
    start: Instant,
}

impl Watch {
    fn new(from: SequenceNumber, to: SequenceNumber) -> Self {
        let start = Instant::now();
        let told = (!std::io::stderr().is_terminal()).then_some(start);
        let progress = Progress { entries: 0, total: to.0.saturating_sub(from.0) };
        Self { bar: Bar::new("relabel"), progress, told, start }
    }

    fn show(&mut self, entries: &[Entry], tally: &Tally) {
        self.progress.entries += entries.len() as u64;
        self.bar.show(self.progress);
        if self.told.is_some_and(|told| told.elapsed() >= PROGRESS_INTERVAL) {
            self.told = Some(Instant::now());
            let rate = tally.tokens as f64 / self.start.elapsed().as_secs_f64();
            let Progress { entries, total } = self.progress;
            eprintln!("mergedistill: {entries} of {total} entries, {rate:.0} tokens/s");
        }
    }
}

impl Report {
    fn print(&self, args: &LogRelabelArgs) -> Result<(), Failure> {
        if args.json {
            return print_json(self);
        }
        let Self { teacher, from, to, tally, seconds, tokens_per_second, segments, bytes, .. } = self;
        let Tally { copies, tokens, masked_positions, without_text, too_many_tokens, nothing_to_mask } = tally;
        print_line(&format!(
            "labelled {copies} records of entries {from} to {to} with teacher `{teacher}`: {} tokens, {} masked positions, in \
             {seconds:.1} s ({} tokens/s)",
            HumanCount(*tokens),
            HumanCount(*masked_positions),
            HumanCount(*tokens_per_second as u64)
        ))?;
        for (count, why) in [
            (without_text, "have no text"),
            (too_many_tokens, "would be longer than an example may be, and no copy is truncated"),
            (nothing_to_mask, "have nothing that may be masked"),
        ] {
            if *count > 0 {
                print_line(&format!("no copy  of {count} records, which {why}"))?;
            }
        }
        print_line(&format!("wrote    {bytes} bytes in {segments} segments of {}", args.out.display()))?;
        print_line(&format!(
            "A run that uses this log needs the teacher behind those of the log: name = {teacher:?}, languages = {:?}",
            self.languages
        ))
    }
}
