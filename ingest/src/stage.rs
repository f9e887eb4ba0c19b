//! The stage: corpora in, groups out.

use crate::group::GroupBuilder;
use crate::mask::{ExampleKey, Masking};
use crate::metrics::IngestMetrics;
use crate::quarantine::{Note, Quarantine};
use crate::reader::{Reason, Rejection};
use crate::sampling::{Sampler, Supply};
use crate::status::{CorpusStatus, IngestStatus, add_one};
use crate::stream::{CorpusStream, Step};
use crate::teacher::TeacherTokenizer;
use crate::{CorpusOptions, IngestError, IngestTeacher};
use crossbeam::channel::{SendTimeoutError, Sender};
use prometheus::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use store::stage::StageControl;
use store::{Entry, Group, Payload, Record, SequenceNumber, Skip, SourceCursor};

/// How often a stage that cannot hand a group on looks whether it is to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Below this there is no room for a context.
const SHORTEST_SEQUENCE: usize = 16;

/// Settings of ingestion.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Seed of the draws and the masks.
    pub seed: u64,
    /// α: a language's share is ∝ n_k^α.
    pub alpha: f64,
    /// The corpora, in the order of the configuration.
    pub corpora: Vec<CorpusOptions>,
    /// Probability with which each token is masked.
    pub mask_probability: f64,
    /// Longest copy, [CLS] and [SEP] included; at least 16.
    pub max_sequence_length: usize,
    /// Fraction of the documents that are held out.
    pub holdout_fraction: f64,
    /// Tokens in a labelling batch, at most.
    pub batch_tokens: usize,
    /// A group closes once its copies hold this many tokens.
    pub group_tokens: usize,
    /// Folder for what is known about unusable documents; made when the first one comes.
    pub quarantine: PathBuf,
}

/// The ingest stage.
pub struct Ingest {
    streams: Vec<CorpusStream>,
    /// Name of each language with corpora, and its teachers.
    teachers: BTreeMap<String, Arc<[TeacherTokenizer]>>,
    /// By index into the teacher table: whether it labels.
    labels: Vec<bool>,
    next: SequenceNumber,
    sampler: Sampler,
    masking: Masking,
    quarantine: Quarantine,
    limit_tokens: usize,
    group_tokens: usize,
    batch_tokens: usize,
    metrics: IngestMetrics,
    status: Arc<IngestStatus>,
}

impl Ingest {
    /// Opens every corpus at its cursor (or at its start; its characters are then counted, which reads it
    /// once). `next` is the sequence number of the first entry to make; `teachers` is the teacher table.
    ///
    /// # Errors
    /// When an option is out of its range, a language has no teacher, a file cannot be read, or a corpus is
    /// not what it was when the log was written.
    pub fn open(
        options: IngestOptions,
        teachers: Vec<IngestTeacher>,
        cursors: &BTreeMap<Arc<str>, SourceCursor>,
        next: SequenceNumber,
        registry: &Registry,
    ) -> Result<Self, IngestError> {
        validate(&options, &teachers)?;
        let metrics = IngestMetrics::register(registry)?;
        let by_language = teachers_by_language(&options.corpora, &teachers)?;
        let limit_tokens = options.max_sequence_length - 2;
        let mut streams = Vec::with_capacity(options.corpora.len());
        for corpus in &options.corpora {
            let teachers = Arc::clone(&by_language[&corpus.language]);
            let cursor = cursors.get(corpus.name.as_str());
            streams.push(CorpusStream::open(corpus, teachers, limit_tokens, options.holdout_fraction, cursor)?);
        }
        let ingest = Self {
            status: Arc::new(IngestStatus { corpora: streams.iter().map(corpus_status).collect() }),
            streams,
            teachers: by_language,
            labels: teachers.iter().map(|teacher| teacher.labels).collect(),
            next,
            sampler: Sampler::new(options.seed, options.alpha),
            masking: Masking { seed: options.seed, probability: options.mask_probability },
            quarantine: Quarantine::new(options.quarantine),
            limit_tokens,
            group_tokens: options.group_tokens,
            batch_tokens: options.batch_tokens,
            metrics,
        };
        ingest.publish_shares();
        Ok(ingest)
    }

    /// A view that stays up to date while the stage runs.
    #[must_use]
    pub fn status(&self) -> Arc<IngestStatus> {
        Arc::clone(&self.status)
    }

    /// The next group; `None` once all input has ended.
    ///
    /// # Errors
    /// When a corpus cannot be read on, or the quarantine folder not written.
    pub fn next_group(&mut self) -> Result<Option<Group>, IngestError> {
        self.fill_group(&|| true)
    }

