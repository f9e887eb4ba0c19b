//! Tables of scores by model and language, with the relative distance to the teachers.
//!
//! RDT of a student (paper, section 4.1, with the sign of its tables: positive where the student is ahead): 100/n · Σ (P_S − P_T) / P_T over all pairs of a
//! language and a teacher of it. It is taken seed by seed, a student's run against the teachers' runs of the same seed, so that its spread is that of a
//! difference.

use super::Metric;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What a model is in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What others are compared with.
    Teacher,
    /// What is compared.
    Student,
}

/// One run: a model fine-tuned on one language with one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The model's name.
    pub model: String,
    /// What it is.
    pub role: Role,
    /// Language of the training examples.
    pub trained_on: String,
    /// Its seed.
    pub seed: u64,
    /// The score of each language's test examples, in percent; `None` if training diverged.
    pub scores: BTreeMap<String, Option<f64>>,
}

/// Which scores a table shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// Each language by the model that was fine-tuned on it.
    InLanguage,
    /// Each language by the model that was fine-tuned on this one.
    ZeroShot(String),
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Standard deviation over the seeds (of a sample: divided by their number less one); 0 of one seed.
    pub deviation: f64,
    /// How many seeds.
    pub seeds: usize,
}

/// The scores of one task in one setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// The task's name.
    pub task: String,
    /// Which scores.
    pub setting: Setting,
    /// What they are.
    pub metric: Metric,
    /// The columns.
    pub languages: Vec<String>,
    /// A row for each model.
    pub rows: Vec<Row>,
}

/// A model's scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub model: String,
    /// What it is.
    pub role: Role,
    /// `[languages]`: none where it was not tested, or diverged with every seed.
    pub scores: Vec<Option<Spread>>,
    /// The mean over its languages; none if no seed has a score in all of them.
    pub mean: Option<Spread>,
    /// Of a student: the relative distance to the teachers.
    pub rdt: Option<Spread>,
    /// Pairs of a language and a teacher in it.
    pub rdt_pairs: usize,
}

/// Scores by seed, of one model; `None` if training diverged.
type BySeed<'a> = BTreeMap<u64, BTreeMap<&'a str, Option<f64>>>;

impl Table {
    /// Makes a table of a task's runs; `languages` and the order of models are those of the runs' first appearance. `None` if no run
    /// belongs into it.
    #[must_use]
    pub fn new(task: &str, setting: Setting, metric: Metric, outcomes: &[Outcome]) -> Option<Self> {
        let mut models: Vec<(&str, Role, BySeed<'_>)> = Vec::new();
        let mut languages: Vec<&str> = Vec::new();
        for outcome in outcomes {
            for (language, score) in outcome.scores.iter().filter(|(language, _)| setting.shows(outcome, language)) {
                if !languages.contains(&language.as_str()) {
                    languages.push(language);
                }
                let at = models.iter().position(|(model, ..)| *model == outcome.model).unwrap_or_else(|| {
                    models.push((&outcome.model, outcome.role, BySeed::new()));
                    models.len() - 1
                });
                models[at].2.entry(outcome.seed).or_default().insert(language, *score);
            }
        }
        if models.is_empty() {
            return None;
        }
        let teachers: Vec<&BySeed<'_>> =
            models.iter().filter(|(_, role, _)| *role == Role::Teacher).map(|(.., by_seed)| by_seed).collect();
        let rows = models.iter().map(|(model, role, by_seed)| {
            let rdt = (*role == Role::Student).then(|| rdt(by_seed, &teachers)).flatten();
            Row {
                model: (*model).to_owned(),
                role: *role,
                scores: languages.iter().map(|language| of_language(by_seed, language)).collect(),
                mean: mean_of_languages(by_seed),
                rdt: rdt.map(|(spread, _)| spread),
                rdt_pairs: rdt.map_or(0, |(_, pairs)| pairs),
            }
        });
        let rows = rows.collect();
        let languages = languages.into_iter().map(str::to_owned).collect();
        Some(Self { task: task.to_owned(), setting, metric, languages, rows })
    }

    /// The table for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let cells = self.cells();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        let mut text = format!("{}\n", self.title());
        for row in &cells {
            let padded = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  ").trim_end());
        }
        text
    }

