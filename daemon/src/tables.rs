//! Evaluations as text.

use trainer::{EvaluationReport, TeacherEvaluation};

/// One line per language and teacher; where none labels, one with the student's own figures.
pub fn evaluation_lines(report: &EvaluationReport) -> Vec<String> {
    let mut lines = vec![format!(
        "step {:>6}  {:<9}{:<12}{:>22}{:>22}{:>9}{:>22}{:>8}{:>7}",
        report.step,
        "language",
        "teacher",
        "teacher loss / top-1",
        "student loss / top-1",
        "RDT %",
        "ECE teacher / student",
        "agree",
        "mass"
    )];
    for (language, scores) in &report.languages {
        if scores.teachers.is_empty() {
            let (loss, top1) = (scores.student_loss, scores.student_top1);
            let ece = format!("– / {}", known(scores.student_ece));
            let line = format!("{language:<9}{:<12}{:>22}{loss:>14.3} / {top1:.3}{:>9}{ece:>22}", "–", "–", "–");
            lines.push(format!("             {line}{:>8}{:>7}", "–", "–"));
        }
        let pairs = scores.teachers.iter();
        lines
            .extend(pairs.map(|(teacher, pair)| format!("             {language:<9}{teacher:<12}{}", pair_line(pair))));
    }
    lines
}

fn pair_line(pair: &TeacherEvaluation) -> String {
    let rdt = pair.rdt.map_or("–".to_owned(), |rdt| format!("{rdt:+.1}"));
    let ece = format!("{} / {}", known(pair.ece), known(pair.student_ece));
    format!(
        "{:>14.3} / {:.3}{:>14.3} / {:.3}{rdt:>9}{ece:>22}{:>8}{:>7}",
        pair.loss,
        pair.top1,
        pair.student_loss,
        pair.student_top1,
        known(pair.agreement),
        known(pair.retained_mass)
    )
}

fn known(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), |share| format!("{share:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use trainer::LanguageEvaluation;

    #[test]
    fn what_is_unknown_has_its_place() {
        let known = TeacherEvaluation {
            rdt: Some(-12.5),
            ece: Some(0.1),
            student_ece: Some(0.2),
            agreement: Some(0.75),
            retained_mass: Some(0.5),
            ..TeacherEvaluation::default()
        };
        let teachers = [("a".to_owned(), known), ("b".to_owned(), TeacherEvaluation::default())].into();
        let with = |teachers| LanguageEvaluation { student_loss: 1.5, teachers, ..LanguageEvaluation::default() };
        let languages = [("de".to_owned(), with(teachers)), ("fi".to_owned(), with(BTreeMap::new()))].into();
        let report = EvaluationReport { step: 7, languages, ..EvaluationReport::default() };
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines = evaluation_lines(&report);
        assert_eq!(
            lines.iter().skip(1).map(words).collect::<Vec<_>>(),
            [
                "de a 0.000 / 0.000 0.000 / 0.000 -12.5 0.100 / 0.200 0.750 0.500",
                "de b 0.000 / 0.000 0.000 / 0.000 – – / – – –",
                "fi – – 1.500 / 0.000 – – / – – –"
            ]
        );
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
    }
}
