//! The documents of one source, part after part of its feed.

use crate::IngestError;
use crate::corpus::{Belongs, Source};
use crate::feed::{Extent, Feed, Found, Part};
use crate::format::{Document, DocumentReader, Reason, Rejection};
use std::path::Path;
use std::sync::Arc;
use store::SourceCursor;

/// Documents of other sources that are passed over before others get their turn.
const SEARCH_DOCUMENTS: usize = 256;
/// Documents of other sources that are passed over before the log is told.
const PASSED_DOCUMENTS: u64 = 65_536;
/// A file that is renamed while it is opened is looked for again, this often.
const OPEN_ATTEMPTS: usize = 8;
const OTHER_TEXT: &str = "another text stands there now";

/// What comes next in a source.
#[derive(Debug)]
pub(crate) enum Next {
    /// A document of this source, in the part of that name.
    Document { part: Arc<str>, document: Document },
    /// Documents of other sources, of which the last one begins here.
    Passed { part: Arc<str>, offset_bytes: u64 },
    /// A part without any document.
    Empty { part: Arc<str> },
    /// Nothing yet: documents of other sources were passed over, and there are more.
    Searching,
    /// Nothing now, but more may come.
    Dry,
    /// Nothing, and nothing will come.
    End,
}

/// Reads the documents of one source.
pub(crate) struct Documents {
    source: Arc<Source>,
    feed: Arc<dyn Feed>,
    part: Option<OpenPart>,
    /// The last part that was read to its end.
    behind: Option<Arc<str>>,
}

/// The part that is being read.
struct OpenPart {
    part: Part,
    /// `None`: it holds nothing.
    reader: Option<DocumentReader>,
    sealed: bool,
    /// Whether anything of it was handed out.
    used: bool,
    /// Documents of other sources since then, and where the last one begins.
    passed: u64,
    last_passed: u64,
}

/// What stands where a source goes on.
pub(crate) enum Reopened {
    /// This document; `None`: its part held none, or was removed when it was done with.
    At(Option<Document>),
    /// Nothing that is to be looked for: the rest of the part was given up, in the middle of a document or not.
    Forgotten,
}

impl Documents {
    pub(crate) fn new(source: Arc<Source>, feed: Arc<dyn Feed>) -> Self {
        Self { source, feed, part: None, behind: None }
    }

    pub(crate) fn feed(&self) -> &dyn Feed {
        &*self.feed
    }