    /// The table in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let cells = self.cells();
        let line = |row: &[String]| format!("| {} |\n", row.join(" | "));
        let rule = (0..cells[0].len()).map(|column| if column == 0 { "---" } else { "---:" }.to_owned());
        let mut text = format!("**{}**\n\n{}{}", self.title(), line(&cells[0]), line(&rule.collect::<Vec<_>>()));
        cells[1..].iter().for_each(|row| text.push_str(&line(row)));
        text
    }

    fn title(&self) -> String {
        match &self.setting {
            Setting::InLanguage => format!("{}, {}, in-language", self.task, self.metric),
            Setting::ZeroShot(from) => format!("{}, {}, zero-shot from {from}", self.task, self.metric),
        }
    }

    /// All cells, the heading first.
    fn cells(&self) -> Vec<Vec<String>> {
        let heading = ["model", "role"].into_iter().chain(self.languages.iter().map(String::as_str));
        let heading = heading.chain(["mean", "RDT"]).map(str::to_owned).collect();
        let shown = |spread: &Option<Spread>| spread.map_or_else(|| "–".to_owned(), |spread| spread.shown(2, false));
        let row = |row: &Row| {
            let role = match row.role {
                Role::Teacher => "teacher",
                Role::Student => "student",
            };
            let mut cells = vec![row.model.clone(), role.to_owned()];
            cells.extend(row.scores.iter().map(shown));
            cells.push(shown(&row.mean));
            cells.push(row.rdt.map_or_else(|| "–".to_owned(), |rdt| format!("{} %", rdt.shown(1, true))));
            cells
        };
        [heading].into_iter().chain(self.rows.iter().map(row)).collect()
    }
}

impl Setting {
    fn shows(&self, outcome: &Outcome, language: &str) -> bool {
        match self {
            Self::InLanguage => outcome.trained_on == language,
            Self::ZeroShot(from) => outcome.trained_on == *from && language != from,
        }
    }
}

impl Spread {
    /// Of one value for each seed; `None` of none.
    fn of(values: &[f64]) -> Option<Self> {
        let seeds = values.len();
        let mean = values.iter().sum::<f64>() / seeds.max(1) as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = if seeds > 1 { (squares / (seeds - 1) as f64).sqrt() } else { 0.0 };
        (seeds > 0).then_some(Self { mean, deviation, seeds })
    }

    fn shown(self, digits: usize, signed: bool) -> String {
        let mean = if signed { format!("{:+.digits$}", self.mean) } else { format!("{:.digits$}", self.mean) };
        if self.seeds > 1 { format!("{mean} ± {:.digits$}", self.deviation) } else { mean }
    }
}

fn of_language(by_seed: &BySeed<'_>, language: &str) -> Option<Spread> {
    Spread::of(&by_seed.values().filter_map(|scores| scores.get(language).copied().flatten()).collect::<Vec<_>>())
}

/// Over the seeds that have all languages of the model.
fn mean_of_languages(by_seed: &BySeed<'_>) -> Option<Spread> {
    let languages: BTreeSet<&str> = by_seed.values().flat_map(|scores| scores.keys().copied()).collect();
    let whole = by_seed.values().filter(|scores| scores.len() == languages.len());
    let sums = whole.filter_map(|scores| scores.values().copied().sum::<Option<f64>>());
    Spread::of(&sums.map(|sum| sum / languages.len() as f64).collect::<Vec<_>>())
}

