//! The parts of a status, as lines. What is missing in it is left out.

use crate::commands::ctl::release::release_line;
use crate::commands::ctl::text::{bad, bytes, count, faint, good, journal_time, notable, padded};
use crate::visible::visible;
use console::{Style, measure_text_width};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

/// The stages, in the order in which data passes them.
const STAGES: [&str; 4] = ["ingest", "teacher", "log", "trainer"];
/// Changes and warnings that are shown.
const SHOWN: usize = 10;

/// The sign before everything, and the colour of the state.
pub(super) fn sign(status: &Value) -> (char, Style) {
    match status["state"].as_str() {
        _ if status["failure"].is_string() => ('×', bad()),
        Some("running") => ('●', good()),
        Some("stopping") => ('●', bad()),
        _ => ('●', notable()),
    }
}

/// How far training is; `None`: nothing is trained.
pub(super) fn train(status: &Value) -> Option<String> {
    let train = &status["train"];
    let step = train["step"].as_f64()?;
    let mut line = format!("step {}", count(step));
    if let Some(steps) = train["steps"].as_f64() {
        line.push_str(&format!(" of {} ({:.0} %)", count(steps), 100.0 * step / steps.max(1.0)));
    }
    for (name, key, shown) in [
        ("loss", "loss", (|value| format!("{value:.3}")) as fn(f64) -> String),
        ("λ", "lambda", |value| format!("{value:.2}")),
        ("learning rate", "learning_rate", |value| format!("{value:.2e}")),
    ] {
        if let Some(value) = train[key].as_f64() {
            line.push_str(&format!(", {name} {}", shown(value)));
        }
    }
    Some(line)
}

pub(super) fn rates(status: &Value) -> String {
    let rate = |key: &str| count(number(&status["rates"][key]));
    let (labelled, trained) = (rate("label_tokens_per_second"), rate("train_tokens_per_second"));
    format!("{labelled} tokens/s labelled, {trained} tokens/s trained")
}

pub(super) fn log(status: &Value) -> String {
    let log = &status["log"];
    let (durable, appended) = (number(&log["durable"]), number(&log["appended"]));
    let mut line = format!("{} entries durable", count(durable));
    if appended > durable {
        line.push_str(&format!(", {} more appended", count(appended - durable)));
    }
    let segments = number(&log["segments"]);
    let plural = if segments == 1.0 { "" } else { "s" };
    line.push_str(&format!("; {} in {} segment{plural}", bytes(number(&log["bytes"])), count(segments)));
    if let (Some(backlog), Some(most)) = (log["backlog_bytes"].as_f64(), log["max_backlog_bytes"].as_f64()) {
        let full = if backlog >= most { format!(", {}", notable().apply_to("full")) } else { String::new() };
        line.push_str(&format!("; backlog {} of {}{full}", bytes(backlog), bytes(most)));
    }
    line
}

/// How long documents took; `None`: nothing has come so far.
pub(super) fn arrival(status: &Value) -> Option<String> {
    let delays = &status["arrival_to_gradient"];
    let (p50, p99) = (delays["p50_seconds"].as_f64()?, delays["p99_seconds"].as_f64()?);
    Some(format!("to first gradient {p50:.1} s (p50), {p99:.1} s (p99), {} records", delays["records"]))
}

pub(super) fn release(status: &Value) -> Option<String> {
    let release = &status["release"];
    release.is_object().then(|| release_line(release))
}

pub(super) fn stages(status: &Value) -> Vec<String> {
    let known = STAGES.into_iter().filter(|stage| status["stages"][stage].is_object());
    let line = |stage: &str| {
        let of = &status["stages"][stage];
        let figures = ["items_in", "items_out", "in_flight"].map(|key| count(number(&of[key])));
        let [came, went, held] = figures;
        let is_stuck = status["stuck"].as_array().into_iter().flatten().any(|stuck| stuck["stage"] == stage);
        let stuck = if is_stuck { format!(", {}", bad().apply_to("stuck")) } else { String::new() };
        format!("{}  in {came}, out {went}, in flight {held}{}{stuck}", padded(stage, 7), waits(of))
    };
    known.map(line).collect()
}

