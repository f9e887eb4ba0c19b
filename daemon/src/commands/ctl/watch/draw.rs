//! The view's layout. What there is no room for is left out, the least important first.

use super::view::View;
use crate::commands::ctl::text::{bytes, count, span};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, LineGauge, Paragraph, Row, Sparkline, Table};
use serde_json::{Value, json};

/// Styles by meaning; without colours, weights alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    good: Style,
    notable: Style,
    bad: Style,
    figure: Style,
    faint: Style,
    heading: Style,
}

/// A panel: its height, and what draws it.
type Panel = (u16, fn(&mut Frame<'_>, Rect, &View, &Palette));

/// Rows of teachers, corpora and scores that are shown at most.
const ROWS: usize = 8;
/// The list of events has at least this height.
const LIST_HEIGHT: u16 = 3;
/// On narrower terminals tables have their most important columns alone.
const NARROW: u16 = 64;

impl Palette {
    /// With or without colours.
    pub(super) fn new(colors: bool) -> Self {
        let color = |color: Color| if colors { Style::new().fg(color) } else { Style::new() };
        Self {
            good: color(Color::Green).add_modifier(Modifier::BOLD),
            notable: color(Color::Yellow).add_modifier(Modifier::BOLD),
            bad: color(Color::Red).add_modifier(Modifier::BOLD),
            figure: color(Color::Cyan),
            faint: Style::new().add_modifier(Modifier::DIM),
            heading: Style::new().add_modifier(Modifier::BOLD),
        }
    }

    fn of_state(&self, state: &str) -> Style {
        match state {
            "running" => self.good,
            "stopping" | "stalled" | "lost" => self.bad,
            "paused" | "renewing" | "draining" => self.notable,
            "ended" => self.faint,
            _ => Style::new(),
        }
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, palette: &Palette) {
    let panels = panels(view, frame.area());
    let heights = panels.iter().map(|(height, _)| Constraint::Length(*height));
    let heights = heights.chain([Constraint::Min(0), Constraint::Length(1)]);
    let areas = Layout::vertical(heights).split(frame.area());
    for ((_, draw), area) in panels.iter().zip(areas.iter()) {
        draw(frame, *area, view, palette);
    }
    if let [.., list, keys] = areas[..] {
        events(frame, list, view, palette);
        footer(frame, keys, view, palette);
    }
}

/// The panels that fit above the list of events, in their order on the screen.
fn panels(view: &View, screen: Rect) -> Vec<Panel> {
    let rows = |count: usize| u16::try_from(count.min(ROWS)).unwrap_or(0) + 1;
    let below = rows(teacher_rows(view).len()).max(rows(corpus_rows(view).len()));
    let scores = rows(score_rows(view).len());
    let has_train = view.status["train"].is_object();
    // By importance; the number is the place on the screen.
    let wanted: [(u8, bool, Panel); 6] = [
        (0, true, (1, header)),
        (1, has_train, (1, progress)),
        (2, true, (6, stages)),
        (4, true, (below, inputs)),
        (3, has_train, (4, losses)),
        (5, scores > 1 && screen.width >= NARROW, (scores, evaluation)),
    ];
    let mut left = screen.height.saturating_sub(LIST_HEIGHT + 1);
    let mut fitting: Vec<(u8, Panel)> = Vec::new();
    for (place, _, panel) in wanted.into_iter().filter(|(_, wanted, _)| *wanted) {
        if panel.0 > left {
            break;
        }
        left -= panel.0;
        fitting.push((place, panel));
    }
    fitting.sort_by_key(|(place, _)| *place);
    fitting.into_iter().map(|(_, panel)| panel).collect()
}

fn header(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let status = &view.status;
    let state = status["state"].as_str().unwrap_or("?");
    let style = palette.of_state(state);
    let mut spans = match &view.lost {
        Some(_) => vec![Span::styled("○ not running", palette.bad)],
        None => vec![Span::styled(format!("● {state}"), style)],
    };
    let rates = &status["rates"];
    let log = &status["log"];
    let mut facts = vec![
        format!("mergedistill {}", status["version"].as_str().unwrap_or("?")),
        format!("up {}", span(number(&status["uptime_seconds"]))),
        format!("labels {}/s", count(number(&rates["label_tokens_per_second"]))),
        format!("trains {}/s", count(number(&rates["train_tokens_per_second"]))),
        format!("log {}", bytes(number(&log["bytes"]))),
    ];
    if let (Some(backlog), Some(most)) = (log["backlog_bytes"].as_f64(), log["max_backlog_bytes"].as_f64()) {
        facts.push(format!("backlog {} of {}", bytes(backlog), bytes(most)));
    }
    spans.push(Span::raw(format!("  {}", facts.join("  "))));
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn progress(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let train = &view.status["train"];
    let step = number(&train["step"]);
    let Some(steps) = train["steps"].as_f64() else {
        let line = format!("step {} (without end)", count(step));
        return frame.render_widget(Paragraph::new(line), area);
    };
    let gauge = LineGauge::default()
        .ratio((step / steps.max(1.0)).clamp(0.0, 1.0))
        .label(format!("step {} of {}", count(step), count(steps)))
        .filled_style(palette.figure)
        .unfilled_style(palette.faint);
    frame.render_widget(gauge, area);
}

fn stages(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let is_narrow = area.width < NARROW;
    let rows = ["ingest", "teacher", "log", "trainer"].map(|name| {
        let stage = &view.status["stages"][name];
        let rate = view.rates.get(name).map_or_else(|| "–".to_owned(), |rate| format!("{}/s", count(*rate)));
        let figures = ["items_in", "items_out", "in_flight"].map(|key| right(count(number(&stage[key]))));
        let figures = figures.into_iter().filter(|_| !is_narrow);
        let last = [right(rate), Cell::from(wait(stage, palette))];
        Row::new([Cell::from(name)].into_iter().chain(figures).chain(last))
    });
    let figures = [("in", 13), ("out", 13), ("in flight", 9)];
    let figures = figures.iter().filter(|_| !is_narrow);
    let head = figures.clone().map(|(name, _)| right(*name));
    let head = [Cell::from("stage")].into_iter().chain(head).chain([right("rate"), Cell::from("")]);
    let widths = figures.map(|(_, width)| Constraint::Max(*width));
    let widths = [Constraint::Length(7)].into_iter().chain(widths).chain([Constraint::Max(10), Constraint::Fill(1)]);
    let head = Row::new(head).style(palette.heading);
    frame.render_widget(Table::new(rows, widths).header(head).block(Block::new().borders(Borders::TOP)), area);
}

/// What keeps a stage from going on.
fn wait(stage: &Value, palette: &Palette) -> Span<'static> {
    match (stage["paused"] == json!(true), stage["waiting"].as_str()) {
        (true, _) => Span::styled("paused", palette.notable),
        (false, Some(what)) => Span::styled(format!("waits for {what}"), palette.notable),
        (false, None) => {
            let what = stage["waits_for"].as_str().map_or_else(String::new, |what| format!("waits for {what}"));
            Span::styled(what, palette.faint)
        }
    }
}

fn losses(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let train = &view.status["train"];
    let title = format!(
        " loss {:.3}  λ {:.2}  learning rate {:.2e}  top-1 {:.3}  gradient norm {:.2} ",
        number(&train["loss"]),
        number(&train["lambda"]),
        number(&train["learning_rate"]),
        number(&train["top1"]),
        number(&train["grad_norm"])
    );
    let shown: Vec<f64> = view.losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    let shown = &shown[shown.len().saturating_sub(usize::from(area.width))..];
    let least = shown.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shown.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Bars from 1, so that the least one is seen, to 1000.
    let bars = shown.iter().map(|loss| 1 + (999.0 * (loss - least) / (most - least).max(1e-9)) as u64);
    let block = Block::new().borders(Borders::TOP).title(title);
    let line = Sparkline::default().data(bars.collect::<Vec<u64>>()).max(1000).style(palette.figure).block(block);
    frame.render_widget(line, area);
}

/// Teachers, and beside them corpora; on a narrow terminal corpora alone.
fn inputs(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let share = if area.width < 100 { 0 } else { 40 };
    let [teachers, corpora] = Layout::horizontal([Constraint::Percentage(share), Constraint::Fill(1)]).areas(area);
    let rows = |rows: Vec<Vec<String>>, state: usize| {
        rows.into_iter().take(ROWS).map(move |cells| {
            let styled = |(column, cell): (usize, String)| {
                let style = if column == state { palette.of_state(&cell) } else { Style::new() };
                Cell::from(Span::styled(cell, style))
            };
            Row::new(cells.into_iter().enumerate().map(styled).collect::<Vec<_>>())
        })
    };
    let head = |names: &[&'static str]| Row::new(names.to_vec()).style(palette.heading);
    let widths = [Constraint::Fill(2), Constraint::Length(9), Constraint::Fill(2)];
    let table = Table::new(rows(teacher_rows(view), 1), widths).header(head(&["teacher", "state", "languages"]));
    frame.render_widget(table, teachers);
    let columns = [
        ("corpus", Constraint::Fill(1)),
        ("state", Constraint::Length(9)),
        ("share", Constraint::Length(6)),
        ("characters read", Constraint::Length(15)),
        ("quarantined", Constraint::Length(11)),
    ];
    let columns = &columns[..if area.width < NARROW { 3 } else { 5 }];
    let (names, widths): (Vec<&str>, Vec<Constraint>) = columns.iter().copied().unzip();
    frame.render_widget(Table::new(rows(corpus_rows(view), 1), widths).header(head(&names)), corpora);
}

fn teacher_rows(view: &View) -> Vec<Vec<String>> {
    let mut teachers: Vec<(&String, &Value)> = view.status["teachers"].as_object().into_iter().flatten().collect();
    teachers.sort_by_key(|(_, teacher)| teacher["index"].as_u64());
    let row = |(name, teacher): (&String, &Value)| {
        let languages = teacher["languages"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let state = match (teacher["paused"] == json!(true), teacher["labels"] == json!(false)) {
            (true, _) => "paused",
            (false, true) => "tokenizer",
            (false, false) => teacher["state"].as_str().unwrap_or("?"),
        };
        vec![name.clone(), state.to_owned(), languages.collect::<Vec<_>>().join(" ")]
    };
    teachers.into_iter().map(row).collect()
}

fn corpus_rows(view: &View) -> Vec<Vec<String>> {
    let corpora = view.status["corpora"]["corpora"].as_array().into_iter().flatten();
    let row = |corpus: &Value| {
        let text = |key: &str| corpus[key].as_str().unwrap_or("?").to_owned();
        let share = format!("{:.3}", number(&corpus["share"]));
        let [consumed, quarantined] = ["characters_consumed", "quarantined"].map(|key| count(number(&corpus[key])));
        vec![text("name"), text("state"), share, consumed, quarantined]
    };
    corpora.map(row).collect()
}

fn score_rows(view: &View) -> Vec<Vec<String>> {
    let languages = view.status["evaluation"]["languages"].as_object().into_iter().flatten();
    let mut rows = Vec::new();
    for (language, scores) in languages {
        for (teacher, pair) in scores["teachers"].as_object().into_iter().flatten() {
            let figure = |key: &str| format!("{:.3}", number(&pair[key]));
            let rdt = pair["rdt"].as_f64().map_or_else(|| "–".to_owned(), |rdt| format!("{rdt:+.1} %"));
            rows.push(vec![
                language.clone(),
                teacher.clone(),
                figure("student_loss"),
                figure("student_top1"),
                figure("loss"),
                figure("top1"),
                rdt,
            ]);
        }
    }
    rows
}

fn evaluation(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let cells = |cells: Vec<String>| {
        let cell = |(column, cell): (usize, String)| if column < 2 { Cell::from(cell) } else { right(cell) };
        Row::new(cells.into_iter().enumerate().map(cell).collect::<Vec<_>>())
    };
    let at = format!("at step {}", count(number(&view.status["evaluation"]["step"])));
    let head = ["language", &at, "student loss", "top-1", "teacher loss", "top-1", "RDT"].map(str::to_owned);
    let widths = [
        Constraint::Length(8),
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Length(6),
        Constraint::Length(12),
        Constraint::Length(6),
        Constraint::Length(9),
    ];
    let head = cells(head.to_vec()).style(palette.heading);
    let rows = score_rows(view).into_iter().take(ROWS).map(cells);
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn events(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let height = usize::from(area.height.saturating_sub(1));
    let end = view.lines.len() - view.scrolled.min(view.lines.len());
    let shown = view.lines.range(end.saturating_sub(height)..end);
    let line = |line: &super::view::Line| {
        let style = if line.is_warning { palette.notable } else { Style::new() };
        Line::from(vec![Span::styled(line.time.clone(), palette.faint), Span::styled(format!(" {}", line.text), style)])
    };
    let title =
        if view.scrolled > 0 { format!(" events, {} more below ", view.scrolled) } else { " events ".to_owned() };
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(Paragraph::new(shown.map(line).collect::<Vec<_>>()).block(block), area);
}

fn footer(frame: &mut Frame<'_>, area: Rect, view: &View, palette: &Palette) {
    let pause = if view.is_paused() { "resume" } else { "pause" };
    let line = match &view.lost {
        Some(reason) => Line::styled(format!("{reason}; trying again"), palette.bad),
        None => Line::styled(format!("q quit  p {pause}  ↑↓ scroll   {}", view.socket.display()), palette.faint),
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn right(text: impl Into<String>) -> Cell<'static> {
    Cell::from(Line::from(text.into()).right_aligned())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::super::news::News;
    use super::*;
    use crate::commands::ctl::status::sample;
    use jiff::tz::TimeZone;
    use ops::DaemonEvent;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::path::Path;

    fn view() -> View {
        let mut view = View::new(Path::new("/run/m/control.sock"), TimeZone::UTC);
        view.take(News::Status(sample()));
        for step in 0..40 {
            let data = json!({"step": 250 + step, "loss": 6.0 - f64::from(step) / 20.0});
            view.take(News::Event(DaemonEvent { name: "step".to_owned(), data }));
        }
        view
    }

    fn drawn(view: &View, width: u16, height: u16, colors: bool) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, &Palette::new(colors))).unwrap();
        terminal
    }

    fn check(width: u16, height: u16, expected: &[&str], absent: &[&str]) {
        let screen = drawn(&view(), width, height, true).backend().to_string();
        for text in expected {
            assert!(screen.contains(text), "{text:?} is not on {width}×{height}:\n{screen}");
        }
        for text in absent {
            assert!(!screen.contains(text), "{text:?} is on {width}×{height}:\n{screen}");
        }
    }

    #[test]
    fn what_there_is_room_for() {
        let all = [
            "● paused",
            "16,561/s",
            "backlog 1.2 MB of 1.0 MB",
            "step 289 of 1,000",
            "waits for disk space",
            "waits for training to catch up",
            "waits for labelled text of `de`",
            "loss 4.050",
            "日本語",
            "wiki",
            "-50.0 %",
            "share of language en set to 0.25",
            "warn: wiki.txt: no UTF-8",
            "q quit  p resume",
        ];
        check(140, 40, &all, &[]);
        check(80, 24, &["● paused", "step 289", "waits for disk", "wiki", "warn: wiki.txt", "q quit"], &["日本語"]);
        check(40, 12, &["● paused", "trainer", "q quit"], &["日本語", "wiki  "]);
        check(20, 5, &["q quit"], &["trainer"]);
    }

    #[test]
    fn no_size_is_too_small() {
        for (width, height) in [(1, 1), (2, 3), (500, 2), (3, 100), (10, 8)] {
            drawn(&view(), width, height, true);
            drawn(&View::new(Path::new("s"), TimeZone::UTC), width, height, true);
        }
    }

    #[test]
    fn without_colours_there_are_none() {
        let coloured = |colors: bool| {
            let terminal = drawn(&view(), 120, 40, colors);
            terminal.backend().buffer().content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(coloured(true));
        assert!(!coloured(false));
    }

    #[test]
    fn a_daemon_that_is_gone_is_said_to_be() {
        let mut view = view();
        view.take(News::Lost("nobody listens".to_owned()));
        let screen = drawn(&view, 80, 24, true).backend().to_string();
        assert!(screen.contains("○ not running") && screen.contains("nobody listens; trying again"), "{screen}");
    }
}
