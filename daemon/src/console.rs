//! What the daemon prints while it runs: on a terminal a live line per stage, otherwise log lines.

use crate::figures::Figures;
use crate::journal::{self, Prefixed};
use crate::level::Level;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use store::pulse::{Reading, Wait, readings};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Without a terminal, figures are logged this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Standard error, shared by log lines and progress lines.
#[derive(Clone, Debug)]
pub struct Console {
    progress: Option<MultiProgress>,
    level: Level,
}

/// The live lines of one run.
#[derive(Debug)]
pub struct Live {
    bars: Option<[ProgressBar; 4]>,
    logged: Instant,
}

impl Console {
    /// Sets up logging. `level` is what the command line or the environment says of how much is logged. What goes to systemd's journal has its form, unless it is to be
    /// JSON.
    pub fn start(level: Option<&str>, json: bool) -> Result<Self, String> {
        let (level, filter) = Level::start(level).map_err(|error| format!("--log: {error}"))?;
        let live = std::io::stderr().is_terminal() && !json;
        let console = Self { progress: live.then(MultiProgress::new), level };
        let lines = tracing_subscriber::fmt::layer().with_writer(console.clone()).with_target(false);
        // Whoever read the log lines may be gone; that is no reason to stop.
        let lines = lines.log_internal_errors(false);
        let layer = match (json, journal::has_stderr().then(journal::native)) {
            (true, _) => lines.json().boxed(),
            (false, Some(Some(native))) => native.boxed(),
            (false, Some(None)) => lines.event_format(Prefixed::default()).boxed(),
            (false, None) => lines.with_ansi(live && ::console::colors_enabled_stderr()).boxed(),
        };
        let result = tracing_subscriber::registry().with(filter).with(layer).with(crate::warnings::Warnings).try_init();
        result.map_err(|error| format!("cannot start logging: {error}"))?;
        Ok(console)
    }

    /// How much is logged.
    pub fn level(&self) -> &Level {
        &self.level
    }

    /// A line for whoever started the program, whatever the log level.
    pub fn say(&self, line: &str) {
        let _ = writeln!(LineWriter(self.progress.clone()), "{line}"); // Nobody may be reading.
    }

    /// Starts the live lines.
    pub fn live(&self) -> Live {
        let bars = self.progress.as_ref().map(|progress| {
            ["ingest", "teachers", "log", "trainer"].map(|stage| {
                let style = ProgressStyle::with_template("{prefix:>9.bold}  {msg}");
                let bar =
                    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                progress.add(bar.with_prefix(stage))
            })
        });
        Live { bars, logged: Instant::now() }
    }
}

impl Live {
    /// Shows the figures of this moment.
    pub fn show(&mut self, figures: &Figures, steps: Option<u64>, waiting_for: Option<&str>) {
        match &self.bars {
            Some(bars) => {
                for (bar, line) in bars.iter().zip(lines(figures, steps, waiting_for)) {
                    bar.set_message(line);
                    bar.tick();
                }
            }
            None if self.logged.elapsed() >= LOG_EVERY => {
                self.logged = Instant::now();
                let [ingest, teachers, log, trainer] = lines(figures, steps, waiting_for);
                tracing::info!(ingest, teachers, log, trainer, "progress");
            }
            None => {}
        }
    }

    /// Removes the live lines.
    pub fn clear(&self) {
        for bar in self.bars.iter().flatten() {
            bar.finish_and_clear();
        }
    }
}

/// What goes on, in one line: for the service manager.
pub fn status_line(figures: &Figures, state: &str, steps: Option<u64>, waiting_for: Option<&str>) -> String {
    let mut line = state.to_owned();
    let add = |line: &mut String, part: std::fmt::Arguments<'_>| {
        let _ = line.write_fmt(part); // Writing to a string cannot fail.
    };
    if let Some(step) = figures.find("mergedistill_train_step") {
        add(&mut line, format_args!(": step {step}"));
        steps.iter().for_each(|steps| add(&mut line, format_args!("/{steps}")));
        if step > 0.0 {
            add(&mut line, format_args!(", loss {:.3}", figures.value("mergedistill_train_loss")));
        }
        let rate = figures.rate("mergedistill_train_tokens_total");
        add(&mut line, format_args!(", {rate:.0} tokens/s trained"));
    }
    if figures.find("mergedistill_stage_items_in_total{ingest}").is_some() {
        let rate = figures.rate("mergedistill_teacher_tokens_total");
        add(&mut line, format_args!(", {rate:.0} tokens/s labelled"));
    }
    let mut readings = readings();
    readings.retain(|reading| reading.stage != "supervisor");
    for Reading { stage, waits_for, .. } in readings {
        match (waits_for, waiting_for) {
            (Some(Wait::Input), Some(language)) if stage == "trainer" => {
                add(&mut line, format_args!("; trainer waits for labelled text of `{language}`"));
            }
            (Some(wait), _) => add(&mut line, format_args!("; {stage} waits for {}", wait.describe())),
            (None, _) => {}
        }
    }
    line
}

fn lines(figures: &Figures, steps: Option<u64>, waiting_for: Option<&str>) -> [String; 4] {
    let value = |name: &str| figures.value(name);
    let rate = |name: &str| figures.rate(name);
    // Training without end has nothing to count up to.
    let of = steps.map_or_else(String::new, |steps| format!("/{steps}"));
    let trainer = match (waiting_for, value("mergedistill_train_step")) {
        (Some(language), step) => format!("step {step}{of}, waits for labelled text of `{language}`"),
        (None, step) => format!(
            "step {step}{of}  loss {:.3}  λ {:.2}  {:.0} tokens/s",
            value("mergedistill_train_loss"),
            value("mergedistill_train_lambda_ratio"),
            rate("mergedistill_train_tokens_total"),
        ),
    };
    let release = if value("mergedistill_release_running") > 0.0 {
        format!("; release: step {}/{}", value("mergedistill_release_step"), value("mergedistill_release_steps"))
    } else {
        String::new()
    };
    [
        format!(
            "{} documents, {} examples, {:.0} examples/s",
            value("mergedistill_ingest_documents_total"),
            value("mergedistill_ingest_examples_total"),
            rate("mergedistill_ingest_examples_total"),
        ),
        format!(
            "{} copies, {} masked positions, {:.0} tokens/s{}",
            value("mergedistill_teacher_copies_total"),
            value("mergedistill_teacher_masked_positions_total"),
            rate("mergedistill_teacher_tokens_total"),
            if value("mergedistill_teacher_stalled") > 0.0 { ", a teacher stalls" } else { "" },
        ),
        format!(
            "{} entries durable, {:.1} MB written{}",
            value("mergedistill_log_durable_sequence"),
            value("mergedistill_log_bytes_total") / 1e6,
            if value("mergedistill_log_waiting_for_room") > 0.0 { ", waiting for disk space" } else { "" },
        ),
        trainer + &release,
    ]
}

/// Writes log lines above the live lines.
#[derive(Debug)]
pub struct LineWriter(Option<MultiProgress>);

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let write = || std::io::stderr().lock().write_all(bytes);
        match &self.0 {
            Some(progress) => progress.suspend(write)?,
            None => write()?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Console {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter(self.progress.clone())
    }
}
