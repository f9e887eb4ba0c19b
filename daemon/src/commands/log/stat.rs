//! `mergedistill log stat`.

use super::aligned;
use crate::cli::LogArgs;
use crate::commands::{print_json, print_line};
use crate::failure::Failure;
use store::log::TeacherStat;
use store::{LanguageStat, LogStat};

/// Counts and sizes.
pub fn stat(args: &LogArgs) -> Result<(), Failure> {
    let stat = store::stat(&args.dir)?;
    if args.json {
        return print_json(&stat);
    }
    let tables = [columns(&stat), teachers(&stat), languages(&stat)];
    let tables = tables.iter().flat_map(|rows| [String::new()].into_iter().chain(aligned(rows)));
    totals(&stat).into_iter().chain(tables).try_for_each(|line| print_line(&line))
}

fn totals(stat: &LogStat) -> Vec<String> {
    let per_token = stat.bytes as f64 / stat.corpus_tokens.max(1) as f64;
    let per_position = stat.label_bytes as f64 / stat.masked_positions.max(1) as f64;
    let live = if stat.live { ", being written" } else { "" };
    let mut lines = vec![
        format!("records           {} with {} copies, {} skips", stat.records, stat.copies, stat.skips),
        format!("tokens            {} ({per_token:.2} bytes each)", stat.corpus_tokens),
        format!("masked positions  {} ({per_position:.2} bytes of label each)", stat.masked_positions),
        format!(
            "bytes             {} in {} blocks of {} segments ({} labels, {} tokens, {} texts)",
            stat.bytes, stat.blocks, stat.segments, stat.label_bytes, stat.token_bytes, stat.text_bytes
        ),
        format!("entries           from {}, {} appended, {} durable{live}", stat.begin, stat.appended, stat.durable),
    ];
    lines.extend(stat.precisions.iter().map(|range| {
        let (precision, top_k, from, to) = (range.precision, range.top_k, range.from, range.to);
        format!("labels            {precision}, top {top_k}, entries {from} to {to}")
    }));
    lines
}

fn row<const N: usize>(cells: [String; N]) -> Vec<String> {
    cells.into()
}

fn columns(stat: &LogStat) -> Vec<Vec<String>> {
    let headings = ["column", "bytes", "share", "per masked position", "per token"];
    let line = |name: &str, bytes: u64| {
        let per = |count: u64| format!("{:.3}", bytes as f64 / count.max(1) as f64);
        let share = format!("{:.1} %", 100.0 * bytes as f64 / stat.bytes.max(1) as f64);
        row([name.to_owned(), bytes.to_string(), share, per(stat.masked_positions), per(stat.corpus_tokens)])
    };
    let of_columns: u64 = stat.column_bytes.values().sum();
    let stored = stat.column_bytes.iter().filter(|(_, bytes)| **bytes > 0);
    let mut stored: Vec<_> = stored.map(|(name, bytes)| (*name, *bytes)).collect();
    stored.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    stored.push(("headers, footers", stat.bytes.saturating_sub(of_columns)));
    let lines = stored.into_iter().map(|(name, bytes)| line(name, bytes));
    [row(headings.map(str::to_owned))].into_iter().chain(lines).collect()
}

fn teachers(stat: &LogStat) -> Vec<Vec<String>> {
    let headings = ["teacher", "copies", "labelled", "dropped", "tokens", "masked positions", "computed in"];
    let lines = stat.teachers.iter().map(|(name, teacher)| {
        let numbers = [teacher.copies, teacher.labelled, teacher.dropped, teacher.tokens, teacher.masked_positions];
        let cells = [name.clone()].into_iter().chain(numbers.map(|number| number.to_string()));
        cells.chain([computed_in(teacher)]).collect()
    });
    [row(headings.map(str::to_owned))].into_iter().chain(lines).collect()
}

/// How many labels were computed in what, or in what all were.
fn computed_in(teacher: &TeacherStat) -> String {
    match teacher.computed_in.len() {
        0 => "–".to_owned(),
        1 => teacher.computed_in.keys().map(|numbers| numbers.name()).collect(),
        _ => {
            let parts = teacher.computed_in.iter().map(|(numbers, labels)| format!("{labels} {}", numbers.name()));
            parts.collect::<Vec<_>>().join(", ")
        }
    }
}

fn languages(stat: &LogStat) -> Vec<Vec<String>> {
    let headings = ["language", "records", "held out", "with text", "copies", "tokens", "masked positions"];
    let lines = stat.languages.iter().map(|(name, language)| {
        let LanguageStat { records, held_out, texts, copies, tokens, masked_positions } = *language;
        let numbers = [records, held_out, texts, copies, tokens, masked_positions];
        [name.to_string()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
    });
    [row(headings.map(str::to_owned))].into_iter().chain(lines).collect()
}