    /// Sends groups to `out` until all input has ended, the stage is told to stop, or nobody receives any
    /// more. A group is held back while `gate` is closed (`false`).
    ///
    /// # Errors
    /// As [`Ingest::next_group`].
    pub fn run(
        mut self,
        control: &StageControl,
        gate: &dyn Fn() -> bool,
        out: Sender<Group>,
    ) -> Result<(), IngestError> {
        while control.proceed() {
            let group = self.fill_group(&|| control.proceed())?;
            if control.stopping() {
                break;
            }
            let Some(group) = group else { break };
            let entries = group.entries.len();
            self.metrics.stage.in_flight.set(entries as i64);
            while !gate() {
                if !control.wait(POLL_INTERVAL) {
                    return Ok(());
                }
            }
            if !send(group, control, &out) {
                break;
            }
            self.metrics.stage.in_flight.set(0);
            self.metrics.stage.items_out.inc_by(entries as u64);
            self.metrics.stage.progressed();
        }
        Ok(())
    }

    /// The next group; `None` at the end of all input, or as soon as `go_on` says no.
    fn fill_group(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Group>, IngestError> {
        let mut group = GroupBuilder::new(self.group_tokens);
        while !group.is_full() {
            if !go_on() {
                return Ok(None);
            }
            let Some(index) = self.sampler.draw(self.next, &supplies(&self.streams)) else { break };
            group.push(self.next_entry(index)?);
            self.next = self.next.next();
            self.metrics.stage.items_in.inc();
            self.metrics.stage.progressed();
        }
        Ok(group.finish(&self.labels, self.batch_tokens))
    }

    fn next_entry(&mut self, index: usize) -> Result<Entry, IngestError> {
        let step = self.streams[index].step()?;
        let cursor = self.streams[index].cursor().clone();
        let status = &self.status.corpora[index];
        status.round.store(cursor.round, Ordering::Relaxed);
        if !matches!(step, Step::End) && cursor.next_byte == SourceCursor::DOCUMENT_DONE {
            add_one(&status.documents);
            self.metrics.documents.with_label_values(&[&cursor.source]).inc();
        }
        let payload = match step {
            Step::Example { document, held_out, example } => {
                match self.copies(&cursor, &document, &example.token_ids, example.span) {
                    Ok(copies) => {
                        add_one(&status.examples);
                        self.metrics.examples.with_label_values(&[&cursor.language]).inc();
                        self.metrics.characters.with_label_values(&[&cursor.source]).inc_by(example.characters);
                        let (source, language) = (Arc::clone(&cursor.source), Arc::clone(&cursor.language));
                        let (span, round) = (example.span, cursor.round);
                        Payload::Record(Record { source, document, span, language, round, held_out, copies })
                    }
                    Err(reason) => {
                        add_one(&status.skipped);
                        Payload::Skip(Skip { document, reason: reason.name().into() })
                    }
                }
            }
            Step::Skip { document, reason, rejection } => {
                add_one(&status.skipped);
                if let Some(rejection) = rejection {
                    self.reject(index, &cursor, &document, &rejection)?;
                }
                Payload::Skip(Skip { document, reason: reason.name().into() })
            }
            Step::End => {
                status.ended.store(true, Ordering::Relaxed);
                self.publish_shares();
                tracing::info!(corpus = &*cursor.source, "corpus has ended");
                Payload::End
            }
        };
        Ok(Entry { sequence: self.next, cursor, payload })
    }

    fn copies(
        &self,
        cursor: &SourceCursor,
        document: &str,
        token_ids: &[Vec<u32>],
        span: store::Span,
    ) -> Result<Vec<store::MaskedCopy>, Reason> {
        let key = ExampleKey { source: &cursor.source, document, span, round: cursor.round };
        let teachers = &self.teachers[&*cursor.language];
        let mut copies = Vec::with_capacity(teachers.len());
        for (teacher, token_ids) in teachers.iter().zip(token_ids) {
            if token_ids.len() > self.limit_tokens {
                return Err(Reason::TooManyTokens);
            }
            copies.push(self.masking.copy(teacher, token_ids, key).ok_or(Reason::NothingToMask)?);
        }
        for (teacher, copy) in teachers.iter().zip(&copies) {
            self.metrics.tokens.with_label_values(&[&teacher.name]).inc_by(copy.token_ids.len() as u64);
        }
        Ok(copies)
    }

    fn reject(
        &mut self,
        index: usize,
        cursor: &SourceCursor,
        document: &str,
        rejection: &Rejection,
    ) -> Result<(), IngestError> {
        let reason = rejection.reason.name();
        let quarantined = add_one(&self.status.corpora[index].quarantined);
        if quarantined.is_power_of_two() {
            let corpus = &*cursor.source;
            tracing::warn!(corpus, document, reason, detail = rejection.detail, quarantined, "documents are unusable");
        }
        self.metrics.quarantined.with_label_values(&[&*cursor.source, reason]).inc();
        self.quarantine.keep(&Note::new(&cursor.source, document, cursor.document_offset_bytes, rejection))
    }

    fn publish_shares(&self) {
        let shares = self.sampler.shares(&supplies(&self.streams));
        for (status, share) in self.status.corpora.iter().zip(shares) {
            status.set_share(share);
        }
    }
}

/// Sends unless the stage is told to stop or nobody receives; returns whether it was sent.
fn send(group: Group, control: &StageControl, out: &Sender<Group>) -> bool {
    let mut waiting = group;
    loop {
        waiting = match out.send_timeout(waiting, POLL_INTERVAL) {
            Ok(()) => return true,
            Err(SendTimeoutError::Timeout(group)) => group,
            Err(SendTimeoutError::Disconnected(_)) => return false,
        };
        if control.stopping() {
            return false;
        }
    }
}

fn supplies(streams: &[CorpusStream]) -> Vec<Supply<'_>> {
    let evaluation_only = |stream: &CorpusStream| stream.options().evaluation_only;
    streams.iter().map(|stream| Supply { cursor: stream.cursor(), evaluation_only: evaluation_only(stream) }).collect()
}

