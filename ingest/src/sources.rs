//! From configured corpora to open streams: which sources there are, and what may not be configured.

use crate::corpus::{Selection, Source};
use crate::duplicates::SeenTexts;
use crate::feed::{Feed, FeedOptions, FeedSetup, Waker};
use crate::quarantine::file_name;
use crate::stream::CorpusStream;
use crate::teacher::TeacherTokenizer;
use crate::{CorpusOptions, IngestError, IngestOptions, IngestTeacher, Language};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use store::{SequenceNumber, SourceCursor};

/// Below this there is no room for a context.
const SHORTEST_SEQUENCE: usize = 16;

/// Opens corpora, before the stage runs and while it does.
pub(crate) struct Opener {
    table: Vec<IngestTeacher>,
    teachers: TeachersByLanguage,
    /// Tokens per example and copy, without [CLS] and [SEP].
    limit_tokens: usize,
    holdout_fraction: f64,
    /// Folder of the manifests.
    feeds: PathBuf,
    /// Woken whenever something arrives.
    waker: Waker,
}

/// The teachers of every language, in the order of their table.
pub(crate) type TeachersByLanguage = BTreeMap<Arc<str>, Arc<[TeacherTokenizer]>>;

impl Opener {
    /// Checks the options; opens nothing yet.
    pub(crate) fn new(
        options: &IngestOptions,
        teachers: Vec<IngestTeacher>,
        waker: Waker,
    ) -> Result<Self, IngestError> {
        validate(options, &teachers)?;
        let opener = Self {
            teachers: teachers_by_language(&teachers),
            table: teachers,
            limit_tokens: options.max_sequence_length - 2,
            holdout_fraction: options.holdout_fraction,
            feeds: options.feeds.clone(),
            waker,
        };
        let sources: Vec<Source> =
            options.corpora.iter().flat_map(|corpus| sources_of(corpus, &opener.table)).collect();
        sources.iter().try_for_each(|source| opener.teachers_of(source).map(drop))?;
        unique(&sources)?;
        Ok(opener)
    }

    /// The sources of a corpus, open at their cursors. What was noted of entries from `next` on never came to be.
    pub(crate) fn open(
        &self,
        corpus: &CorpusOptions,
        spool: Option<&Arc<dyn Feed>>,
        cursors: &BTreeMap<Arc<str>, SourceCursor>,
        next: SequenceNumber,
    ) -> Result<Vec<CorpusStream>, IngestError> {
        validate_corpus(corpus)?;
        let sources = sources_of(corpus, &self.table);
        sources.iter().try_for_each(|source| self.teachers_of(source).map(drop))?;
        let names: Vec<Arc<str>> = sources.iter().map(|source| Arc::clone(&source.name)).collect();
        let setup = FeedSetup {
            corpus: &corpus.name,
            options: &corpus.feed,
            format: &corpus.format,
            manifests: &self.feeds,
            sources: &names,
            count: names.iter().any(|name| !cursors.contains_key(name)),
            spool,
        };
        let feed: Arc<dyn Feed> = setup.open()?;
        feed.changes().subscribe(self.waker.clone());
        let mut streams = Vec::new();
        for source in sources {
            let (feed, cursor) = (Arc::clone(&feed), cursors.get(&source.name));
            let teachers = self.teachers_of(&source)?;
            let path = self.feeds.join(format!("{}.seen", file_name(&source.name)));
            let seen = match source.deduplicate {
                0 => SeenTexts::forget(&path).map(|()| None)?,
                limit => Some(SeenTexts::open(path, limit, next)?),
            };
            let (limit_tokens, holdout_fraction) = (self.limit_tokens, self.holdout_fraction);
            let stream = CorpusStream::open(source, feed, teachers, limit_tokens, holdout_fraction, seen, cursor)?;
            let (files, characters) = (stream.files(), stream.cursor().characters_available);
            if !stream.source().retry || characters > 0 {
                tracing::info!(corpus = &*stream.source().name, files, characters, "corpus opened");
            }
            streams.push(stream);
        }
        Ok(streams)
    }

