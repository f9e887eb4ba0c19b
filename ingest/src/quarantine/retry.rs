//! Documents out of the quarantine, tried again.
//!
//! They go through an inbox of their own, which the sources `retry:<language>` read: a cursor of the log cannot go back to a
//! document that it has passed. So the cursors stay the only record of what was used. Each document is pushed with a key
//! made of its note and its text: whatever happens between its being durable in the inbox and its note's removal, it is
//! there once.
//!
//! A document is tried again only when the log durably says that it was skipped: if that could still be lost, its own
//! source would read it again, too. And what stands at its place in a file is used only if its own source does not read it
//! as well: of a file that was replaced in a watched folder, or rotated, it does.

use super::{FileState, Note, Quarantine};
use crate::feed::FeedOptions;
use crate::format::{Document, DocumentReader};
use crate::spool::{Inbox, PushError, Receipt};
use crate::{CorpusOptions, Format, FormatOptions, IngestError, Language};
use crossbeam::channel::{Receiver, bounded};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Documents that are written together, at most.
const TOGETHER: usize = 64;

/// The corpus of documents that are tried again. Its feed is an inbox of this name.
#[must_use]
pub fn retry_corpus() -> CorpusOptions {
    let format = FormatOptions {
        id_field: Some("id".to_owned()),
        language_field: Some("language".to_owned()),
        ..Format::JsonLines.into()
    };
    CorpusOptions {
        name: "retry".to_owned(),
        language: Language::Field,
        feed: FeedOptions::Spool,
        format,
        rounds: 1,
        evaluation_only: false,
        deduplicate: 0,
        retry: true,
    }
}

/// Takes documents out of the quarantine.
#[derive(Clone, Debug)]
pub struct Retry {
    quarantine: Quarantine,
    corpora: Arc<[CorpusOptions]>,
    inbox: Arc<Inbox>,
}

/// Which documents to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those with these notes.
    Notes(Vec<String>),
    /// All, or all of one corpus.
    All {
        /// Name of a corpus, or of one of its sources.
        corpus: Option<String>,
    },
}

/// What became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// Documents that are in the inbox now.
    pub retried: u64,
    /// Documents that were there already; their notes are removed now.
    pub duplicates: u64,
    /// Documents that stay where they are.
    pub refused: Vec<Refused>,
}

/// A document that stays in the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Identifier of its note.
    pub id: String,
    /// Why, for people.
    pub problem: String,
}

/// A text that is tried again.
struct Again {
    text: String,
    language: String,
}

impl Note {
    /// Whether it is about a document of the corpus, or of the source, of this name.
    #[must_use]
    pub fn is_of(&self, corpus: &str) -> bool {
        self.corpus == corpus || self.source == corpus
    }
}

impl Retry {
    /// `corpora` are those of the configuration; `inbox` is that of [`retry_corpus`].
    #[must_use]
    pub fn new(quarantine: Quarantine, corpora: &[CorpusOptions], inbox: Arc<Inbox>) -> Self {
        Self { quarantine, corpora: corpora.into(), inbox }
    }

    /// Replaces the corpora.
    pub fn set_corpora(&mut self, corpora: &[CorpusOptions]) {
        self.corpora = corpora.into();
    }

    /// Tries documents again: the text that their notes hold, or what stands in their file now. A file of a watched folder, or one
    /// that is followed, has to be the one that it was. `durable_end` is the first sequence number that the log does not
    /// durably hold. Returns when they are durable in the inbox.
    ///
    /// # Errors
    /// When the quarantine cannot be read or written. What is wrong with single documents is in the answer.
    pub fn retry(&self, which: &Which, durable_end: u64) -> Result<Retried, IngestError> {
        let mut done = Retried::default();
        let notes = self.notes(which, &mut done)?;
        for notes in notes.chunks(TOGETHER) {
            let mut pushed = Vec::new();
            for note in notes {
                match self.read(note, durable_end).and_then(|again| self.push(note, &again)) {
                    Ok(answer) => pushed.push((note, answer)),
                    Err(problem) => done.refuse(&note.id, problem),
                }
            }
            for (note, answer) in pushed {
                let outcome = answer.recv().unwrap_or(Err(PushError::Closed));
                match outcome.map_err(|error| error.to_string()).and_then(accepted) {
                    Ok(duplicate) => {
                        done.retried += u64::from(!duplicate);
                        done.duplicates += u64::from(duplicate);
                        self.quarantine.remove(note)?;
                    }
                    Err(problem) => done.refuse(&note.id, problem),
                }
            }
        }
        Ok(done)
    }

