//! Evaluations as text.

use trainer::EvaluationReport;

/// One line per language and teacher.
pub fn evaluation_lines(report: &EvaluationReport) -> Vec<String> {
    let mut lines = vec![format!(
        "step {:>6}  {:<9}{:<12}{:>22}{:>22}{:>9}",
        report.step, "language", "teacher", "teacher loss / top-1", "student loss / top-1", "RDT %"
    )];
    for (language, scores) in &report.languages {
        for (teacher, pair) in &scores.teachers {
            lines.push(format!(
                "             {language:<9}{teacher:<12}{:>14.3} / {:.3}{:>14.3} / {:.3}{:>9}",
                pair.loss,
                pair.top1,
                pair.student_loss,
                pair.student_top1,
                pair.rdt.map_or("–".to_owned(), |rdt| format!("{rdt:+.1}")),
            ));
        }
    }
    lines
}
