//! One corpus as a stream of steps: an example, a skipped document, or the end. Each step moves the cursor.

use crate::corpus::{CorpusFile, count_characters, name_files};
use crate::example::{Example, Segmenter};
use crate::reader::{Document, FileReader, Reason, Rejection};
use crate::teacher::TeacherTokenizer;
use crate::{CorpusOptions, IngestError};
use model::random::Philox;
use std::sync::Arc;
use store::SourceCursor;

/// What comes next in a corpus.
pub(crate) enum Step {
    Example { document: Arc<str>, held_out: bool, example: Example },
    Skip { document: Arc<str>, reason: Reason, rejection: Option<Rejection> },
    End,
}

/// A corpus that is being read.
pub(crate) struct CorpusStream {
    options: CorpusOptions,
    files: Vec<CorpusFile>,
    teachers: Arc<[TeacherTokenizer]>,
    /// Tokens per example and copy, without [CLS] and [SEP].
    limit_tokens: usize,
    holdout_fraction: f64,
    cursor: SourceCursor,
    /// The file being read, or to be opened next.
    file_index: usize,
    round: u32,
    /// Whether this round had any document: a corpus without any ends at once.
    round_has_documents: bool,
    reader: Option<FileReader>,
    document: Option<OpenDocument>,
}

/// A document with text that no example has covered yet.
struct OpenDocument {
    id: Arc<str>,
    held_out: bool,
    segmenter: Segmenter,
}

impl CorpusStream {
    /// Opens the corpus at its cursor, or at its start.
    pub(crate) fn open(
        options: &CorpusOptions,
        teachers: Arc<[TeacherTokenizer]>,
        limit_tokens: usize,
        holdout_fraction: f64,
        cursor: Option<&SourceCursor>,
    ) -> Result<Self, IngestError> {
        let files = name_files(&options.name, &options.files)?;
        let cursor = match cursor {
            Some(cursor) => cursor.clone(),
            None => fresh_cursor(options, &files)?,
        };
        let mut stream = Self {
            options: options.clone(),
            files,
            teachers,
            limit_tokens,
            holdout_fraction,
            round: cursor.round,
            cursor,
            file_index: 0,
            round_has_documents: false,
            reader: None,
            document: None,
        };
        stream.resume()?;
        Ok(stream)
    }

    /// The state after the last step.
    pub(crate) fn cursor(&self) -> &SourceCursor {
        &self.cursor
    }

    pub(crate) fn options(&self) -> &CorpusOptions {
        &self.options
    }

    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    /// The next step. After `End` there are no more.
    pub(crate) fn step(&mut self) -> Result<Step, IngestError> {
        if self.document.is_none() {
            let Some(document) = self.next_document()? else {
                self.cursor.ended = true;
                return Ok(Step::End);
            };
            let id = self.enter(document.offset_bytes);
            match document.text {
                Ok(text) if !text.trim().is_empty() => self.document = Some(self.open_document(id, text)),
                Ok(_) => return Ok(self.skip(id, Reason::NoText, None)),
                Err(rejection) => return Ok(self.skip(id, rejection.reason, Some(rejection))),
            }
        }
        self.next_example()
    }

    fn next_example(&mut self) -> Result<Step, IngestError> {
        let Some(open) = &mut self.document else { return Ok(Step::End) };
        let (document, held_out) = (Arc::clone(&open.id), open.held_out);
        let Some(example) = open.segmenter.next()? else {
            self.document = None;
            return Ok(self.skip(document, Reason::NoText, None));
        };
        self.cursor.next_byte = example.span.end;
        if open.segmenter.is_done() {
            self.document = None;
            self.cursor.next_byte = SourceCursor::DOCUMENT_DONE;
        }
        Ok(Step::Example { document, held_out, example })
    }

    fn skip(&mut self, document: Arc<str>, reason: Reason, rejection: Option<Rejection>) -> Step {
        self.cursor.next_byte = SourceCursor::DOCUMENT_DONE;
        Step::Skip { document, reason, rejection }
    }

    /// Moves the cursor to the document at `offset_bytes` of the current file; returns its identifier.
    fn enter(&mut self, offset_bytes: u64) -> Arc<str> {
        let file = &self.files[self.file_index].name;
        self.cursor.file = Arc::clone(file);
        self.cursor.document_offset_bytes = offset_bytes;
        self.cursor.next_byte = 0;
        self.cursor.round = self.round;
        format!("{file}@{offset_bytes}").into()
    }

    fn open_document(&self, id: Arc<str>, text: String) -> OpenDocument {
        let language = Arc::clone(&self.cursor.language);
        let segmenter = Segmenter::new(text, language, Arc::clone(&self.teachers), self.limit_tokens);
        OpenDocument { held_out: self.is_held_out(&id), id, segmenter }
    }