    /// The file that is being read.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.part.as_ref().map(|open| &*open.part.path)
    }

    /// Begins again with the first part.
    pub(crate) fn rewind(&mut self) {
        (self.part, self.behind) = (None, None);
    }

    /// Goes on behind the part in which `cursor` stands.
    pub(crate) fn go_behind(&mut self, cursor: &SourceCursor) {
        (self.part, self.behind) = (None, Some(Arc::clone(&cursor.file)));
    }

    /// Goes on behind the document at `cursor`, which is returned unless its part was removed when it was done with.
    pub(crate) fn reopen(&mut self, cursor: &SourceCursor) -> Result<Reopened, IngestError> {
        let offset_bytes = cursor.document_offset_bytes;
        let changed = |problem: &str| self.changed(&cursor.file, offset_bytes, problem);
        let part = match self.feed.find(cursor) {
            Found::Part(part) => part,
            Found::Removed => {
                self.go_behind(cursor);
                return Ok(Reopened::At(None));
            }
            Found::Forgotten => {
                self.go_behind(cursor);
                return Ok(Reopened::Forgotten);
            }
            Found::Missing(problem) => return Err(changed(&problem)),
        };
        self.feed.verify(&part).map_err(|problem| changed(&problem))?;
        let Extent { growing, readable_bytes } = self.feed.extent(&part.name);
        let Some(mut reader) = DocumentReader::open(&part.path, &self.source.format, offset_bytes, growing)? else {
            return Err(changed(OTHER_TEXT));
        };
        reader.limit(readable_bytes)?;
        let document = reader.next_document()?.filter(|document| document.offset_bytes == offset_bytes);
        // The start of a part stands for all of it if it had no document.
        if document.is_none() && (offset_bytes > 0 || cursor.next_byte != SourceCursor::DOCUMENT_DONE) {
            return Err(changed(OTHER_TEXT));
        }
        let mut open = OpenPart::new(part, Some(reader), !growing);
        open.used = true;
        self.part = Some(open);
        Ok(Reopened::At(document))
    }

    /// What comes next; `cursor` is the source's, which is told to the feed at the end of a part.
    pub(crate) fn next(&mut self, cursor: &SourceCursor) -> Result<Next, IngestError> {
        for _ in 0..SEARCH_DOCUMENTS {
            let closed = self.feed.closed(); // Asked first: it may be closed while its last part is looked for.
            if self.part.is_none() && !self.open_next()? {
                return Ok(if closed { Next::End } else { Next::Dry });
            }
            let Some(open) = &mut self.part else { continue };
            let extent = self.feed.extent(&open.part.name);
            let document = match open.document(extent)? {
                Some(document) => document,
                None if extent.growing => return Ok(Next::Dry),
                None => match self.end_part(cursor)? {
                    Some(next) => return Ok(next),
                    None => continue,
                },
            };
            store::pulse::beat();
            if let Err(problem) = self.feed.verify(&open.part) {
                let name = Arc::clone(&open.part.name);
                return Err(self.changed(&name, document.offset_bytes, &problem));
            }
            if let Some(next) = self.sort(document) {
                return Ok(next);
            }
        }
        Ok(Next::Searching)
    }

    /// The document if it is for this source to use or to reject.
    fn sort(&mut self, mut document: Document) -> Option<Next> {
        let open = self.part.as_mut()?;
        match self.source.belongs(document.language.as_deref()) {
            Belongs::Here => {}
            Belongs::Nowhere => {
                let language = document.language.take().unwrap_or_default();
                document.text = document.text.and_then(|text| Err(unknown_language(&language, &text)));
            }
            Belongs::Elsewhere => {
                open.passed += 1;
                open.last_passed = document.offset_bytes;
                return (open.passed == PASSED_DOCUMENTS).then(|| open.tell_passed());
            }
        }
        open.used = true;
        open.passed = 0;
        document.arrived_ms =
            document.arrived_ms.or_else(|| self.feed.arrived_ms(&open.part.name, document.offset_bytes));
        Some(Next::Document { part: Arc::clone(&open.part.name), document })
    }

    /// The part holds nothing more. What the log has to be told before it is left, if anything.
    fn end_part(&mut self, cursor: &SourceCursor) -> Result<Option<Next>, IngestError> {
        let Some(open) = &mut self.part else { return Ok(None) };
        if open.passed > 0 {
            return Ok(Some(open.tell_passed()));
        }
        if !open.used && !self.source.finite {
            open.used = true;
            return Ok(Some(Next::Empty { part: Arc::clone(&open.part.name) }));
        }
        self.feed.finished(&open.part.name, cursor)?;
        self.behind = self.part.take().map(|open| open.part.name);
        Ok(None)
    }

    fn open_next(&mut self) -> Result<bool, IngestError> {
        for _ in 0..OPEN_ATTEMPTS {
            let behind = self.behind.as_deref();
            let Some(part) = self.feed.following(behind) else { return Ok(false) };
            let growing = self.feed.extent(&part.name).growing;
            let opened = DocumentReader::open(&part.path, &self.source.format, 0, growing);
            // Rotation may rename it at this very moment.
            if self.feed.following(behind).is_none_or(|again| again.path != part.path) {
                continue;
            }
            let (corpus, file) = (self.source.corpus.to_string(), part.name.to_string());
            match opened {
                Err(IngestError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    let problem = format!("{} is not there", part.path.display());
                    return Err(IngestError::Gone { corpus, file, problem });
                }
                Err(error) => return Err(error),
                Ok(reader) => {
                    self.feed.verify(&part).map_err(|problem| self.changed(&part.name, 0, &problem))?;
                    self.part = Some(OpenPart::new(part, reader, !growing));
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    pub(crate) fn changed(&self, file: &str, offset_bytes: u64, problem: &str) -> IngestError {
        let (corpus, file, problem) = (self.source.corpus.to_string(), file.to_owned(), problem.to_owned());
        IngestError::Changed { corpus, file, offset_bytes, problem }
    }
}

impl OpenPart {
    fn new(part: Part, reader: Option<DocumentReader>, sealed: bool) -> Self {
        Self { part, reader, sealed, used: false, passed: 0, last_passed: 0 }
    }

    /// `extent` was asked for before: what is at the end now is all there is if the part does not grow.
    fn document(&mut self, extent: Extent) -> Result<Option<Document>, IngestError> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        reader.limit(extent.readable_bytes)?;
        if !extent.growing && !self.sealed {
            reader.seal();
            self.sealed = true;
        }
        reader.next_document()
    }

    fn tell_passed(&mut self) -> Next {
        self.used = true;
        self.passed = 0;
        Next::Passed { part: Arc::clone(&self.part.name), offset_bytes: self.last_passed }
    }
}

fn unknown_language(language: &str, text: &str) -> Rejection {
    let shown: String = language.chars().take(40).collect();
    Rejection::new(Reason::UnknownLanguage, format!("no teacher has language `{shown}`"), text.as_bytes())
        .with_language(Some(language.to_owned()))
}
