//! Scores against seqeval and the SQuAD script.

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

#[test]
fn answers_are_scored_as_the_squad_script_does() {
    for case in cases("answers.json") {
        let gold: Vec<String> = serde_json::from_value(case["gold"].clone()).unwrap();
        let predicted = case["predicted"].as_str().unwrap();
        let found = scores::of_answers([(predicted, &gold[..])].into_iter());
        for (metric, key) in [(Metric::ExactMatch, "exact_match"), (Metric::F1, "f1")] {
            let expected = case[key].as_f64().unwrap();
            // The golden numbers have single precision.
            assert!((found[&metric] - expected).abs() < 1e-4, "{metric}: {} for {case}", found[&metric]);
        }
    }
}

#[test]
fn classes_are_scored() {
    let found = scores::of_classes(&["a", "a", "b", "c"], &["a", "b", "b", "d"]);
    // F1 of a: 2/3, of b: 2/3, of c and d: 0.
    assert!((found[&Metric::F1] - 100.0 / 3.0).abs() < 1e-9 && found[&Metric::Accuracy] == 50.0, "{found:?}");
}
