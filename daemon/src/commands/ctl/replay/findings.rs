//! What stands out in a step.

use trainer::replay::{CopyAccount, Part, StepAccount};

/// How many times its equal share something has to contribute to stand out.
const TIMES: f64 = 4.0;
/// And how much of the whole at least.
const SHARE: f64 = 0.1;
/// Above this multiple of its neighbours a step's figure is a spike.
const SPIKE: f64 = 1.5;
/// Above this alignment copies want the same.
const ALIGNED: f64 = 0.6;
/// Examples that are named at most.
const NAMED: usize = 3;

/// What stands out, in sentences, the weightiest first. Never empty.
pub(super) fn findings(account: &StepAccount) -> Vec<String> {
    let mut findings = Vec::new();
    findings.extend(not_finite(account));
    findings.extend(differences(account));
    let before = findings.len();
    if account.culprit.is_none() && account.figures.grad_norm.is_finite() {
        findings.extend(parts_stand_out(account));
        findings.extend(account.examples.iter().filter_map(|example| example_stands_out(example, account)).take(NAMED));
        findings.extend(aligned(account));
        findings.extend(against(account));
        findings.extend(position_stands_out(account));
        if findings.len() == before {
            findings.push(nothing(account));
        }
    }
    findings.extend(clipped(account));
    findings
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn not_finite(account: &StepAccount) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(skipped) = &account.figures.skipped else {
        let attempts = account.skipped_in_attempts.iter();
        lines.extend(attempts.map(|attempt| {
            format!("in attempt {attempt} the step of this number was skipped: see --attempt {attempt}")
        }));
        return lines;
    };
    lines.push(match (&account.culprit, account.weights_finite) {
        (_, false) => {
            format!(
                "the step was skipped ({skipped}), and no example is to blame: the weights before it are not all finite"
            )
        }
        (Some(culprit), true) => {
            let is_not_finite = |other: &&CopyAccount| !(other.loss + other.grad_norm).is_finite();
            let count = account.examples.iter().filter(is_not_finite).count();
            let others = match count {
                1 => String::new(),
                all if all == account.examples.len() => "; nor is any other copy: look at the weights".to_owned(),
                some => format!("; nor are {} other copies", some - 1),
            };
            let example = name(&account.examples[culprit.example]);
            format!("the step was skipped ({skipped}): {example} is not finite: {}{others}", culprit.what)
        }
        (None, true) => {
            format!("the step was skipped ({skipped}), yet each copy by itself is finite: together they overflow")
        }
    });
    lines
}

/// An example as it is named in sentences.
fn name(example: &CopyAccount) -> String {
    format!(
        "record {} ({}, document {}, bytes {}–{}; copy of teacher {})",
        example.sequence, example.source, example.document, example.span.0, example.span.1, example.teacher
    )
}

fn differences(account: &StepAccount) -> Option<String> {
    let comparison = account.comparison.as_ref()?;
    let from = comparison.differs_from?;
    let figures: Vec<String> = comparison
        .differences
        .iter()
        .map(|difference| format!("{} was {}, is {}", difference.figure, difference.recorded, difference.replayed))
        .collect();
    let figures = if figures.is_empty() { String::new() } else { format!(" ({})", figures.join("; ")) };
    Some(format!(
        "what is recorded is not what was computed now, from step {from} on{figures}: figures are the same to the last digit only by \
         the same program, with the same vector instructions, student.dropout and, for a journal that has no settings, [train]; \
         shares and ranks mostly hold all the same"
    ))
}

/// The sources, languages and teachers that contribute much more than their number of copies would make expect; in a spike, more than half of
/// it and more than that number.
fn parts_stand_out(account: &StepAccount) -> Vec<String> {
    let mut named: Vec<(u64, u64)> = Vec::new();
    let mut lines = Vec::new();
    for (what, all) in [("source", &account.sources), ("language", &account.languages), ("teacher", &account.teachers)]
    {
        for part in all.iter().filter(|part| all.len() > 1 && part_stands_out(part, account)) {
            // The language of a source that is the only one says nothing new.
            let copies = (part.copies, part.masked_positions);
            if !named.contains(&copies) {
                named.push(copies);
                lines.push(part_line(what, part, all));
            }
        }
    }
    lines
}