    /// The names that a corpus takes: its own, and those of its sources.
    pub(crate) fn names(&self, corpus: &CorpusOptions) -> Vec<Arc<str>> {
        let sources = sources_of(corpus, &self.table).into_iter().map(|source| source.name);
        sources.chain([corpus.name.as_str().into()]).collect()
    }

    pub(crate) fn teachers(&self) -> &TeachersByLanguage {
        &self.teachers
    }

    /// Names of the teachers, in the order of their table.
    pub(crate) fn teacher_names(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.table.iter().map(|teacher| teacher.name.as_str().into())
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn teachers_of(&self, source: &Source) -> Result<Arc<[TeacherTokenizer]>, IngestError> {
        self.teachers.get(&source.language).cloned().ok_or_else(|| {
            IngestError::Options(format!(
                "corpus `{}`: no teacher has language `{}`; add it to a teacher's `languages`",
                source.corpus, source.language
            ))
        })
    }
}

/// The corpus itself, or one source for each language of the teachers, in the order of their table: teachers that are
/// added later leave the first one the first.
fn sources_of(corpus: &CorpusOptions, teachers: &[IngestTeacher]) -> Vec<Source> {
    let format = match corpus.feed {
        FeedOptions::Spool => crate::spool::spooled_format(&corpus.format),
        _ => corpus.format.clone(),
    };
    let languages = teachers.iter().flat_map(|teacher| &teacher.languages).map(String::as_str);
    let sources = corpus.sources(languages);
    let languages: Arc<[Arc<str>]> = sources.iter().map(|(_, language)| language.as_str().into()).collect();
    let by_field = corpus.language == Language::Field;
    let selection = |index| Selection { languages: Arc::clone(&languages), first: index == 0 };
    let source = |(index, (name, language)): (usize, (String, String))| Source {
        name: name.into(),
        corpus: corpus.name.as_str().into(),
        language: language.into(),
        selection: by_field.then(|| selection(index)),
        format: format.clone(),
        rounds: corpus.rounds,
        evaluation_only: corpus.evaluation_only,
        finite: corpus.is_finite(),
        spooled: matches!(corpus.feed, FeedOptions::Spool),
        deduplicate: corpus.deduplicate,
        retry: corpus.retry,
    };
    sources.into_iter().enumerate().map(source).collect()
}

fn teachers_by_language(teachers: &[IngestTeacher]) -> TeachersByLanguage {
    let languages: BTreeSet<&String> = teachers.iter().flat_map(|teacher| &teacher.languages).collect();
    let of_language = |language: &String| -> Arc<[TeacherTokenizer]> {
        let table = teachers.iter().enumerate().filter(|(_, teacher)| teacher.languages.contains(language));
        table.map(|(index, teacher)| TeacherTokenizer::new(index as u16, teacher)).collect()
    };
    languages.into_iter().map(|language| (language.as_str().into(), of_language(language))).collect()
}

fn unique(sources: &[Source]) -> Result<(), IngestError> {
    let mut names = BTreeSet::new();
    for source in sources {
        if !names.insert(&source.name) {
            return Err(IngestError::Options(format!("corpus `{}` is there twice; names must differ", source.name)));
        }
    }
    Ok(())
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
    options.corpora.iter().try_for_each(validate_corpus)
}

fn validate_corpus(corpus: &CorpusOptions) -> Result<(), IngestError> {
    corpus.format.validate(&corpus.name)?;
    let finite = corpus.is_finite();
    let by_field = corpus.language == Language::Field;
    let problem = match () {
        () if matches!(&corpus.feed, FeedOptions::Files(files) if files.is_empty()) => "has no files",
        () if corpus.rounds == 0 => "has 0 rounds; it needs at least 1",
        () if corpus.rounds > 1 && !finite => "never ends, so it has one round; leave `rounds` out",
        () if corpus.evaluation_only && !finite => "never ends, so it cannot be read before all others",
        () if by_field && corpus.format.language_field.is_none() => "has neither a language nor a language_field",
        () if !by_field && corpus.format.language_field.is_some() => "has a language and a language_field; give one",
        () => return Ok(()),
    };
    Err(IngestError::Options(format!("corpus `{}` {problem}", corpus.name)))
}
