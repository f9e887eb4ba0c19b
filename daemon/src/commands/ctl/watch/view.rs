//! What is known of the daemon at a moment, to be drawn.

use super::lines;
use super::news::News;
use crate::commands::ctl::status::{change_line, warning_line};
use crate::commands::ctl::text::journal_time;
use crate::visible::visible;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ops::DaemonEvent;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Losses that are kept: more than a terminal has columns.
const LOSSES: usize = 512;
/// Lines that are kept.
const LINES: usize = 500;

/// What is shown.
#[derive(Debug)]
pub(super) struct View {
    pub(super) socket: PathBuf,
    pub(super) status: Value,
    /// Items that leave a stage per second, by its name.
    pub(super) rates: BTreeMap<String, f64>,
    /// The latest last.
    pub(super) losses: VecDeque<f64>,
    /// The latest last.
    pub(super) lines: VecDeque<Line>,
    /// Lines below which the list is scrolled up; 0: it shows the latest.
    pub(super) scrolled: usize,
    /// Why nobody answers.
    pub(super) lost: Option<String>,
    read: Option<Instant>,
    /// Time of the latest change or warning that has a line.
    latest: f64,
    zone: TimeZone,
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) time: String,
    pub(super) text: String,
    pub(super) is_warning: bool,
}

impl View {
    /// Nothing is known yet.
    pub(super) fn new(socket: &Path, zone: TimeZone) -> Self {
        Self {
            socket: socket.to_owned(),
            status: Value::Null,
            rates: BTreeMap::new(),
            losses: VecDeque::new(),
            lines: VecDeque::new(),
            scrolled: 0,
            lost: None,
            read: None,
            latest: 0.0,
            zone,
        }
    }

    /// Takes note of something new.
    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Status(status) => self.take_status(status, Instant::now()),
            News::History(history) => self.take_history(&history),
            News::Event(event) => self.take_event(&event),
            News::Lost(reason) => {
                self.rates.clear();
                self.read = None;
                self.lost = Some(reason);
            }
            News::Told(answer) => self.add(now(), format!("you asked, the daemon says: {answer}"), false),
        }
    }

    /// Whether a pause is to be taken back.
    pub(super) fn is_paused(&self) -> bool {
        let stages = self.status["stages"].as_object().into_iter().flatten();
        stages.into_iter().any(|(_, stage)| stage["paused"] == json!(true))
    }

    /// Scrolls by so many lines: up if above 0.
    pub(super) fn scroll(&mut self, lines: isize) {
        self.scrolled = self.scrolled.saturating_add_signed(lines).min(self.lines.len().saturating_sub(1));
    }

    fn take_status(&mut self, status: Value, at: Instant) {
        self.lost = None;
        let seconds = self.read.map(|before| (at - before).as_secs_f64()).filter(|seconds| *seconds > 0.0);
        let stages = status["stages"].as_object().into_iter().flatten();
        for (name, stage) in stages {
            let (before, after) = (self.status["stages"][name]["items_out"].as_f64(), stage["items_out"].as_f64());
            if let (Some(before), Some(after), Some(seconds)) = (before, after, seconds) {
                // Less than before: the counters of a daemon that was started again.
                self.rates.insert(name.clone(), (after - before).max(0.0) / seconds);
            }
        }
        let mut told: Vec<(f64, String, bool)> = Vec::new();
        let after = |list: &Value| {
            let time = |row: &Value| row["at_unix_seconds"].as_f64().unwrap_or(0.0);
            let rows = list.as_array().into_iter().flatten().map(|row| (time(row), row.clone()));
            rows.filter(|(time, _)| *time > self.latest).collect::<Vec<_>>()
        };
        told.extend(after(&status["corpora"]["changes"]).iter().map(|(time, row)| (*time, change_line(row), false)));
        told.extend(after(&status["warnings"]).iter().map(|(time, row)| (*time, warning_line(row), true)));
        told.sort_by(|(first, ..), (second, ..)| first.total_cmp(second));
        for (time, line, is_warning) in told {
            self.latest = self.latest.max(time);
            self.add(time, console::strip_ansi_codes(&line).into_owned(), is_warning);
        }
        (self.status, self.read) = (status, Some(at));
    }

    fn take_history(&mut self, history: &Value) {
        let losses = history["steps"]["loss"].as_array().into_iter().flatten().filter_map(Value::as_f64);
        self.losses = losses.collect();
        self.losses.keep_latest(LOSSES);
    }

    fn take_event(&mut self, event: &DaemonEvent) {
        if event.name != "step" {
            return self.add(now(), lines::line(event), event.name == "missed");
        }
        if let Some(loss) = event.data["loss"].as_f64() {
            self.losses.push_back(loss);
            self.losses.keep_latest(LOSSES);
        }
        // Steps come faster than statuses.
        if let (Value::Object(known), Value::Object(new)) = (&mut self.status["train"], &event.data) {
            known.extend(new.clone());
        }
    }

    fn add(&mut self, unix_seconds: f64, text: String, is_warning: bool) {
        let (time, text) = (journal_time(unix_seconds, &self.zone), visible(&text).into_owned());
        self.lines.push_back(Line { time, text, is_warning });
        self.lines.keep_latest(LINES);
        if self.scrolled > 0 {
            self.scroll(1);
        }
    }
}