fn part_stands_out(part: &Part, account: &StepAccount) -> bool {
    let (share, equal) = (part.projection_share, part.copies as f64 / account.figures.copies.max(1) as f64);
    let is_much = share > SHARE && share >= 2.0 * equal;
    is_much || (is_spike(account) && share >= 0.5 && share > equal + 0.02)
}

fn part_line(what: &str, part: &Part, all: &[Part]) -> String {
    let copies: u64 = all.iter().map(|part| part.copies).sum();
    let others: Vec<&Part> = all.iter().filter(|other| other.name != part.name).collect();
    let positions: u64 = others.iter().map(|part| part.masked_positions).sum();
    let gold_loss: f64 = others.iter().map(|part| part.mlm * part.masked_positions as f64).sum();
    format!(
        "{what} {}: {} of {copies} copies make {} of the gradient and {} of the loss; its gold labels cost {:.2} nats each, the \
         others' {:.2}",
        part.name,
        part.copies,
        percent(part.projection_share),
        percent(part.loss_share),
        part.mlm,
        gold_loss / positions.max(1) as f64
    )
}

/// Whether loss or gradient are much larger than those of the steps around.
fn is_spike(account: &StepAccount) -> bool {
    account.neighbours.as_ref().is_some_and(|near| near.loss_ratio > SPIKE || near.grad_norm_ratio > SPIKE)
}

/// Copies that all want the same make a large gradient of small ones.
fn aligned(account: &StepAccount) -> Option<String> {
    let is_so = account.figures.copies > 3 && is_spike(account) && account.alignment >= ALIGNED;
    is_so.then(|| {
        format!(
            "the copies' gradients point the same way: the step's is {:.2} of the sum of their norms, so hardly anything cancels",
            account.alignment
        )
    })
}

fn example_stands_out(example: &CopyAccount, account: &StepAccount) -> Option<String> {
    let equal = 1.0 / account.figures.copies.max(1) as f64;
    let share = example.projection_share;
    let stands_out =
        account.figures.copies > 1 && share >= SHARE.min(2.0 * TIMES * equal) && share >= (TIMES * equal).min(0.75);
    stands_out.then(|| {
        format!(
            "{} makes {} of the gradient and {} of the loss, {:.1} and {:.1} times an equal share",
            name(example),
            percent(share),
            percent(example.loss_share),
            share / equal,
            example.loss_share / equal
        )
    })
}

/// Copies that pull back.
fn against(account: &StepAccount) -> Option<String> {
    let pulling: Vec<&CopyAccount> = account.examples.iter().filter(|example| example.projection < 0.0).collect();
    let share: f64 = pulling.iter().map(|example| example.projection_share).sum();
    (share < -SHARE)
        .then(|| format!("{} copies pull against the others: {} of the gradient", pulling.len(), percent(share)))
}

fn position_stands_out(account: &StepAccount) -> Option<String> {
    let worst = account.positions.first()?;
    let equal = 1.0 / account.figures.masked_positions.max(1) as f64;
    let stands_out = account.figures.masked_positions > 4 && worst.loss_share >= (TIMES * equal).max(0.05);
    stands_out.then(|| {
        let teacher = worst.teacher_gold.map_or_else(String::new, |gold| format!(", the teacher {gold:.2e}"));
        format!(
            "one masked position (record {}, token {}) makes {} of the loss: the student gives `{}` a probability of {:.2e}{teacher}",
            worst.sequence,
            worst.position,
            percent(worst.loss_share),
            worst.gold,
            worst.student_gold
        )
    })
}

fn nothing(account: &StepAccount) -> String {
    let largest = account.examples.first().map_or(0.0, |example| example.projection_share);
    let equal = 1.0 / account.figures.copies.max(1) as f64;
    let advice = match account.neighbours.as_ref().is_some_and(|near| near.loss_ratio > SPIKE) {
        true => {
            ": all are worse than at other steps, so look at the weights: at the steps before, and the learning rate"
        }
        false => "",
    };
    format!(
        "no example, source, language or teacher stands out (the largest part of a copy is {} of the gradient, an equal one \
         would be {}){advice}",
        percent(largest),
        percent(equal)
    )
}

fn clipped(account: &StepAccount) -> Option<String> {
    let figures = &account.figures;
    (figures.skipped.is_none() && figures.clip < 1.0)
        .then(|| format!("the gradient was clipped to {:.3} of its length before the weights moved", figures.clip))
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