fn corpus_status(stream: &CorpusStream) -> CorpusStatus {
    let (options, cursor) = (stream.options(), stream.cursor());
    CorpusStatus {
        name: options.name.clone(),
        language: options.language.clone(),
        evaluation_only: options.evaluation_only,
        files: stream.files(),
        characters_available: cursor.characters_available,
        share: 0.into(),
        documents: 0.into(),
        examples: 0.into(),
        skipped: 0.into(),
        quarantined: 0.into(),
        round: cursor.round.into(),
        ended: cursor.ended.into(),
    }
}

/// The teachers of every language that has a corpus, in the order of the table.
fn teachers_by_language(
    corpora: &[CorpusOptions],
    teachers: &[IngestTeacher],
) -> Result<BTreeMap<String, Arc<[TeacherTokenizer]>>, IngestError> {
    let mut by_language: BTreeMap<String, Arc<[TeacherTokenizer]>> = BTreeMap::new();
    for corpus in corpora {
        let language = &corpus.language;
        let own: Vec<TeacherTokenizer> = teachers
            .iter()
            .enumerate()
            .filter(|(_, teacher)| teacher.languages.contains(language))
            .map(|(index, teacher)| TeacherTokenizer::new(index as u16, teacher))
            .collect();
        if own.is_empty() {
            return Err(IngestError::Options(format!(
                "corpus `{}`: no teacher has language `{language}`; add it to a teacher's `languages`",
                corpus.name
            )));
        }
        by_language.insert(language.clone(), own.into());
    }
    Ok(by_language)
}

fn validate(options: &IngestOptions, teachers: &[IngestTeacher]) -> Result<(), IngestError> {
    let within = |key: &str, value: f64, valid: bool| {
        if valid { Ok(()) } else { Err(IngestError::Options(format!("{key} is {value}, which is out of its range"))) }
    };
    let probability = options.mask_probability;
    within("masking.probability", probability, probability > 0.0 && probability <= 1.0)?;
    within("sampling.alpha", options.alpha, options.alpha.is_finite() && options.alpha >= 0.0)?;
    let holdout = options.holdout_fraction;
    within("evaluate.holdout_fraction", holdout, (0.0..=1.0).contains(&holdout))?;
    let length = options.max_sequence_length;
    within("student.max_sequence_length", length as f64, length >= SHORTEST_SEQUENCE)?;
    within("queue.batch_tokens", options.batch_tokens as f64, options.batch_tokens > 0)?;
    within("tokens of a group", options.group_tokens as f64, options.group_tokens > 0)?;
    within("number of teachers", teachers.len() as f64, teachers.len() <= usize::from(u16::MAX))?;
    let mut names = BTreeSet::new();
    for corpus in &options.corpora {
        let fail = |what: &str| Err(IngestError::Options(format!("corpus `{}` {what}", corpus.name)));
        if !names.insert(corpus.name.as_str()) {
            return fail("is there twice; names must differ");
        }
        if corpus.files.is_empty() {
            return fail("has no files");
        }
        if corpus.rounds == 0 {
            return fail("has 0 rounds; it needs at least 1");
        }
    }
    Ok(())
}