/// Forgets the oldest.
trait KeepLatest {
    fn keep_latest(&mut self, most: usize);
}

impl<T> KeepLatest for VecDeque<T> {
    fn keep_latest(&mut self, most: usize) {
        self.drain(..self.len().saturating_sub(most));
    }
}

fn now() -> f64 {
    Timestamp::now().as_second() as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::time::Duration;

    fn event(name: &str, data: Value) -> News {
        News::Event(DaemonEvent { name: name.to_owned(), data })
    }

    #[test]
    fn rates_are_of_the_time_between_two_statuses() {
        let mut view = View::new(Path::new("s"), TimeZone::UTC);
        let status = |out: u64| json!({"stages": {"log": {"items_out": out, "paused": out > 100}}});
        let begin = Instant::now();
        for (second, out, expected) in [(0, 10, None), (2, 110, Some(50.0)), (3, 4, Some(0.0))] {
            view.take_status(status(out), begin + Duration::from_secs(second));
            assert_eq!(view.rates.get("log").copied(), expected);
            assert_eq!(view.is_paused(), out > 100);
        }
        view.take(News::Lost("gone".to_owned()));
        assert_eq!((view.rates.len(), view.lost.as_deref()), (0, Some("gone")));
    }

    #[test]
    fn each_warning_has_one_line_and_steps_have_none() {
        let mut view = View::new(Path::new("s"), TimeZone::UTC);
        let warning = |at: f64| json!({"at_unix_seconds": at, "level": "warn", "message": format!("at {at}")});
        view.take(News::Status(json!({"warnings": [warning(1.0)], "train": {"step": 1}})));
        view.take(News::Status(json!({"warnings": [warning(1.0), warning(2.0)], "train": {"step": 1, "steps": 9}})));
        view.take(News::History(json!({"steps": {"loss": [6.5, null, 5.5]}})));
        view.take(event("step", json!({"step": 2, "loss": 4.5})));
        view.take(event("waiting", json!({"language": "de"})));
        view.take(event("checkpoint", json!({"step": 3, "path": "\x1b[2J\n"})));
        let texts: Vec<&str> = view.lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "warn: at 1",
                "warn: at 2",
                "training waits for labelled text of `de`",
                "checkpoint of step 3: \\u{1b}[2J\\u{a}"
            ]
        );
        assert_eq!(
            (view.losses.make_contiguous(), &view.status["train"]["step"]),
            (&mut [6.5, 5.5, 4.5][..], &json!(2))
        );
        assert_eq!(view.status["train"]["steps"], 9, "what a step does not say stays");
    }

    #[test]
    fn what_is_scrolled_to_stays() {
        let mut view = View::new(Path::new("s"), TimeZone::UTC);
        for number in 0..LINES + 20 {
            view.take(event("news", json!(number)));
        }
        assert_eq!(view.lines.len(), LINES);
        view.scroll(3);
        view.take(event("news", json!("more")));
        assert_eq!(view.scrolled, 4);
        view.scroll(-10);
        assert_eq!(view.scrolled, 0);
        view.scroll(10_000);
        assert_eq!(view.scrolled, LINES - 1);
    }
}
