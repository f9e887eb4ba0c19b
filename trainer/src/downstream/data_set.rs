//! A task's files, as examples and as sequences.

use super::head::HeadKind;
use super::prediction::{AnswerPredicted, ClassPredicted, Predictions, TagsPredicted};
use super::questions::{self, Question};
use super::sequence;
use super::spans::{self, Window};
use super::texts::{self, ClassifiedText};
use super::words::{self, Columns, TaggedSentence};
use super::{DownstreamError, FineTuneOptions, Metric, Preset, Sequence};
use model::Tokenizer;
use model::random::Philox;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// A kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A tag for each word: parts of speech, named entities.
    Token,
    /// A class for each text.
    Sequence,
    /// A class for each pair of texts.
    Pair,
    /// The place of the answer in a text.
    QuestionAnswering,
}

/// The examples of one file.
#[derive(Clone, Debug)]
pub enum DataSet {
    /// Sentences with a tag for each word.
    Words(Vec<TaggedSentence>),
    /// Texts, or pairs of texts, with a class.
    Texts(Vec<ClassifiedText>),
    /// Questions about texts.
    Questions(Vec<Question>),
}

/// The three parts of a data set.
#[derive(Clone, Debug)]
pub struct Split {
    /// To train on.
    pub train: DataSet,
    /// To choose the best epoch with.
    pub dev: Option<DataSet>,
    /// To score.
    pub test: Option<DataSet>,
}

/// A data set as the network takes it.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) sequences: Vec<Sequence>,
    /// Of questions: the window of each sequence.
    windows: Vec<Window>,
}

impl Task {
    /// The scores that it has.
    #[must_use]
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Token => &[Metric::Accuracy, Metric::Precision, Metric::Recall, Metric::F1],
            Self::Sequence | Self::Pair => &[Metric::Accuracy, Metric::F1],
            Self::QuestionAnswering => &[Metric::F1, Metric::ExactMatch],
        }
    }

    /// The presets that are for it.
    #[must_use]
    pub fn presets(self) -> &'static [Preset] {
        match self {
            Self::Token => &[Preset::Panx, Preset::Udpos],
            Self::Sequence | Self::Pair => &[Preset::Pawsx, Preset::Xnli],
            Self::QuestionAnswering => &[Preset::Xquad, Preset::Mlqa, Preset::Tydiqa],
        }
    }
}

impl DataSet {
    /// Reads a file of examples of `task`.
    ///
    /// # Errors
    /// When it cannot be read, or is not in a format of the task.
    pub fn read(task: Task, path: &Path, columns: Columns) -> Result<Self, DownstreamError> {
        match task {
            Task::Token => words::read(path, columns).map(Self::Words),
            Task::Sequence => texts::read(path, false).map(Self::Texts),
            Task::Pair => texts::read(path, true).map(Self::Texts),
            Task::QuestionAnswering => questions::read(path).map(Self::Questions),
        }
    }

