//! One source as a stream of steps: an example, a skipped document, or the end. Each step moves the cursor.

use crate::IngestError;
use crate::corpus::Source;
use crate::documents::{Documents, Next, Reopened};
use crate::duplicates::SeenTexts;
use crate::example::{Example, Segmenter};
use crate::feed::Feed;
use crate::format::{Document, Reason, Rejection};
use crate::teacher::TeacherTokenizer;
use model::random::Philox;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use store::{SequenceNumber, SourceCursor};

/// A document's own identifier is shown up to here.
const ID_LIMIT_CHARACTERS: usize = 128;

/// What comes next in a source.
pub(crate) enum Step {
    Example {
        document: Arc<str>,
        held_out: bool,
        /// When the document arrived, in milliseconds since 1970.
        arrived_ms: Option<u64>,
        example: Example,
    },
    Skip {
        document: Arc<str>,
        reason: Reason,
        rejection: Option<Rejection>,
    },
    End,
    /// Nothing now: the cursor has not moved.
    Wait,
}

/// Whether a source has a step to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Supply {
    /// It has.
    Ready,
    /// It has to look further first.
    Searching,
    /// It has not, until something arrives.
    Dry,
    /// Someone has suspended it.
    Paused,
    /// It has ended.
    Ended,
}

/// A source that is being read.
pub(crate) struct CorpusStream {
    source: Arc<Source>,
    documents: Documents,
    teachers: Arc<[TeacherTokenizer]>,
    /// Tokens per example and copy, without [CLS] and [SEP].
    limit_tokens: usize,
    holdout_fraction: f64,
    /// `None`: duplicates are used like other documents.
    texts: Option<SeenTexts>,
    cursor: SourceCursor,
    round: u32,
    /// Whether this round had any document: a corpus without any ends at once.
    round_has_documents: bool,
    /// What was looked up already.
    next: Option<Next>,
    document: Option<OpenDocument>,
    /// Changes of the feed when its characters were last asked for.
    seen: Option<u64>,
    /// Changes of the feed when it was last found to have nothing.
    dry: Option<u64>,
    /// Parts that were entered, and with which entry; until the log durably holds that.
    entered: VecDeque<(SequenceNumber, Arc<str>)>,
}

/// A document with text that no example has covered yet.
struct OpenDocument {
    id: Arc<str>,
    held_out: bool,
    /// When it arrived, in milliseconds since 1970.
    arrived_ms: Option<u64>,
    segmenter: Segmenter,
}

impl CorpusStream {
    /// Opens the source at its cursor, or at its start.
    pub(crate) fn open(
        source: Source,
        feed: Arc<dyn Feed>,
        teachers: Arc<[TeacherTokenizer]>,
        limit_tokens: usize,
        holdout_fraction: f64,
        texts: Option<SeenTexts>,
        cursor: Option<&SourceCursor>,
    ) -> Result<Self, IngestError> {
        let source = Arc::new(source);
        let fresh = || SourceCursor::start(Arc::clone(&source.name), Arc::clone(&source.language), 0);
        let cursor = cursor.cloned().unwrap_or_else(fresh);
        let mut stream = Self {
            documents: Documents::new(Arc::clone(&source), feed),
            source,
            teachers,
            limit_tokens,
            holdout_fraction,
            texts,
            round: cursor.round,
            cursor,
            round_has_documents: false,
            next: None,
            document: None,
            seen: None,
            dry: None,
            entered: VecDeque::new(),
        };
        stream.note_arrivals();
        stream.resume()?;
        Ok(stream)
    }

    /// The state after the last step, with the characters that have arrived since.
    pub(crate) fn cursor(&self) -> &SourceCursor {
        &self.cursor
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The file that is being read, unless it goes once it is read.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.documents.path().filter(|_| !self.source.spooled)
    }

    /// Files so far.
    pub(crate) fn files(&self) -> usize {
        self.documents.feed().parts()
    }

    /// Takes note of what has arrived. Returns whether there was anything.
    pub(crate) fn note_arrivals(&mut self) -> bool {
        let feed = self.documents.feed();
        let changes = feed.changes().count();
        if self.seen == Some(changes) {
            return false;
        }
        let characters = feed.characters_available(self.source.counted());
        self.cursor.characters_available = self.cursor.characters_available.max(characters);
        self.seen = Some(changes);
        true
    }

    /// Whether what watches its feed is still at work.
    pub(crate) fn check(&self) -> Result<(), IngestError> {
        if self.cursor.ended { Ok(()) } else { self.documents.feed().check() }
    }

