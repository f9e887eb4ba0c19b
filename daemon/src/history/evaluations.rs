//! The evaluations of a training, thinned for drawing.

use super::steps::short;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use trainer::{EvaluationReport, LanguageEvaluation, TeacherEvaluation};

/// Evaluations kept, at most.
const EVALUATIONS: usize = 200;

/// The evaluations, in the order of their steps; the first and the latest are always there.
#[derive(Clone, Debug, Default)]
pub struct Evaluations {
    /// Steps between two that are kept, at least.
    gap: u64,
    kept: Vec<EvaluationReport>,
}

impl Evaluations {
    /// Takes one in. If there was one of this step or a later one, training went back and this is what counts.
    pub fn push(&mut self, report: EvaluationReport) {
        self.kept.retain(|kept| kept.step < report.step);
        if let [.., before, last] = self.kept.as_slice()
            && last.step - before.step < self.gap
        {
            self.kept.pop();
        }
        self.kept.push(report);
        if self.kept.len() > EVALUATIONS {
            self.thin();
        }
    }

    /// Forgets those after `step`.
    pub fn cut(&mut self, step: u64) {
        self.kept.retain(|kept| kept.step <= step);
    }

    /// Goes on with those of `later` that come after the last one.
    pub fn append(&mut self, later: Self) {
        let end = self.kept.last().map(|kept| kept.step);
        later
            .kept
            .into_iter()
            .filter(|report| end.is_none_or(|end| report.step > end))
            .for_each(|report| self.push(report));
    }

    /// Those after step `since`, or at 0 if that is 0, as columns of at most `points` values: by language, and by teacher.
    pub fn columns(&self, since: u64, points: usize) -> Value {
        let after: Vec<_> = self.kept.iter().filter(|kept| since == 0 || kept.step > since).collect();
        let every = after.len().div_ceil(points.max(1)).max(1);
        let last = after.len().saturating_sub(1);
        let picked = after.iter().enumerate().filter(|(index, _)| (last - index).is_multiple_of(every));
        let shown: Vec<&EvaluationReport> = picked.map(|(_, report)| *report).collect();
        let names: BTreeSet<&String> = shown.iter().flat_map(|report| report.languages.keys()).collect();
        let languages = names.into_iter().map(|name| {
            let reports: Vec<_> = shown.iter().map(|report| report.languages.get(name)).collect();
            (name.clone(), language(&reports))
        });
        json!({
            "step": shown.iter().map(|report| report.step).collect::<Vec<_>>(),
            "languages": languages.collect::<BTreeMap<_, _>>(),
        })
    }

    /// Keeps every second one, and the latest.
    fn thin(&mut self) {
        let last = self.kept.len().saturating_sub(1);
        let mut index = 0;
        self.kept.retain(|_| {
            index += 1;
            (index - 1) % 2 == 0 || index - 1 == last
        });
        if let [first, second, ..] = self.kept.as_slice() {
            self.gap = second.step - first.step;
        }
    }
}

fn language(reports: &[Option<&LanguageEvaluation>]) -> Value {
    let column =
        |of: fn(&LanguageEvaluation) -> f64| -> Value { reports.iter().map(|report| short(report.map(of))).collect() };
    let names: BTreeSet<&String> = reports.iter().flatten().flat_map(|report| report.teachers.keys()).collect();
    let teachers = names.into_iter().map(|name| {
        let reports: Vec<_> =
            reports.iter().map(|report| report.and_then(|report| report.teachers.get(name))).collect();
        (name.clone(), teacher(&reports))
    });
    json!({
        "student_loss": column(|report| report.student_loss),
        "student_top1": column(|report| report.student_top1),
        "teachers": teachers.collect::<Map<_, _>>(),
    })
}

fn teacher(reports: &[Option<&TeacherEvaluation>]) -> Value {
    let column = |of: fn(&TeacherEvaluation) -> Option<f64>| -> Value {
        reports.iter().map(|report| short(report.and_then(of))).collect()
    };
    json!({
        "loss": column(|report| Some(report.loss)),
        "top1": column(|report| Some(report.top1)),
        "student_loss": column(|report| Some(report.student_loss)),
        "student_top1": column(|report| Some(report.student_top1)),
        "rdt": column(|report| report.rdt),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report(step: u64, languages: &[&str]) -> EvaluationReport {
        let teacher = TeacherEvaluation { loss: 2.0, top1: 0.5, rdt: Some(-10.0), ..TeacherEvaluation::default() };
        let teachers = BTreeMap::from([("one".to_owned(), teacher)]);
        let language = LanguageEvaluation { student_loss: step as f64, teachers, ..LanguageEvaluation::default() };
        let languages = languages.iter().map(|name| ((*name).to_owned(), language.clone())).collect();
        EvaluationReport { step, languages, ..EvaluationReport::default() }
    }

    fn shown(evaluations: &Evaluations, since: u64, points: usize) -> Vec<u64> {
        evaluations.columns(since, points)["step"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| step.as_u64().unwrap())
            .collect()
    }

    #[test]
    fn the_first_and_the_latest_are_there_however_many_there_were() {
        let mut evaluations = Evaluations::default();
        for number in 0..=10_000 {
            evaluations.push(report(number * 250, &["en"]));
            assert!(evaluations.kept.len() <= EVALUATIONS);
        }
        let steps = shown(&evaluations, 0, 1000);
        assert!(steps.len() > EVALUATIONS / 4, "{}", steps.len());
        assert_eq!((steps[0], *steps.last().unwrap()), (0, 2_500_000));
        let gaps: BTreeSet<u64> = steps.windows(2).rev().skip(1).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps.len(), 1, "evenly spaced but for the latest: {gaps:?}");
        let few = shown(&evaluations, 0, 10);
        assert!(few.len() <= 10 && few.last() == Some(&2_500_000), "{few:?}");
        assert!(shown(&evaluations, 2_000_000, 1000).iter().all(|step| *step > 2_000_000));
    }

    #[test]
    fn a_language_that_came_later_has_no_figures_before() {
        let mut evaluations = Evaluations::default();
        evaluations.push(report(0, &["en"]));
        evaluations.push(report(10, &["de", "en"]));
        let columns = evaluations.columns(0, 10);
        assert_eq!(columns["languages"]["de"]["student_loss"], json!([null, 10]));
        assert_eq!(columns["languages"]["en"]["teachers"]["one"]["rdt"], json!([-10, -10]));
    }

    #[test]
    fn evaluations_that_are_made_again_replace_those_before() {
        let mut evaluations = Evaluations::default();
        [0, 10, 20, 30].into_iter().for_each(|step| evaluations.push(report(step, &["en"])));
        evaluations.push(report(20, &["en"]));
        assert_eq!(shown(&evaluations, 0, 10), [0, 10, 20]);
        evaluations.cut(10);
        let mut later = Evaluations::default();
        [10, 20].into_iter().for_each(|step| later.push(report(step, &["en"])));
        evaluations.append(later);
        assert_eq!(shown(&evaluations, 0, 10), [0, 10, 20]);
    }
}
