//! Scores of predictions, in percent.

pub mod entities;

use super::Metric;
use std::collections::BTreeMap;

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

/// `part` of `whole` in percent; 0 of nothing.
pub(crate) fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}
