//! The stage: corpora in, groups out.

use crate::changes::Changing;
use crate::duplicates;
use crate::example::Example;
use crate::feed::{Feed, Waker};
use crate::format::{Reason, Rejection};
use crate::group::GroupBuilder;
use crate::mask::{ExampleKey, MaskUnit, Masking};
use crate::metrics::IngestMetrics;
use crate::overrides::Overrides;
use crate::quarantine::{Note, Place, Quarantine};
use crate::sampling::{Candidate, Sampler};
use crate::sources::{Opener, TeachersByLanguage};
use crate::status::{CorpusState, CorpusStatus, IngestStatus, add_one};
use crate::stream::{CorpusStream, Step, Supply};
use crate::teacher::TeacherTokenizer;
use crate::{Changes, CorpusOptions, IngestError, IngestTeacher};
use crossbeam::channel::{Receiver, SendTimeoutError, Sender};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::pulse::{self, Wait};
use store::stage::StageControl;
use store::{Arrivals, Entry, Group, MaskedCopy, Payload, Record, SequenceNumber, Skip, SourceCursor, Span};

/// How often a stage that waits looks whether it is to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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
    /// What is masked together.
    pub mask_unit: MaskUnit,
    /// Longest copy, [CLS] and [SEP] included; at least 16.
    pub max_sequence_length: usize,
    /// Fraction of the documents that are held out.
    pub holdout_fraction: f64,
    /// Tokens in a labelling batch, at most.
    pub batch_tokens: usize,
    /// A group closes once its copies hold this many tokens.
    pub group_tokens: usize,
    /// A group that is not full is handed on when there is nothing to read and its first entry is this old.
    pub linger: Duration,
    /// Folder of the manifests of watched folders and followed files, and of what is known of earlier texts.
    pub feeds: PathBuf,
    /// The log durably holds the entries before this one. Whoever knows keeps it up to date; if it lags behind, that only
    /// costs room on the disk.
    pub durable_end: Arc<AtomicU64>,
    /// Spools of the corpora that are pushed, by the name of the corpus.
    pub spools: BTreeMap<String, Arc<dyn Feed>>,
    /// For what is known about unusable documents.
    pub quarantine: Quarantine,
    /// What was set by hand before.
    pub overrides: Overrides,
    /// Whether records carry the text of their example.
    pub keep_text: bool,
    /// Takes note of when the documents of records arrived; `None`: nobody asks.
    pub arrivals: Option<Arrivals>,
}

/// The ingest stage.
pub struct Ingest {
    streams: Vec<CorpusStream>,
    /// Whether each stream is suspended, has something, or has ended.
    supplies: Vec<Supply>,
    /// What is told about each stream.
    statuses: Vec<Arc<CorpusStatus>>,
    teachers: TeachersByLanguage,
    /// By index into the teacher table: whether it labels.
    labels: Vec<bool>,
    next: SequenceNumber,
    sampler: Sampler,
    masking: Masking,
    quarantine: Quarantine,
    limit_tokens: usize,
    group_tokens: usize,
    batch_tokens: usize,
    keep_text: bool,
    /// For the time from a document's arrival to its first gradient.
    arrival_times: Option<Arrivals>,
    durable_end: Arc<AtomicU64>,
    metrics: IngestMetrics,
    status: Arc<IngestStatus>,
    changes: Changes,
    changing: Changing,
    overrides: Overrides,
    arrivals: Receiver<()>,
}

/// Says at its end that ingestion rests.
struct Resting(Arc<IngestStatus>);

impl Drop for Resting {
    fn drop(&mut self) {
        self.0.at_rest.store(true, Ordering::Release);
    }
}

