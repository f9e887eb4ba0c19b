//! Scores of predictions, in percent.

pub mod answers;
pub mod entities;

use super::Metric;
use std::collections::{BTreeMap, BTreeSet};

/// Scores by metric.
pub type Scores = BTreeMap<Metric, f64>;

/// Scores of tagged sentences: accuracy by word, and precision, recall and F1 of entities as [`entities`] has them (where tags have no
/// IOB prefix, as parts of speech, that is what XTREME calls their F1).
#[must_use]
pub fn of_tags<S: AsRef<str>>(gold: &[Vec<S>], predicted: &[Vec<S>]) -> Scores {
    let words = gold.iter().flatten().zip(predicted.iter().flatten());
    let right = words.clone().filter(|(gold, predicted)| gold.as_ref() == predicted.as_ref()).count();
    let [precision, recall, f1] = entities::count(gold, predicted).percentages();
    Scores::from([
        (Metric::Accuracy, percent(right, words.count())),
        (Metric::Precision, precision),
        (Metric::Recall, recall),
        (Metric::F1, f1),
    ])
}

/// Scores of classes: accuracy, and the mean of the F1 of each class that is gold or was predicted.
#[must_use]
pub fn of_classes(gold: &[&str], predicted: &[&str]) -> Scores {
    let right = gold.iter().zip(predicted).filter(|(gold, predicted)| gold == predicted).count();
    let classes: BTreeSet<&str> = gold.iter().chain(predicted).copied().collect();
    let f1 = |class: &&str| {
        let among = |classes: &[&str]| classes.iter().filter(|found| *found == class).count();
        let common = gold.iter().zip(predicted).filter(|(gold, predicted)| gold == predicted && gold == &class).count();
        percent(2 * common, among(gold) + among(predicted))
    };
    let sum: f64 = classes.iter().map(f1).sum();
    Scores::from([(Metric::Accuracy, percent(right, gold.len())), (Metric::F1, sum / classes.len().max(1) as f64)])
}

/// Scores of answers, each with its gold answers.
#[must_use]
pub fn of_answers<'a, S: AsRef<str> + 'a>(answers: impl Iterator<Item = (&'a str, &'a [S])>) -> Scores {
    let (mut exact, mut f1, mut count) = (0.0, 0.0, 0.0);
    for (predicted, gold) in answers {
        let (one_exact, one_f1) = answers::score(predicted, gold);
        (exact, f1, count) = (exact + one_exact, f1 + one_f1, count + 1.0);
    }
    let mean = |sum: f64| if count > 0.0 { 100.0 * sum / count } else { 0.0 };
    Scores::from([(Metric::F1, mean(f1)), (Metric::ExactMatch, mean(exact))])
}

/// `part` of `whole` in percent; 0 of nothing.
pub(crate) fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}