/// What keeps a stage from going on, to be put behind what it is.
fn waits(stage: &Value) -> String {
    let mut text = String::new();
    if stage["paused"] == json!(true) {
        text.push_str(&format!(", {}", notable().apply_to("paused")));
    }
    if let Some(what) = stage["waiting"].as_str() {
        text.push_str(&format!(", {}", notable().apply_to(format!("waiting for {what}"))));
    } else if let Some(what) = stage["waits_for"].as_str() {
        // Nothing to worry about: every stage waits for the slowest.
        text.push_str(&format!(", {}", faint().apply_to(format!("waits for {what}"))));
    }
    text
}

pub(super) fn teachers(status: &Value) -> Vec<String> {
    let mut teachers: Vec<(&String, &Value)> = status["teachers"].as_object().into_iter().flatten().collect();
    teachers.sort_by_key(|(_, teacher)| teacher["index"].as_u64());
    let columns = teachers.iter().map(|(name, _)| measure_text_width(name)).max().unwrap_or(0);
    let line = |(name, teacher): (&String, &Value)| {
        let (state, style) = teacher_state(teacher);
        let languages: Vec<&str> =
            teacher["languages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let dropped = number(&teacher["dropped_copies"]);
        let dropped = if dropped > 0.0 { format!("  {} copies dropped", count(dropped)) } else { String::new() };
        let state = style.apply_to(padded(state, 9));
        format!("{}  {state}  {}{dropped}", padded(name, columns), languages.join(" "))
    };
    teachers.into_iter().map(line).collect()
}

/// Who labels over the server.
pub(super) fn workers(status: &Value) -> Vec<String> {
    let workers: Vec<&Value> = status["workers"].as_array().into_iter().flatten().collect();
    let text = |worker: &Value, key: &str| worker[key].as_str().unwrap_or("?").to_owned();
    let width = |key: &str| workers.iter().map(|worker| measure_text_width(&text(worker, key))).max().unwrap_or(0);
    let widths = [width("worker"), width("teacher")];
    let line = |worker: &&Value| {
        let (name, teacher) = (text(worker, "worker"), text(worker, "teacher"));
        let state = match worker["silent"] == json!(true) {
            true => format!(", {}", bad().apply_to("silent")),
            false => String::new(),
        };
        format!(
            "{}  {}  {} tokens/s, {} batches, {} in hand{state}",
            padded(&name, widths[0]),
            padded(&teacher, widths[1]),
            count(number(&worker["tokens_per_second"])),
            count(number(&worker["batches"])),
            count(number(&worker["in_flight"])),
        )
    };
    workers.iter().map(line).collect()
}

fn teacher_state(teacher: &Value) -> (&str, Style) {
    match (teacher["paused"] == json!(true), teacher["labels"] == json!(false)) {
        (true, _) => ("paused", notable()),
        (false, true) => ("tokenizer", faint()),
        (false, false) => match teacher["state"].as_str().unwrap_or("?") {
            state @ ("stalled" | "lost") => (state, bad()),
            "waiting" => ("no worker", notable()),
            state => (state, Style::new()),
        },
    }
}

pub(super) fn corpora(status: &Value) -> Vec<String> {
    let corpora = status["corpora"]["corpora"].as_array().map_or(&[][..], Vec::as_slice);
    let columns = |key: &str| {
        let widths = corpora.iter().map(|corpus| measure_text_width(corpus[key].as_str().unwrap_or("?")));
        widths.max().unwrap_or(0)
    };
    let widths = [columns("name"), columns("language"), columns("state")];
    corpora.iter().map(|corpus| corpus_line(corpus, widths, &status["corpora"]["languages"])).collect()
}

/// A corpus in a line, its name, language and state in columns of these widths.
fn corpus_line(corpus: &Value, widths: [usize; 3], languages: &Value) -> String {
    let text = |key: &str| corpus[key].as_str().unwrap_or("?");
    let set = languages
        .as_array()
        .into_iter()
        .flatten()
        .any(|language| language["language"] == corpus["language"] && language["overridden"] == json!(true));
    let set = if set { " (set)" } else { "" };
    let style = match text("state") {
        "paused" => notable(),
        "ended" => faint(),
        _ => Style::new(),
    };
    let [name, language] = [("name", widths[0]), ("language", widths[1])].map(|(key, width)| padded(text(key), width));
    let state = style.apply_to(padded(text("state"), widths[2]));
    let figure = |key: &str| count(number(&corpus[key]));
    let (consumed, available) = (figure("characters_consumed"), figure("characters_available"));
    let quarantined = number(&corpus["quarantined"]);
    let quarantined = if quarantined > 0.0 {
        format!(", {}", notable().apply_to(format!("{} quarantined", count(quarantined))))
    } else {
        String::new()
    };
    let share = number(&corpus["share"]);
    let documents = figure("documents");
    format!(
        "{name}  {language}  {state}  share {share:.3}{set}  {documents} documents, {consumed} characters since the start, {available} there{quarantined}"
    )
}

/// Inboxes that hold something.
pub(super) fn inboxes(status: &Value) -> Vec<String> {
    let inboxes = status["inboxes"].as_object().into_iter().flatten();
    let line = |(name, inbox): (&String, &Value)| {
        let (unread, failed) = (number(&inbox["unread_bytes"]), inbox["failed"].as_str());
        let failed = failed.map_or_else(String::new, |reason| format!(", {}", bad().apply_to(reason)));
        let most = bytes(number(&inbox["limit_bytes"]));
        let line = format!("{name}  {} of {most} to be read, {} documents", bytes(unread), inbox["documents"]);
        (unread > 0.0 || !failed.is_empty()).then(|| line + &failed)
    };
    inboxes.filter_map(line).collect()
}

/// The last evaluation: a line per language and teacher.
pub(super) fn scores(status: &Value) -> Vec<String> {
    let evaluation = &status["evaluation"];
    let languages = evaluation["languages"].as_object().into_iter().flatten();
    let pairs = languages.flat_map(|(language, scores)| {
        scores["teachers"].as_object().into_iter().flatten().map(move |(teacher, pair)| (language, teacher, pair))
    });
    let pairs: Vec<_> = pairs.collect();
    let columns = pairs.iter().map(|(_, teacher, _)| measure_text_width(teacher)).max().unwrap_or(0);
    let lines = pairs.iter().map(|(language, teacher, pair)| {
        let figure = |key: &str| number(&pair[key]);
        let rdt = pair["rdt"].as_f64().map_or_else(String::new, |rdt| format!("; RDT {rdt:+.1} %"));
        format!(
            "{language}  {}  student loss {:.3}, top-1 {:.3}; teacher {:.3}, {:.3}{rdt}",
            padded(teacher, columns),
            figure("student_loss"),
            figure("student_top1"),
            figure("loss"),
            figure("top1"),
        )
    });
    let lines: Vec<String> = lines.collect();
    let head = (!lines.is_empty()).then(|| format!("step {}", count(number(&evaluation["step"]))));
    head.into_iter().chain(lines).collect()
}

/// The last changes and warnings, by time.
pub(super) fn events(status: &Value, zone: &TimeZone) -> Vec<String> {
    let rows = |list: &Value, line: fn(&Value) -> String| -> Vec<(f64, String)> {
        let rows = list.as_array().into_iter().flatten();
        rows.map(|row| (number(&row["at_unix_seconds"]), line(row))).collect()
    };
    let mut events = rows(&status["corpora"]["changes"], change_line);
    events.extend(rows(&status["warnings"], warning_line));
    events.sort_by(|(first, _), (second, _)| first.total_cmp(second));
    let begin = events.len().saturating_sub(SHOWN);
    events[begin..].iter().map(|(at, line)| format!("{} {line}", journal_time(*at, zone))).collect()
}

/// A change of what is read or who labels.
pub(crate) fn change_line(made: &Value) -> String {
    let change = serde_json::from_value::<crate::live::Change>(made["change"].clone());
    let what = change.map_or_else(|_| made["change"]["kind"].to_string(), |change| change.describe());
    format!("from entry {} of the log on: {}", made["from_sequence"], visible(&what))
}

/// A warning or an error of the daemon's log.
pub(crate) fn warning_line(warning: &Value) -> String {
    let text = |key: &str| warning[key].as_str().unwrap_or("?");
    let style = if text("level") == "error" { bad() } else { notable() };
    format!("{}: {}", style.apply_to(text("level")), visible(text("message")))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}