    fn notes(&self, which: &Which, done: &mut Retried) -> Result<Vec<Note>, IngestError> {
        let mut notes = super::notes(self.quarantine.folder())?;
        match which {
            Which::All { corpus } => {
                notes.retain(|note| corpus.as_deref().is_none_or(|corpus| note.is_of(corpus)));
            }
            Which::Notes(ids) => {
                notes.retain(|note| ids.contains(&note.id));
                let missing = ids.iter().filter(|id| !notes.iter().any(|note| note.id == **id));
                missing.for_each(|id| done.refuse(id, "there is no such note in the quarantine".to_owned()));
            }
        }
        Ok(notes)
    }

    /// The document as it is now.
    fn read(&self, note: &Note, durable_end: u64) -> Result<Again, String> {
        let named = |corpus: &&CorpusOptions| corpus.name == note.corpus;
        let corpus = self.corpora.iter().find(named);
        if note.sequence.is_some_and(|sequence| sequence >= durable_end) {
            return Err("the log does not hold its entry durably yet; try again in a moment".to_owned());
        }
        if corpus.is_some_and(|corpus| corpus.evaluation_only) {
            return Err("text of evaluate.files is read before all other text, not behind it".to_owned());
        }
        let (text, language) = match (&note.text, &note.path) {
            (Some(text), _) => (text.clone(), note.language.clone()),
            (None, Some(path)) => {
                let corpus = corpus.ok_or_else(|| format!("there is no corpus `{}` any more", note.corpus))?;
                check_file(note, path, &corpus.feed)?;
                let document = DocumentReader::open(path, &corpus.format, note.offset, false)
                    .and_then(|reader| reader.map_or(Ok(None), |mut reader| reader.next_document()))
                    .map_err(|error| error.to_string())?;
                let there = |document: &Document| document.offset_bytes == note.offset;
                let document = document
                    .filter(there)
                    .ok_or_else(|| format!("no document begins at {} of {} now", note.offset, path.display()))?;
                let text = document.text.map_err(|still| format!("{}: {}", still.reason.name(), still.detail))?;
                (text, document.language)
            }
            (None, None) => {
                return Err("its text is not there any more; put it into the note as `text`".to_owned());
            }
        };
        let fixed = corpus.and_then(|corpus| match &corpus.language {
            Language::Fixed(language) => Some(language.clone()),
            Language::Field => None,
        });
        let language = language.or(fixed).ok_or("its language is not known; put it into the note as `language`")?;
        Ok(Again { text, language })
    }

    fn push(&self, note: &Note, again: &Again) -> Result<Receiver<Result<Receipt, PushError>>, String> {
        let Again { text, language } = again;
        let id = format!("{}/{}", note.source, note.document);
        let mut hash = Sha256::new();
        for part in [language, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key =
            hash.finalize().iter().take(12).fold(format!("{}-", note.id), |key, byte| key + &format!("{byte:02x}"));
        let line = json!({"text": text, "id": id, "language": language}).to_string() + "\n";
        let mut batch = self.inbox.batch();
        batch.write(line.as_bytes()).map_err(|error| error.to_string())?;
        let batch = batch.finish(Some(key)).map_err(|error| error.to_string())?;
        let (answer, answered) = bounded(1);
        self.inbox.push(batch, move |outcome| drop(answer.send(outcome)));
        Ok(answered)
    }
}

impl Retried {
    fn refuse(&mut self, id: &str, problem: String) {
        self.refused.push(Refused { id: id.to_owned(), problem });
    }
}

/// Refuses a file of which the corpus itself reads what is there now. Files of a list are read once, whatever becomes of them; but
/// a watched folder brings a file that was changed or replaced once more, and where a followed file was rotated, another one grows.
fn check_file(note: &Note, path: &Path, feed: &FeedOptions) -> Result<(), String> {
    // If it is gone, opening it says so.
    let Some(now) = FileState::at(path) else { return Ok(()) };
    let is_same = match feed {
        FeedOptions::Files(_) | FeedOptions::Spool => true,
        FeedOptions::Watch { .. } => note.file == Some(now),
        FeedOptions::Follow { .. } => note.file.is_some_and(|then| then.inode == now.inode && then.bytes <= now.bytes),
    };
    match is_same {
        true => Ok(()),
        false => Err(format!(
            "{} was changed, or is another file now, and corpus `{}` reads that by itself; put the text that is to be used into \
             the note as `text`",
            path.display(),
            note.corpus
        )),
    }
}

/// Whether the document was there already; or what is wrong with it.
fn accepted(receipt: Receipt) -> Result<bool, String> {
    match receipt.rejected.first() {
        Some(rejected) => Err(format!("{}: {}", rejected.reason, rejected.detail)),
        None => Ok(receipt.duplicate),
    }
}