/// Over the seeds that student and teachers have in common, and only if each has all pairs; with the number of pairs.
fn rdt(student: &BySeed<'_>, teachers: &[&BySeed<'_>]) -> Option<(Spread, usize)> {
    let of_seed = |(seed, scores): (&u64, &BTreeMap<&str, Option<f64>>)| -> Vec<Option<f64>> {
        let of_teachers = teachers.iter().filter_map(|teacher| teacher.get(seed)).flatten();
        let pairs = of_teachers.filter_map(|(language, teacher)| Some((scores.get(language)?, teacher)));
        pairs
            .filter(|(_, teacher)| teacher.is_none_or(|teacher| teacher > 0.0))
            .map(|(score, teacher)| score.zip(*teacher))
            .map(|pair| pair.map(|(score, teacher)| 100.0 * (score - teacher) / teacher))
            .collect()
    };
    let by_seed: Vec<Vec<Option<f64>>> = student.iter().map(of_seed).collect();
    let pairs = by_seed.iter().map(Vec::len).max().filter(|pairs| *pairs > 0)?;
    let whole = by_seed.iter().filter(|distances| distances.len() == pairs);
    let sums = whole.filter_map(|distances| distances.iter().copied().sum::<Option<f64>>());
    let means: Vec<f64> = sums.map(|sum| sum / pairs as f64).collect();
    Spread::of(&means).map(|spread| (spread, pairs))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(model: &str, trained_on: &str, seed: u64, scores: &[(&str, f64)]) -> Outcome {
        Outcome {
            model: model.to_owned(),
            role: if model.starts_with('t') { Role::Teacher } else { Role::Student },
            trained_on: trained_on.to_owned(),
            seed,
            scores: scores.iter().map(|(language, score)| ((*language).to_owned(), Some(*score))).collect(),
        }
    }

    fn diverged(model: &str, trained_on: &str, seed: u64) -> Outcome {
        Outcome { scores: [(trained_on.to_owned(), None)].into(), ..outcome(model, trained_on, seed, &[]) }
    }

    /// Neither a mean nor a distance is taken over fewer languages than those of the others.
    #[test]
    fn runs_that_diverge_have_no_score() {
        let outcomes = [
            diverged("t-de", "de", 0),
            outcome("t-de", "de", 1, &[("de", 50.0)]),
            outcome("s-a", "de", 0, &[("de", 40.0)]),
            outcome("s-a", "de", 1, &[("de", 60.0)]),
            outcome("s-a", "en", 0, &[("en", 60.0)]),
            outcome("s-a", "en", 1, &[("en", 70.0)]),
            diverged("s-b", "de", 0),
            outcome("s-b", "en", 0, &[("en", 90.0)]),
        ];
        let table = Table::new("pos", Setting::InLanguage, Metric::Accuracy, &outcomes).unwrap();
        assert_eq!(
            table.text(),
            "pos, accuracy, in-language\n\
             model     role             de            en           mean      RDT\n\
             t-de   teacher          50.00             –          50.00        –\n\
             s-a    student  50.00 ± 14.14  65.00 ± 7.07  57.50 ± 10.61  +20.0 %\n\
             s-b    student              –         90.00              –        –\n"
        );
    }

    #[test]
    fn rdt_is_relative_to_each_teacher_of_each_language() {
        let outcomes = [
            outcome("t-en", "en", 0, &[("en", 80.0)]),
            outcome("t-de", "de", 0, &[("de", 50.0)]),
            outcome("t-both", "en", 0, &[("en", 64.0)]),
            outcome("student", "en", 0, &[("en", 72.0), ("de", 40.0)]),
            outcome("student", "de", 0, &[("de", 55.0)]),
            outcome("student", "en", 1, &[("en", 74.0)]),
        ];
        let table = Table::new("pos", Setting::InLanguage, Metric::Accuracy, &outcomes).unwrap();
        assert_eq!(table.languages, ["en", "de"]);
        let student = &table.rows[3];
        // −10 %, +10 % and +12.5 %.
        assert!((student.rdt.unwrap().mean - 12.5 / 3.0).abs() < 1e-9, "{student:?}");
        assert_eq!((student.rdt.unwrap().seeds, student.rdt_pairs), (1, 3));
        let english = student.scores[0].unwrap();
        assert!((english.mean, english.seeds) == (73.0, 2) && (english.deviation - 2.0_f64.sqrt()).abs() < 1e-9);
        assert_eq!(student.mean.unwrap().mean, 63.5);
        assert_eq!(table.rows[0].rdt, None);
        assert_eq!(
            table.text(),
            "pos, accuracy, in-language\n\
             model       role            en     de   mean     RDT\n\
             t-en     teacher         80.00      –  80.00       –\n\
             t-de     teacher             –  50.00  50.00       –\n\
             t-both   teacher         64.00      –  64.00       –\n\
             student  student  73.00 ± 1.41  55.00  63.50  +4.2 %\n"
        );
        let markdown = table.markdown();
        assert!(markdown.contains("| model | role | en | de | mean | RDT |\n| --- | ---: |"), "{markdown}");

        let table = Table::new("pos", Setting::ZeroShot("en".to_owned()), Metric::F1, &outcomes).unwrap();
        assert_eq!((table.languages.len(), table.rows.len(), table.rows[0].rdt), (1, 1, None));
        assert_eq!(Table::new("pos", Setting::ZeroShot("de".to_owned()), Metric::F1, &outcomes), None);
    }
}
