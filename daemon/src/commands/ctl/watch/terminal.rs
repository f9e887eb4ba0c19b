//! The view on a terminal, and its keys. However it ends, the terminal is afterwards what it was: after q, a signal, an error, and a
//! panic of any thread.

use super::draw::{Palette, draw};
use super::news::{News, gather, tell};
use super::view::View;
use crate::commands::ctl::call;
use crate::failure::{ExitCode, Failure};
use crossbeam::channel::{Receiver, Sender};
use jiff::tz::TimeZone;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is new is drawn this often.
const FRAME: Duration = Duration::from_millis(100);
/// As many losses as a terminal may have columns.
const HISTORY: &str = "/v1/history?points=200";
/// Lines that a page scrolls.
const PAGE: isize = 10;

/// Shows the daemon that listens on `socket` until somebody quits.
pub(super) fn show(socket: &Path) -> Result<(), Failure> {
    // Whoever is not there at the beginning is told so on an ordinary terminal.
    let status = call(socket, "GET", "/v1/status", None)?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(|error| failed(&error))?;
    }
    let (send, receive) = gather(socket)?;
    let mut view = View::new(socket, TimeZone::system());
    view.take(News::Status(status));
    // A daemon without a trainer has none.
    if let Ok(history) = call(socket, "GET", HISTORY, None) {
        view.take(News::History(history));
    }
    let terminal = ratatui::try_init();
    let shown = terminal.and_then(|mut terminal| run(&mut terminal, &mut view, &ended, (&send, &receive)));
    ratatui::restore();
    shown.map_err(|error| failed(&error))
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(
        ExitCode::IoError,
        format!("cannot use the terminal: {error}; `ctl status` and `ctl watch | cat` need none"),
    )
}

fn run(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    ended: &AtomicBool,
    (send, receive): (&Sender<News>, &Receiver<News>),
) -> io::Result<()> {
    let palette = Palette::new(console::colors_enabled());
    while !ended.load(Ordering::Relaxed) {
        receive.try_iter().for_each(|news| view.take(news));
        terminal.draw(|frame| draw(frame, view, &palette))?;
        if event::poll(FRAME)?
            && let Event::Key(key) = event::read()?
            && pressed(key, view, send)?.is_break()
        {
            return Ok(());
        }
    }
    Ok(())
}

fn pressed(key: KeyEvent, view: &mut View, send: &Sender<News>) -> io::Result<ControlFlow<()>> {
    if key.kind == KeyEventKind::Release {
        return Ok(ControlFlow::Continue(()));
    }
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if with_control => return Ok(ControlFlow::Break(())),
        KeyCode::Char('q') | KeyCode::Esc => return Ok(ControlFlow::Break(())),
        KeyCode::Char('p' | ' ') => {
            let path = if view.is_paused() { "/v1/resume" } else { "/v1/pause" };
            tell(&view.socket, path, send).map_err(io::Error::other)?;
        }
        KeyCode::Up | KeyCode::Char('k') => view.scroll(1),
        KeyCode::Down | KeyCode::Char('j') => view.scroll(-1),
        KeyCode::PageUp => view.scroll(PAGE),
        KeyCode::PageDown => view.scroll(-PAGE),
        KeyCode::Home => view.scroll(isize::MAX),
        KeyCode::End => view.scroll(isize::MIN),
        _ => {}
    }
    Ok(ControlFlow::Continue(()))
}