    /// Whether there is a step to make. A list of files has one until its end was reached; other feeds are looked at.
    pub(crate) fn supply(&mut self) -> Result<Supply, IngestError> {
        if self.cursor.ended {
            return Ok(Supply::Ended);
        }
        if self.source.finite || self.document.is_some() || self.next.is_some() {
            return Ok(Supply::Ready);
        }
        let changes = self.documents.feed().changes().count();
        if self.dry == Some(changes) {
            return Ok(Supply::Dry);
        }
        match self.look_up()? {
            Next::Searching => Ok(Supply::Searching),
            Next::Dry => {
                self.dry = Some(changes);
                Ok(Supply::Dry)
            }
            next => {
                self.next = Some(next);
                Ok(Supply::Ready)
            }
        }
    }

    /// The next step, which makes entry `sequence`. After `End` there are no more.
    pub(crate) fn step(&mut self, sequence: SequenceNumber) -> Result<Step, IngestError> {
        if self.document.is_some() {
            return self.next_example();
        }
        let next = match self.next.take() {
            Some(next) => next,
            None => self.look_up()?,
        };
        if let Next::Passed { part, .. } | Next::Empty { part } | Next::Document { part, .. } = &next
            && *part != self.cursor.file
        {
            self.entered.push_back((sequence, Arc::clone(part)));
        }
        match next {
            Next::Dry | Next::Searching => Ok(Step::Wait),
            Next::End => {
                self.cursor.ended = true;
                Ok(Step::End)
            }
            Next::Passed { part, offset_bytes } => {
                let id = self.enter(&part, offset_bytes, None);
                Ok(self.skip(id, Reason::OtherLanguage, None))
            }
            Next::Empty { part } => {
                let id = self.enter(&part, 0, None);
                Ok(self.skip(id, Reason::NoText, None))
            }
            Next::Document { part, document } => {
                let id = self.enter(&part, document.offset_bytes, document.id.as_deref());
                match document.text {
                    Ok(text) if !text.trim().is_empty() => {
                        let round = self.round;
                        if self.texts.as_mut().is_some_and(|texts| texts.note(&text, round, sequence)) {
                            return Ok(self.skip(id, Reason::Duplicate, None));
                        }
                        self.document = Some(self.open_document(id, document.arrived_ms, text));
                        self.next_example()
                    }
                    Ok(text) => Ok(self.skip(id, Reason::NoText, Some(Rejection::no_text(&text)))),
                    Err(rejection) => Ok(self.skip(id, rejection.reason, Some(rejection))),
                }
            }
        }
    }

    /// Makes durable what a restart has to know besides the cursor; `false`: there is no space. The log durably holds the entries
    /// before `durable_end`.
    pub(crate) fn sync(&mut self, durable_end: u64) -> Result<bool, IngestError> {
        let durable = |(sequence, _): &mut (SequenceNumber, Arc<str>)| sequence.0 < durable_end;
        let mut reached = None;
        while let Some((_, part)) = self.entered.pop_front_if(durable) {
            reached = Some(part);
        }
        reached.iter().for_each(|part| self.documents.feed().reached(part));
        self.texts.as_mut().map_or(Ok(true), |texts| texts.sync(durable_end))
    }

    fn next_example(&mut self) -> Result<Step, IngestError> {
        let Some(open) = &mut self.document else { return Ok(Step::Wait) };
        let (document, held_out, arrived_ms) = (Arc::clone(&open.id), open.held_out, open.arrived_ms);
        let Some(example) = open.segmenter.next()? else {
            self.document = None;
            return Ok(self.skip(document, Reason::NoText, None));
        };
        self.cursor.next_byte = example.span.end;
        if open.segmenter.is_done() {
            self.document = None;
            self.cursor.next_byte = SourceCursor::DOCUMENT_DONE;
        }
        Ok(Step::Example { document, held_out, arrived_ms, example })
    }

    fn skip(&mut self, document: Arc<str>, reason: Reason, rejection: Option<Rejection>) -> Step {
        self.cursor.next_byte = SourceCursor::DOCUMENT_DONE;
        Step::Skip { document, reason, rejection }
    }

    /// Moves the cursor to the document at `offset_bytes` of `part`; returns its identifier.
    fn enter(&mut self, part: &Arc<str>, offset_bytes: u64, id: Option<&str>) -> Arc<str> {
        self.cursor.file = Arc::clone(part);
        self.cursor.document_offset_bytes = offset_bytes;
        self.cursor.next_byte = 0;
        self.cursor.round = self.round;
        identifier(part, offset_bytes, id)
    }

