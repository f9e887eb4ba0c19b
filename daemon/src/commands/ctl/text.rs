//! Numbers, times and trees as people read them.

use console::{Style, measure_text_width};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `1,234,567`.
pub(super) fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        let left = digits.len() - index;
        if index > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `3.2 MB`: powers of ten.
pub(super) fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `2d 3h`, `4min 12s`, `7s`: the two largest units.
pub(super) fn span(seconds: f64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut left = seconds.max(0.0) as u64;
    let parts = UNITS.iter().filter_map(|(unit, name)| {
        let number = left / unit;
        left %= unit;
        (number > 0).then(|| format!("{number}{name}"))
    });
    let parts: Vec<String> = parts.take(2).collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// `Sat 2026-11-21 18:04:05 UTC`.
pub(super) fn day_and_time(unix_seconds: f64, zone: &TimeZone) -> String {
    written(unix_seconds, zone, "%a %Y-%m-%d %H:%M:%S %Z")
}

/// `Nov 21 18:04:05`, as the journal has it.
pub(super) fn journal_time(unix_seconds: f64, zone: &TimeZone) -> String {
    written(unix_seconds, zone, "%b %d %H:%M:%S")
}

fn written(unix_seconds: f64, zone: &TimeZone, format: &str) -> String {
    match Timestamp::from_second(unix_seconds as i64) {
        Ok(time) => time.to_zoned(zone.clone()).strftime(format).to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// `text`, followed by as many spaces as it takes to be `columns` wide on a terminal.
pub(super) fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(measure_text_width(text))))
}

/// A line that is shown as far as it fits.
pub(super) fn fitted(line: &str, columns: Option<usize>) -> String {
    match columns {
        Some(columns) if measure_text_width(line) > columns => console::truncate_str(line, columns, "…").into_owned(),
        _ => line.to_owned(),
    }
}

/// What lights up in which colour; none where no colours are wanted.
pub(super) fn good() -> Style {
    Style::new().green().bold()
}

/// Something to look at.
pub(super) fn notable() -> Style {
    Style::new().yellow().bold()
}

/// Something is wrong.
pub(super) fn bad() -> Style {
    Style::new().red().bold()
}

/// What is there to be passed over.
pub(super) fn faint() -> Style {
    Style::new().dim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(
            [0.0, 7.4, 999.0, 1000.0, 1_234_567.0, -1234.0].map(count),
            ["0", "7", "999", "1,000", "1,234,567", "-1,234"]
        );
        assert_eq!(
            [0.0, 999.0, 1000.0, 3_250_000.0, 999_960.0].map(bytes),
            ["0 B", "999 B", "1.0 kB", "3.2 MB", "1.0 MB"]
        );
        assert_eq!([0.2, 59.9, 60.0, 252.0, 90_061.0].map(span), ["0s", "59s", "1min", "4min 12s", "1d 1h"]);
    }

    #[test]
    fn times() {
        assert_eq!(day_and_time(1_795_284_245.9, &TimeZone::UTC), "Sat 2026-11-21 18:04:05 UTC");
        assert_eq!(journal_time(1_795_284_245.0, &TimeZone::UTC), "Nov 21 18:04:05");
        assert_eq!(day_and_time(f64::MAX, &TimeZone::UTC), "?");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(padded("日本", 6), "日本  ");
        assert_eq!(fitted("日本語の", Some(5)), "日本…");
        assert_eq!(fitted("日本", Some(4)), "日本");
        assert_eq!(fitted("long", None), "long");
    }
}
