//! Scores against seqeval.

use crate::golden;
use serde_json::Value;
use trainer::downstream::Metric;
use trainer::downstream::scores::{self, entities::entities};

fn cases(file: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(golden(file)).unwrap()).unwrap()
}

#[test]
fn tags_are_scored_as_seqeval_does() {
    let sentences = |value: &Value| -> Vec<Vec<String>> {
        let of = |sentence: &str| sentence.split_whitespace().map(str::to_owned).collect();
        value.as_str().unwrap().split(" | ").map(of).collect()
    };
    for case in cases("entities.json") {
        let (gold, predicted) = (sentences(&case["gold"]), sentences(&case["predicted"]));
        let expected: Vec<(String, usize, usize)> = serde_json::from_value(case["entities"].clone()).unwrap();
        let found = entities(&gold).into_iter().map(|(kind, first, last)| (kind.to_owned(), first, last));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{case}");
        let found = scores::of_tags(&gold, &predicted);
        for (metric, key) in [
            (Metric::Accuracy, "accuracy"),
            (Metric::Precision, "precision"),
            (Metric::Recall, "recall"),
            (Metric::F1, "f1"),
        ] {
            let expected = case["scores"][key].as_f64().unwrap();
            assert!((found[&metric] - expected).abs() < 1e-9, "{metric}: {} for {case}", found[&metric]);
        }
    }
}