    /// By hash alone, so that runs with other seeds hold out the same documents.
    fn is_held_out(&self, document: &str) -> bool {
        let hash = Philox::new(0, "holdout", &[self.options.name.as_bytes(), document.as_bytes()]);
        self.options.evaluation_only || hash.uniform(0, 0) < self.holdout_fraction
    }

    fn next_document(&mut self) -> Result<Option<Document>, IngestError> {
        loop {
            if let Some(reader) = &mut self.reader {
                if let Some(document) = reader.next_document()? {
                    self.round_has_documents = true;
                    return Ok(Some(document));
                }
                self.reader = None;
                self.file_index += 1;
            }
            if let Some(file) = self.files.get(self.file_index) {
                self.reader = FileReader::open(&file.path, self.options.format, 0)?;
            } else if self.round + 1 < self.rounds() && self.round_has_documents {
                self.round += 1;
                self.file_index = 0;
                self.round_has_documents = false;
            } else {
                return Ok(None);
            }
        }
    }

    fn rounds(&self) -> u32 {
        if self.options.evaluation_only { 1 } else { self.options.rounds }
    }

    /// Goes to where the cursor says. A corpus that has ended, but now has more rounds, goes on with the next.
    fn resume(&mut self) -> Result<(), IngestError> {
        if self.cursor.language.as_ref() != self.options.language {
            return Err(IngestError::Options(format!(
                "corpus `{}` is of language `{}` in the log and of `{}` in the configuration; give it a new name",
                self.options.name, self.cursor.language, self.options.language
            )));
        }
        if self.cursor.ended {
            if self.cursor.file.is_empty() || self.round + 1 >= self.rounds() {
                return Ok(());
            }
            self.cursor.ended = false;
            self.file_index = self.files.len();
            self.round_has_documents = true;
            return Ok(());
        }
        if self.cursor.file.is_empty() {
            return Ok(());
        }
        self.reopen_document()
    }

    fn reopen_document(&mut self) -> Result<(), IngestError> {
        let offset_bytes = self.cursor.document_offset_bytes;
        let Some(file_index) = self.files.iter().position(|file| file.name == self.cursor.file) else {
            return Err(self.changed("it is not among the files of the corpus any more"));
        };
        self.file_index = file_index;
        self.round_has_documents = true;
        let path = &self.files[file_index].path;
        let size_bytes = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) => return Err(self.changed(&format!("now it cannot be opened ({error})"))),
        };
        if size_bytes <= offset_bytes {
            return Err(self.changed(&format!("now it has only {size_bytes} bytes")));
        }
        let other_text = "another text stands there now";
        let Some(mut reader) = FileReader::open(path, self.options.format, offset_bytes)? else {
            return Err(self.changed(other_text));
        };
        let document = reader.next_document()?.filter(|document| document.offset_bytes == offset_bytes);
        self.reader = Some(reader);
        match document {
            None => Err(self.changed(other_text)),
            Some(_) if self.cursor.next_byte == SourceCursor::DOCUMENT_DONE => Ok(()),
            Some(Document { text: Err(_), .. }) => Err(self.changed(other_text)),
            Some(Document { text: Ok(text), .. }) => self.skip_covered(text),
        }
    }

    /// Opens the document at the cursor behind the examples that were made of it already.
    fn skip_covered(&mut self, text: String) -> Result<(), IngestError> {
        let id = format!("{}@{}", self.cursor.file, self.cursor.document_offset_bytes).into();
        let mut open = self.open_document(id, text);
        let mut covered = 0;
        while covered < self.cursor.next_byte {
            match open.segmenter.next()? {
                Some(example) => covered = example.span.end,
                None => return Err(self.changed("the document there is shorter now")),
            }
        }
        if covered > self.cursor.next_byte || open.segmenter.is_done() {
            return Err(self.changed("the document there has changed, or is cut differently since a teacher was added"));
        }
        self.document = Some(open);
        Ok(())
    }

    fn changed(&self, problem: &str) -> IngestError {
        IngestError::Changed {
            corpus: self.options.name.clone(),
            file: self.cursor.file.to_string(),
            offset_bytes: self.cursor.document_offset_bytes,
            problem: problem.to_owned(),
        }
    }
}

fn fresh_cursor(options: &CorpusOptions, files: &[CorpusFile]) -> Result<SourceCursor, IngestError> {
    let mut characters = 0;
    for file in files {
        characters += count_characters(&file.path)?;
    }
    tracing::info!(corpus = options.name, files = files.len(), characters, "corpus opened");
    Ok(SourceCursor::start(options.name.as_str().into(), options.language.as_str().into(), characters))
}