    /// Sentences, texts or questions.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Words(sentences) => sentences.len(),
            Self::Texts(texts) => texts.len(),
            Self::Questions(questions) => questions.len(),
        }
    }

    /// Never: a file without examples is an error.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cuts it into parts of these proportions. Which example comes into which part depends on their number alone, so that parallel texts
    /// are cut alike; questions go by their contexts, so that no text of one part is in another. A part of 0 is none.
    ///
    /// # Errors
    /// When there are too few examples for a part.
    pub fn split(self, parts: [u32; 3]) -> Result<Split, DownstreamError> {
        let units = self.units();
        let count = units.len();
        let whole = parts.iter().map(|part| u64::from(*part)).sum::<u64>().max(1);
        let ends = [parts[0], parts[0] + parts[1]].map(|end| (count as u64 * u64::from(end) / whole) as usize);
        let mut order: Vec<usize> = (0..count).collect();
        Philox::new(0, "split of a data set", &[]).shuffle(&mut order, 0);
        let ranges = [0..ends[0], ends[0]..ends[1], ends[1]..count];
        if let Some(at) = (0..3).find(|at| parts[*at] > 0 && ranges[*at].is_empty()) {
            let name = ["training", "development", "test"][at];
            return Err(DownstreamError::Options(format!(
                "{count} {} leave none for the {name} part of the split",
                if matches!(self, Self::Questions(_)) { "contexts" } else { "examples" }
            )));
        }
        let [train, dev, test] = ranges.map(|range| {
            let mut chosen: Vec<usize> = order[range].iter().flat_map(|unit| units[*unit].clone()).collect();
            chosen.sort_unstable();
            self.select(&chosen)
        });
        let unless_empty = |set: Self| (!set.is_empty()).then_some(set);
        Ok(Split { train, dev: unless_empty(dev), test: unless_empty(test) })
    }

    /// The numbers of the examples that a split keeps together.
    fn units(&self) -> Vec<Vec<usize>> {
        let Self::Questions(questions) = self else { return (0..self.len()).map(|at| vec![at]).collect() };
        let mut units: Vec<Vec<usize>> = Vec::new();
        let mut places = HashMap::new();
        for (at, question) in questions.iter().enumerate() {
            let place = *places.entry(&*question.context).or_insert(units.len());
            if place == units.len() {
                units.push(Vec::new());
            }
            units[place].push(at);
        }
        units
    }

    fn select(&self, chosen: &[usize]) -> Self {
        match self {
            Self::Words(sentences) => Self::Words(chosen.iter().map(|at| sentences[*at].clone()).collect()),
            Self::Texts(texts) => Self::Texts(chosen.iter().map(|at| texts[*at].clone()).collect()),
            Self::Questions(questions) => Self::Questions(chosen.iter().map(|at| questions[*at].clone()).collect()),
        }
    }

    /// The classes that occur, sorted.
    pub(crate) fn classes(&self) -> Vec<String> {
        let classes: BTreeSet<&String> = match self {
            Self::Words(sentences) => sentences.iter().flat_map(|sentence| &sentence.tags).collect(),
            Self::Texts(texts) => texts.iter().map(|text| &text.class).collect(),
            Self::Questions(_) => BTreeSet::new(),
        };
        classes.into_iter().cloned().collect()
    }

    /// The head for this task, given its classes.
    pub(crate) fn head(&self, classes: usize) -> HeadKind {
        match self {
            Self::Words(_) => HeadKind::Tokens(classes),
            Self::Texts(_) => HeadKind::Texts(classes),
            Self::Questions(_) => HeadKind::Spans,
        }
    }

    /// What chooses the best epoch unless somebody says otherwise: F1 of entities, where tags say that there are some.
    #[must_use]
    pub fn usual_metric(&self) -> Metric {
        match self {
            Self::Words(_) if self.classes().iter().any(|class| class.starts_with("B-") || class.starts_with("I-")) => {
                Metric::F1
            }
            Self::Words(_) | Self::Texts(_) => Metric::Accuracy,
            Self::Questions(_) => Metric::F1,
        }
    }

    /// The sequences of all examples.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        options: &FineTuneOptions,
        classes: &[String],
    ) -> Result<Encoded, DownstreamError> {
        let class = |name: &str| classes.binary_search_by(|class| class.as_str().cmp(name)).ok().map(|at| at as u32);
        let length = options.max_length;
        let (sequences, windows) = match self {
            Self::Words(sentences) => (sequence::of_sentences(sentences, tokenizer, length, class)?, Vec::new()),
            Self::Texts(texts) => (sequence::of_texts(texts, tokenizer, length, class)?, Vec::new()),
            Self::Questions(questions) => spans::of_questions(questions, tokenizer, options)?.into_iter().unzip(),
        };
        Ok(Encoded { sequences, windows })
    }

    /// What logits `[rows, outputs]` of each sequence say of the examples.
    pub(crate) fn predictions(&self, logits: &[Vec<f32>], encoded: &Encoded, classes: &[String]) -> Predictions {
        let class = |row: &[f32]| classes.get(largest(row)).cloned().unwrap_or_default();
        match self {
            Self::Words(sentences) => {
                let mut rows = logits.iter().flat_map(|logits| logits.chunks_exact(classes.len()));
                let of = |sentence: &TaggedSentence| TagsPredicted {
                    gold: sentence.tags.clone(),
                    predicted: sentence.tags.iter().map(|_| rows.next().map_or_else(String::new, class)).collect(),
                };
                Predictions::Words(sentences.iter().map(of).collect())
            }
            Self::Texts(texts) => {
                let of = |(text, logits): (&ClassifiedText, &Vec<f32>)| ClassPredicted {
                    gold: text.class.clone(),
                    predicted: class(logits),
                };
                Predictions::Texts(texts.iter().zip(logits).map(of).collect())
            }
            Self::Questions(questions) => {
                let spans = spans::answers(&encoded.windows, logits, questions.len());
                let of = |(question, span): (&Question, Option<(usize, usize)>)| AnswerPredicted {
                    id: question.id.clone(),
                    gold: question.answers.iter().map(|answer| answer.text.clone()).collect(),
                    predicted: span
                        .and_then(|(first, end)| question.context.get(first..end))
                        .unwrap_or_default()
                        .to_owned(),
                };
                Predictions::Questions(questions.iter().zip(spans).map(of).collect())
            }
        }
    }
}

/// Index of the largest value; of equal ones the first.
fn largest(values: &[f32]) -> usize {
    let better = |best: usize, at: usize| if values[at] > values[best] { at } else { best };
    (1..values.len()).fold(0, better)
}