/// What filling a group came to.
enum Filled {
    Group(Group),
    /// All input has ended.
    Ended,
    /// Whoever asked does not want to go on.
    Stopped,
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
        options.quarantine.forget_from(next)?;
        duplicates::forget_from(&options.feeds, next)?;
        let (waker, arrivals) = Waker::new();
        let labels = teachers.iter().map(|teacher| teacher.labels).collect();
        let opener = Opener::new(&options, teachers, waker)?;
        let mut streams = Vec::new();
        for corpus in &options.corpora {
            streams.extend(opener.open(corpus, options.spools.get(&corpus.name), cursors, next)?);
        }
        let teachers = opener.teachers().clone();
        let (changes, changing) = Changes::new(opener, cursors, next, &streams, options.linger);
        let mut overrides = options.overrides.clone();
        changing.settle(&mut overrides);
        let mut ingest = Self {
            status: Arc::new(IngestStatus::new(next)),
            supplies: Vec::new(),
            statuses: Vec::new(),
            streams,
            teachers,
            labels,
            next,
            sampler: Sampler::new(options.seed, options.alpha),
            masking: Masking { seed: options.seed, probability: options.mask_probability, unit: options.mask_unit },
            quarantine: options.quarantine.clone(),
            limit_tokens: options.max_sequence_length - 2,
            group_tokens: options.group_tokens,
            batch_tokens: options.batch_tokens,
            keep_text: options.keep_text,
            arrival_times: options.arrivals,
            durable_end: options.durable_end,
            metrics: IngestMetrics::register(registry, &options.quarantine)?,
            changes,
            changing,
            overrides,
            arrivals,
        };
        ingest.note_change();
        ingest.look()?;
        ingest.publish_shares();
        Ok(ingest)
    }

    /// A view that stays up to date while the stage runs.
    #[must_use]
    pub fn status(&self) -> Arc<IngestStatus> {
        Arc::clone(&self.status)
    }

    /// Changes what is read, and how, while the stage runs.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// The next group; `None` once all input has ended. Waits while nothing has arrived.
    ///
    /// # Errors
    /// When a corpus cannot be read on, or the quarantine folder not written.
    pub fn next_group(&mut self) -> Result<Option<Group>, IngestError> {
        match self.fill_group(None)? {
            Filled::Group(group) => Ok(Some(group)),
            Filled::Ended | Filled::Stopped => Ok(None),
        }
    }

    /// Sends groups to `out` until all input has ended, the stage is told to stop, or nobody receives any
    /// more. A group is held back while `gate` is closed to it (`false`).
    ///
    /// # Errors
    /// As [`Ingest::next_group`].
    pub fn run(
        mut self,
        control: &StageControl,
        gate: &dyn Fn(&Group) -> bool,
        out: Sender<Group>,
    ) -> Result<(), IngestError> {
        let _at_rest_when_it_ends = Resting(self.status());
        while self.proceed(Some(control), false)? {
            let Filled::Group(group) = self.fill_group(Some(control))? else { break };
            let entries = group.entries.len();
            self.metrics.stage.in_flight.set(entries as i64);
            while !gate(&group) && !self.drains(Some(control)) {
                pulse::waits_for(Wait::Backlog);
                if !control.wait(POLL_INTERVAL) {
                    return Ok(());
                }
                self.look()?;
            }
            if !self.send(group, control, &out)? {
                break;
            }
            self.metrics.stage.in_flight.set(0);
            self.metrics.stage.items_out.inc_by(entries as u64);
            self.metrics.stage.progressed();
        }
        Ok(())
    }

    /// Waits while the stage is paused; what is asked for meanwhile is done. With something `in_hand` it does not wait if the pause
    /// drains. Returns `false` if it is to stop.
    fn proceed(&mut self, control: Option<&StageControl>, in_hand: bool) -> Result<bool, IngestError> {
        let Some(control) = control else { return Ok(true) };
        while control.paused() && !(in_hand && self.status.draining()) && control.wait(POLL_INTERVAL) {
            self.status.at_rest.store(!in_hand, Ordering::Release);
            pulse::waits_for(Wait::Pause);
            self.look()?;
        }
        self.status.at_rest.store(false, Ordering::Relaxed);
        Ok(!control.stopping())
    }

    /// Whether what was read is to be handed on as it is.
    fn drains(&self, control: Option<&StageControl>) -> bool {
        self.status.draining() && control.is_some_and(StageControl::paused)
    }

    fn fill_group(&mut self, control: Option<&StageControl>) -> Result<Filled, IngestError> {
        let mut group = GroupBuilder::new(self.group_tokens);
        let mut first_entry: Option<Instant> = None;
        while !group.is_full() {
            let in_hand = first_entry.is_some();
            if !self.proceed(control, in_hand)? {
                return Ok(Filled::Stopped);
            }
            if in_hand && self.drains(control) {
                break;
            }
            self.look()?;
            if let Some(index) = self.sampler.draw(self.next, &self.candidates(), &self.overrides) {
                let Some(entry) = self.next_entry(index)? else { continue };
                group.push(entry);
                first_entry.get_or_insert_with(Instant::now);
                self.next = self.next.next();
                self.status.next.store(self.next.0, Ordering::Relaxed);
                self.metrics.stage.items_in.inc();
                self.metrics.stage.progressed();
                pulse::beat();
                continue;
            }
            if self.has_ended() {
                break;
            }
            let left = first_entry.map(|first| self.changing.linger().saturating_sub(first.elapsed()));
            if left == Some(Duration::ZERO) {
                break;
            }
            if !self.supplies.contains(&Supply::Searching) {
                pulse::waits_for(Wait::Input);
                let _ = self.arrivals.recv_timeout(left.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL));
            }
        }
        if !self.sync_when_there_is_room(control)? {
            return Ok(Filled::Stopped);
        }
        let stopped = !group.is_full() && control.is_some_and(StageControl::stopping);
        Ok(match group.finish(&self.labels, self.batch_tokens) {
            _ if stopped => Filled::Stopped,
            Some(group) => Filled::Group(group),
            None => Filled::Ended,
        })
    }

    /// Makes durable what streams have to know after a restart, and waits for room on the disk. `false`: it is to stop.
    fn sync_when_there_is_room(&mut self, control: Option<&StageControl>) -> Result<bool, IngestError> {
        while !self.sync()? {
            if !self.status.lacks_space.swap(true, Ordering::Relaxed) {
                tracing::warn!("no space is left on the disk for the hashes of documents; ingestion waits");
            }
            pulse::waits_for(Wait::Room);
            if !control.is_some_and(|control| control.wait(POLL_INTERVAL)) {
                return Ok(false);
            }
            self.look()?;
        }
        self.status.lacks_space.store(false, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes durable what streams have to know after a restart; `false`: there is no space.
    fn sync(&mut self) -> Result<bool, IngestError> {
        let durable_end = self.durable_end.load(Ordering::Relaxed);
        self.streams.iter_mut().try_fold(true, |done, stream| Ok(stream.sync(durable_end)? && done))
    }

    /// Whether there is nothing, and nothing will come that is to be waited for.
    fn has_ended(&self) -> bool {
        let done = |(stream, supply): (&CorpusStream, &Supply)| match supply {
            Supply::Ended => true,
            Supply::Dry | Supply::Paused => stream.source().retry,
            Supply::Ready | Supply::Searching => false,
        };
        self.streams.iter().zip(&self.supplies).all(done)
    }

    /// Takes note of the streams and overrides, which have changed.
    fn note_change(&mut self) {
        let status = |stream: &CorpusStream| {
            let known = self.statuses.iter().find(|status| status.name == *stream.source().name);
            known.map_or_else(|| Arc::new(CorpusStatus::new(stream)), Arc::clone)
        };
        self.statuses = self.streams.iter().map(status).collect();
        self.status.set_corpora(self.statuses.clone());
        self.supplies = vec![Supply::Dry; self.streams.len()];
        self.status.overrides_since.store(self.next.0, Ordering::Relaxed);
        let Overrides { alpha, shares, paused, paused_teachers } = &self.overrides;
        if self.overrides != Overrides::default() {
            let sequence = self.next.0;
            tracing::info!(
                sequence,
                ?alpha,
                ?shares,
                ?paused,
                ?paused_teachers,
                "these overrides hold for what is read"
            );
        }
    }

    /// Looks at what has arrived, and makes the changes that were asked for since the last entry.
    fn look(&mut self) -> Result<(), IngestError> {
        let mut changed = self.changing.make(&mut self.streams, &mut self.overrides, self.next)?;
        if changed {
            self.note_change();
        }
        for (index, stream) in self.streams.iter_mut().enumerate() {
            // Whether it is paused or not: nobody would know that nothing arrives any more.
            stream.check()?;
            let (source, status) = (stream.source(), &self.statuses[index]);
            let paused = [&source.name, &source.corpus].iter().any(|name| self.overrides.paused.contains(*name))
                || is_untaught(&self.teachers[&source.language], &self.overrides);
            if stream.note_arrivals() {
                let (files, characters) = (stream.files(), stream.cursor().characters_available);
                status.files.store(files, Ordering::Relaxed);
                status.characters_available.store(characters, Ordering::Relaxed);
                self.metrics.available.with_label_values(&[&stream.source().name]).set(characters as i64);
                changed = true;
            }
            let supply = if paused && !stream.cursor().ended { Supply::Paused } else { stream.supply()? };
            changed |= (supply == Supply::Ended) != (self.supplies[index] == Supply::Ended);
            self.supplies[index] = supply;
            status.set_state(match supply {
                Supply::Ready | Supply::Searching => CorpusState::Reading,
                Supply::Dry => CorpusState::Waiting,
                Supply::Paused => CorpusState::Paused,
                Supply::Ended => CorpusState::Ended,
            });
        }
        if changed {
            self.publish_shares();
        }
        Ok(())
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let streams = self.streams.iter().zip(&self.supplies);
        streams
            .map(|(stream, supply)| Candidate {
                cursor: stream.cursor(),
                before_others: stream.source().evaluation_only || stream.source().retry,
                unread: stream.source().finite && stream.cursor().file.is_empty() && !stream.cursor().ended,
                open: !matches!(supply, Supply::Paused | Supply::Ended),
                ready: *supply == Supply::Ready,
            })
            .collect()
    }

    /// The entry that the next step of a stream makes; `None`: it has to look further first.
    fn next_entry(&mut self, index: usize) -> Result<Option<Entry>, IngestError> {
        let step = self.streams[index].step(self.next)?;
        let cursor = self.streams[index].cursor().clone();
        let status = &self.statuses[index];
        status.round.store(cursor.round, Ordering::Relaxed);
        let passed = matches!(step, Step::End | Step::Skip { reason: Reason::OtherLanguage, .. });
        if !passed && cursor.next_byte == SourceCursor::DOCUMENT_DONE {
            add_one(&status.documents);
            self.metrics.documents.with_label_values(&[&cursor.source]).inc();
        }
        let arrived_ms = if let Step::Example { arrived_ms, .. } = &step { *arrived_ms } else { None };
        let payload = match step {
            Step::Example { document, held_out, example, .. } => match self.copies(&cursor, &document, &example) {
                Ok(copies) => {
                    let characters = example.characters();
                    add_one(&status.examples);
                    status.characters_consumed.fetch_add(characters, Ordering::Relaxed);
                    self.metrics.examples.with_label_values(&[&cursor.language]).inc();
                    self.metrics.characters.with_label_values(&[&cursor.source]).inc_by(characters);
                    let bytes = example.span.end.saturating_sub(example.span.first);
                    self.metrics.bytes.with_label_values(&[&cursor.source]).inc_by(bytes);
                    let (source, language) = (Arc::clone(&cursor.source), Arc::clone(&cursor.language));
                    let (span, round) = (example.span, cursor.round);
                    let text = self.keep_text.then(|| example.text.into());
                    Payload::Record(Record { source, document, span, language, round, held_out, copies, text })
                }
                Err(reason) => {
                    add_one(&status.skipped);
                    if reason == Reason::MostlyUnknown {
                        let rejection = example.rejection().with_language(Some(cursor.language.to_string()));
                        self.reject(index, &cursor, &document, Some(example.span), &rejection)?;
                    }
                    Payload::Skip(Skip { document, reason: reason.name().into() })
                }
            },
            Step::Skip { document, reason, rejection } => {
                status.skipped.fetch_add(u64::from(!passed), Ordering::Relaxed);
                if reason == Reason::Duplicate {
                    self.metrics.duplicates.with_label_values(&[&cursor.source]).inc();
                }
                if let Some(rejection) = rejection {
                    self.reject(index, &cursor, &document, None, &rejection)?;
                }
                Payload::Skip(Skip { document, reason: reason.name().into() })
            }
            Step::End => {
                tracing::info!(corpus = &*cursor.source, "corpus has ended");
                Payload::End
            }
            Step::Wait => return Ok(None),
        };
        if let (Payload::Record(record), Some(arrivals), Some(arrived_ms)) = (&payload, &self.arrival_times, arrived_ms)
            && !record.held_out
        {
            arrivals.note(self.next, arrived_ms);
        }
        Ok(Some(Entry { sequence: self.next, cursor, payload }))
    }

    fn copies(&self, cursor: &SourceCursor, document: &str, example: &Example) -> Result<Vec<MaskedCopy>, Reason> {
        let key = ExampleKey { source: &cursor.source, document, span: example.span, round: cursor.round };
        let teachers = &self.teachers[&*cursor.language];
        if example.tokens.iter().any(|tokens| tokens.ids.len() > self.limit_tokens) {
            return Err(Reason::TooManyTokens);
        }
        if example.is_mostly_unknown(teachers) {
            return Err(Reason::MostlyUnknown);
        }
        let mut copies = self.masking.copies(teachers, &example.tokens, key).ok_or(Reason::NothingToMask)?;
        let pauses = |copy: &MaskedCopy| {
            let teacher = teachers.iter().find(|teacher| teacher.index == copy.teacher);
            teacher.is_some_and(|teacher| self.overrides.paused_teachers.contains(teacher.name.as_str()))
        };
        // Masked first: what the others mask together does not depend on who pauses.
        copies.retain(|copy| !pauses(copy));
        for copy in &copies {
            let teacher = teachers.iter().find(|teacher| teacher.index == copy.teacher);
            let tokens = teacher.map(|teacher| self.metrics.tokens.with_label_values(&[&teacher.name]));
            tokens.iter().for_each(|tokens| tokens.inc_by(copy.token_ids.len() as u64));
        }
        Ok(copies)
    }

    fn reject(
        &mut self,
        index: usize,
        cursor: &SourceCursor,
        document: &str,
        span: Option<Span>,
        rejection: &Rejection,
    ) -> Result<(), IngestError> {
        let reason = rejection.reason.name();
        let quarantined = add_one(&self.statuses[index].quarantined);
        if quarantined.is_power_of_two() {
            let corpus = &*cursor.source;
            tracing::warn!(corpus, document, reason, detail = rejection.detail, quarantined, "documents are unusable");
        }
        self.metrics.quarantined.with_label_values(&[&*cursor.source, reason]).inc();
        let stream = &self.streams[index];
        let (source, corpus) = (&*cursor.source, &*stream.source().corpus);
        let (sequence, offset, path) = (Some(self.next), cursor.document_offset_bytes, stream.path());
        self.quarantine.keep(&Note::new(Place { source, corpus, document, sequence, offset, path, span }, rejection))
    }

    /// Sends unless the stage is told to stop or nobody receives; returns whether it was sent.
    fn send(&mut self, group: Group, control: &StageControl, out: &Sender<Group>) -> Result<bool, IngestError> {
        let mut waiting = group;
        loop {
            waiting = match out.send_timeout(waiting, POLL_INTERVAL) {
                Ok(()) => return Ok(true),
                Err(SendTimeoutError::Timeout(group)) => group,
                Err(SendTimeoutError::Disconnected(_)) => return Ok(false),
            };
            pulse::waits_for(Wait::Output);
            if control.stopping() {
                return Ok(false);
            }
            self.look()?;
        }
    }

    fn publish_shares(&self) {
        let candidates = self.candidates();
        let languages = self.sampler.languages(&candidates, &self.overrides);
        for (status, share) in self.statuses.iter().zip(self.sampler.shares(&candidates, &languages)) {
            status.set_share(share);
        }
        self.status.set_languages(&languages, &self.overrides);
    }
}

/// Whether all teachers of a language pause.
fn is_untaught(teachers: &[TeacherTokenizer], overrides: &Overrides) -> bool {
    teachers.iter().all(|teacher| overrides.paused_teachers.contains(teacher.name.as_str()))
}
