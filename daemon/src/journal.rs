//! Log lines for systemd's journal: with a priority, and with their fields where it takes them.

use rustix::fs::fstat;
use std::fmt;
use tracing::{Event, Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// `<sd-daemon.h>`'s SD_ERR.
const ERROR: u8 = 3;

/// Whether standard error goes to the journal: systemd says which stream it opened for that, and it may have been redirected since.
pub fn has_stderr() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Some((device, inode)) = stream.split_once(':') else { return false };
    fstat(std::io::stderr()).is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// Entries in the journal's own form: PRIORITY, MESSAGE, TARGET, and each field as `MERGEDISTILL_<NAME>`. `None`: its socket cannot be
/// reached, as in a container that has only the stream.
pub fn native() -> Option<tracing_journald::Layer> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer().ok()?;
    let layer = layer.with_syslog_identifier("mergedistill".to_owned()).with_priority_mappings(priorities);
    Some(layer.with_field_prefix(Some("MERGEDISTILL".to_owned())))
}

/// What is said on standard error about a failure: each line with its priority if the journal reads it.
pub fn error_text(text: &str) -> String {
    if has_stderr() { prefixed(ERROR, text) } else { text.to_owned() }
}

/// Lines of the stream, each with its priority in front. The journal knows the time itself.
#[derive(Debug)]
pub struct Prefixed(Format<Compact, ()>);

impl Default for Prefixed {
    fn default() -> Self {
        let format = tracing_subscriber::fmt::format().compact().without_time();
        Self(format.with_ansi(false).with_level(false).with_target(false))
    }
}

impl<S, N> FormatEvent<S, N> for Prefixed
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writeln!(writer, "{}", prefixed(priority, text.trim_end()))
    }
}

/// Every line is an entry of its own.
fn prefixed(priority: u8, text: &str) -> String {
    text.lines().map(|line| format!("<{priority}>{line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(prefixed(3, "two\nlines\n"), "<3>two\n<3>lines");
    }
}