    fn open_document(&self, id: Arc<str>, arrived_ms: Option<u64>, text: String) -> OpenDocument {
        let language = Arc::clone(&self.cursor.language);
        let segmenter = Segmenter::new(text, language, Arc::clone(&self.teachers), self.limit_tokens);
        OpenDocument { held_out: self.is_held_out(&id), id, arrived_ms, segmenter }
    }

    /// By hash alone, so that runs with other seeds hold out the same documents.
    fn is_held_out(&self, document: &str) -> bool {
        let hash = Philox::new(0, "holdout", &[self.source.name.as_bytes(), document.as_bytes()]);
        self.source.evaluation_only || hash.uniform(0, 0) < self.holdout_fraction
    }

    /// What comes next, in this round or the one after it.
    fn look_up(&mut self) -> Result<Next, IngestError> {
        loop {
            let next = self.documents.next(&self.cursor)?;
            match next {
                Next::End if self.round + 1 < self.rounds() && self.round_has_documents => {
                    self.round += 1;
                    self.round_has_documents = false;
                    self.documents.rewind();
                }
                Next::Document { .. } | Next::Passed { .. } | Next::Empty { .. } => {
                    self.round_has_documents = true;
                    return Ok(next);
                }
                _ => return Ok(next),
            }
        }
    }

    fn rounds(&self) -> u32 {
        if self.source.finite { self.source.rounds } else { 1 }
    }

    /// Goes to where the cursor says. A corpus that has ended, but now has more rounds, goes on with the next; one that
    /// can grow goes on with what has come since.
    fn resume(&mut self) -> Result<(), IngestError> {
        if self.cursor.language != self.source.language {
            return Err(IngestError::Options(format!(
                "corpus `{}` is of language `{}` in the log and of `{}` in the configuration; give it a new name",
                self.source.corpus, self.cursor.language, self.source.language
            )));
        }
        let ended = std::mem::take(&mut self.cursor.ended);
        self.round_has_documents = !self.cursor.file.is_empty();
        if ended && self.source.finite {
            self.cursor.ended = self.cursor.file.is_empty() || self.round + 1 >= self.rounds();
            self.documents.go_behind(&self.cursor);
            return Ok(());
        }
        if !self.cursor.file.is_empty() {
            match self.documents.reopen(&self.cursor)? {
                Reopened::At(document) if self.cursor.next_byte != SourceCursor::DOCUMENT_DONE => {
                    self.skip_covered(document)?;
                }
                Reopened::At(_) | Reopened::Forgotten => {}
            }
        }
        if ended {
            match self.look_up()? {
                Next::End => self.cursor.ended = true,
                Next::Dry | Next::Searching => {}
                next => self.next = Some(next),
            }
        }
        Ok(())
    }

    /// Opens the document at the cursor behind the examples that were made of it already.
    fn skip_covered(&mut self, document: Option<Document>) -> Result<(), IngestError> {
        let changed = |stream: &Self, problem: &str| {
            stream.documents.changed(&stream.cursor.file, stream.cursor.document_offset_bytes, problem)
        };
        let Some(Document { id, arrived_ms, text: Ok(text), .. }) = document else {
            return Err(changed(self, "another text stands there now"));
        };
        let id = identifier(&self.cursor.file, self.cursor.document_offset_bytes, id.as_deref());
        let mut open = self.open_document(id, arrived_ms, text);
        let mut covered = 0;
        while covered < self.cursor.next_byte {
            match open.segmenter.next()? {
                Some(example) => covered = example.span.end,
                None => return Err(changed(self, "the document there is shorter now")),
            }
        }
        if covered > self.cursor.next_byte && !open.segmenter.was_cut_at(self.cursor.next_byte)? {
            return Err(changed(self, "the document there has changed"));
        }
        if open.segmenter.is_done() {
            return Err(changed(self, "the document there is shorter now"));
        }
        self.document = Some(open);
        Ok(())
    }
}

/// `<part>@<offset>`, and behind that the document's own identifier if it has one.
fn identifier(part: &str, offset_bytes: u64, id: Option<&str>) -> Arc<str> {
    match id {
        None => format!("{part}@{offset_bytes}").into(),
        Some(id) => {
            let id: String = id.chars().take(ID_LIMIT_CHARACTERS).collect();
            format!("{part}@{offset_bytes}#{id}").into()
        }
    }
}
