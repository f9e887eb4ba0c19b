//! A replay as people read it.

use super::what_is_done;
use crate::commands::ctl::text::{bad, count, faint, notable, padded};
use trainer::replay::{Comparison, CopyAccount, Neighbours, Part, PositionAccount, StepAccount};

/// Characters of a document's identifier.
const DOCUMENT_CHARACTERS: usize = 40;

/// All lines.
pub(super) fn lines(account: &StepAccount, findings: &[String]) -> Vec<String> {
    let mut lines = head(account);
    lines.push(String::new());
    lines.push("what stands out".to_owned());
    lines.extend(findings.iter().map(|finding| format!("  - {}", notable().apply_to(finding))));
    let columns = ["gradient", "loss", "copies", "masked", "kd", "mlm"];
    for (what, parts) in
        [("source", &account.sources), ("language", &account.languages), ("teacher", &account.teachers)]
    {
        table(&mut lines, what, &columns, parts.iter().map(part).collect());
    }
    let groups = account.parameters.iter();
    let groups = groups.map(|group| {
        let cells = [percent(group.share), format!("{:.4}", group.grad_norm), count(group.parameters as f64)];
        (group.name.clone(), cells.to_vec())
    });
    table(&mut lines, "part of the student", &["gradient²", "norm", "parameters"], groups.collect());
    examples(&mut lines, account);
    let columns = ["loss", "kd", "mlm", "p(gold)", "student's guess", "teacher's guess", "p(gold)"];
    table(&mut lines, "masked position", &columns, account.positions.iter().map(position).collect());
    lines
}

fn head(account: &StepAccount) -> Vec<String> {
    let (plan, figures) = (&account.plan, &account.figures);
    let of = plan.release.as_ref().map_or_else(|| "the run".to_owned(), |name| format!("release {name}"));
    let near = account.neighbours.as_ref();
    let beside = |ratio: fn(&Neighbours) -> (f64, f64)| {
        near.map_or_else(String::new, |near| {
            let (ratio, median) = ratio(near);
            format!(", {ratio:.2} × the median of the {} steps around ({median:.4})", near.steps)
        })
    };
    let mut lines = vec![
        format!("step {} of {of}", plan.step),
        format!("      loss  {:.4}{}", figures.loss, beside(|near| (near.loss_ratio, near.median_loss))),
        format!("  gradient  {:.4}{}", figures.grad_norm, beside(|near| (near.grad_norm_ratio, near.median_grad_norm))),
        format!(
            "        of  kd {:.4}, mlm {:.4}, top-1 {:.3}; λ {:.4}, learning rate {:.3e}",
            figures.kd, figures.mlm, figures.top1, figures.lambda, figures.learning_rate
        ),
        format!(
            "     batch  {} copies, {} tokens, {} masked positions, {} micro-batches",
            count(figures.copies as f64),
            count(figures.tokens as f64),
            count(figures.masked_positions as f64),
            figures.micro_batches
        ),
        format!("  replayed  {}", what_is_done(plan)),
    ];
    lines.push(format!("  recorded  {}", recorded(account.comparison.as_ref())));
    lines
}

fn recorded(comparison: Option<&Comparison>) -> String {
    let Some(comparison) = comparison else { return faint().apply_to("nothing that could be compared").to_string() };
    let weights = match comparison.checkpoint_agrees {
        Some(true) => "; the weights after it are, bit for bit, those of the checkpoint there",
        Some(false) => "; the weights after it are not those of the checkpoint there",
        None => "",
    };
    if comparison.differs_from.is_none() && comparison.checkpoint_agrees != Some(false) {
        return format!("the same figures to the last digit{weights}");
    }
    let text = format!("loss {}, gradient {}: not the same{weights}", comparison.loss, comparison.grad_norm);
    bad().apply_to(text).to_string()
}

/// A dash where it says nothing.
fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", 100.0 * share) } else { "–".to_owned() }
}

fn number(number: f64) -> String {
    if number.is_finite() { format!("{number:.3}") } else { number.to_string() }
}

fn part(part: &Part) -> (String, Vec<String>) {
    let cells = [
        percent(part.projection_share),
        percent(part.loss_share),
        count(part.copies as f64),
        count(part.masked_positions as f64),
        part.kd.map_or("–".to_owned(), number),
        number(part.mlm),
    ];
    (part.name.to_string(), cells.to_vec())
}

fn examples(lines: &mut Vec<String>, account: &StepAccount) {
    let columns = ["gradient", "loss", "own norm", "kd", "mlm", "masked", "language", "teacher", "record", "document"];
    let texts = account.examples.iter().map(|example| example.text.clone());
    let before = lines.len() + 2;
    table(lines, "example", &columns, account.examples.iter().map(example).collect());
    for (at, text) in texts.enumerate().collect::<Vec<_>>().into_iter().rev() {
        if let Some(text) = text {
            lines.insert(before + at + 1, format!("      {}", faint().apply_to(text)));
        }
    }
}

fn example(example: &CopyAccount) -> (String, Vec<String>) {
    let document: String = example.document.chars().take(DOCUMENT_CHARACTERS).collect();
    let cells = [
        percent(example.projection_share),
        percent(example.loss_share),
        format!("{:.4}", example.grad_norm),
        if example.labelled { number(example.kd) } else { "–".to_owned() },
        number(example.mlm),
        example.masked_positions.to_string(),
        example.language.to_string(),
        example.teacher.to_string(),
        example.sequence.to_string(),
        format!("{document} {}–{}", example.span.0, example.span.1),
    ];
    (example.source.to_string(), cells.to_vec())
}

fn position(position: &PositionAccount) -> (String, Vec<String>) {
    let guess = |token: &str, probability: f64| format!("{token} {probability:.3}");
    let cells = [
        percent(position.loss_share),
        if position.teacher_gold.is_some() { number(position.kd) } else { "–".to_owned() },
        number(position.mlm),
        format!("{:.2e}", position.student_gold),
        guess(&position.student.token, position.student.probability),
        position.teacher_guess.as_ref().map_or("–".to_owned(), |best| guess(&best.token, best.probability)),
        position.teacher_gold.map_or("–".to_owned(), |gold| format!("{gold:.2e}")),
    ];
    (format!("{} in record {} at {}", position.gold, position.sequence, position.position), cells.to_vec())
}

/// A table with a title and a line per row: names to the left, numbers to the right.
fn table(lines: &mut Vec<String>, title: &str, columns: &[&str], rows: Vec<(String, Vec<String>)>) {
    if rows.is_empty() {
        return;
    }
    let width = |text: &str| console::measure_text_width(text);
    let first = rows.iter().map(|(name, _)| width(name)).chain([width(title)]).max().unwrap_or(0);
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| rows.iter().map(|(_, cells)| width(&cells[at])).chain([width(column)]).max().unwrap_or(0))
        .collect();
    let line = |name: &str, cells: &[&str]| {
        let cells = cells.iter().zip(&widths).map(|(cell, wide)| format!("{}{cell}", " ".repeat(wide - width(cell))));
        format!("{}  {}", padded(name, first), cells.collect::<Vec<_>>().join("  "))
    };
    lines.push(String::new());
    lines.push(faint().apply_to(line(title, columns)).to_string());
    for (name, cells) in &rows {
        lines.push(line(name, &cells.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}
