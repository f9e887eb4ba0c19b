//! A corpus as it is configured: which files, in which form, in which language.

use crate::feed::FeedOptions;
use crate::{FormatOptions, IngestError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One corpus of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Name, unique among the corpora; the `source` of its records, unless it has several languages.
    pub name: String,
    /// Language of its documents.
    pub language: Language,
    /// Where its files come from.
    pub feed: FeedOptions,
    /// How the files are read.
    pub format: FormatOptions,
    /// How often the corpus is labelled, each time with new masks; at least 1.
    pub rounds: u32,
    /// Every document is held out, and all are read once, before any other corpus.
    pub evaluation_only: bool,
    /// A document with the text of one of its source's last so many documents is skipped; 0: none is.
    pub deduplicate: usize,
    /// Documents that are tried again: read before those of other corpora, without a share, and not waited for when all other
    /// input has ended.
    pub retry: bool,
}

/// How the language of a document is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Language {
    /// All documents of the corpus have this one.
    Fixed(String),
    /// It is in the documents' [`FormatOptions::language_field`]. The corpus becomes one source per language of the
    /// teachers, `<name>:<language>`; each reads the whole corpus and passes over the documents of the others.
    Field,
}

impl CorpusOptions {
    /// Its sources, as (name, language): the corpus itself, or one per language of the teachers (`languages`, in the order
    /// of their table; one that comes twice counts once).
    #[must_use]
    pub fn sources<'a>(&self, languages: impl IntoIterator<Item = &'a str>) -> Vec<(String, String)> {
        if let Language::Fixed(language) = &self.language {
            return vec![(self.name.clone(), language.clone())];
        }
        let mut seen = BTreeSet::new();
        let languages = languages.into_iter().filter(|language| seen.insert(*language));
        languages.map(|language| (format!("{}:{language}", self.name), language.to_owned())).collect()
    }

    /// Whether it is there as a whole and ends.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        matches!(self.feed, FeedOptions::Files(_))
    }
}

/// What one stream reads: a corpus, or one language of it.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Name in the log.
    pub(crate) name: Arc<str>,
    /// Name of its corpus.
    pub(crate) corpus: Arc<str>,
    pub(crate) language: Arc<str>,
    /// `None`: every document is its own.
    pub(crate) selection: Option<Selection>,
    pub(crate) format: FormatOptions,
    pub(crate) rounds: u32,
    pub(crate) evaluation_only: bool,
    /// The corpus is a list of files, there as a whole.
    pub(crate) finite: bool,
    /// Its files are those of an inbox.
    pub(crate) spooled: bool,
    /// See [`CorpusOptions::deduplicate`].
    pub(crate) deduplicate: usize,
    /// See [`CorpusOptions::retry`].
    pub(crate) retry: bool,
}

/// Which documents of a corpus with several languages belong to a source.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// Languages of all sources of the corpus.
    pub(crate) languages: Arc<[Arc<str>]>,
    /// Rejects the documents that belong to none.
    pub(crate) first: bool,
}

/// Whose document it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// This source's.
    Here,
    /// Another source's.
    Elsewhere,
    /// Nobody's, and this source says so.
    Nowhere,
}

impl Source {
    pub(crate) fn belongs(&self, language: Option<&str>) -> Belongs {
        let Some(selection) = &self.selection else { return Belongs::Here };
        match language {
            Some(language) if language == &*self.language => Belongs::Here,
            Some(language) if selection.languages.iter().any(|known| &**known == language) => Belongs::Elsewhere,
            _ if selection.first => Belongs::Nowhere,
            _ => Belongs::Elsewhere,
        }
    }

    /// The language under which its feed counts its characters.
    pub(crate) fn counted(&self) -> Option<&str> {
        self.selection.as_ref().map(|_| &*self.language)
    }
}

/// The files that `pattern` (a path, possibly with `*`, `?`, `[…]`, `**`) names, sorted. Folders are left out.
///
/// # Errors
/// When the pattern is malformed or matches no file, or a folder on the way cannot be read.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>, IngestError> {
    if pattern.is_file() {
        return Ok(vec![pattern.to_owned()]);
    }
    let shown = pattern.display().to_string();
    let matches = glob::glob(&shown).map_err(|source| IngestError::Pattern { pattern: shown.clone(), source })?;
    let mut files = Vec::new();
    for found in matches {
        let path = found.map_err(|error| {
            let path = error.path().to_owned();
            IngestError::Io { doing: "list", path, source: error.into() }
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(IngestError::NothingMatches { pattern: shown });
    }
    files.sort();
    Ok(files)
}
