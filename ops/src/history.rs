//! `GET /v1/history`: from which step on, and how finely.

use crate::Question;
use crate::reply::Refusal;
use crate::request::{Asked, invalid_query};

/// Values a series that are asked for when nothing is said, and at most.
const POINTS: usize = 500;
const MOST_POINTS: usize = 1024;

/// Parameters of the query.
pub(crate) const PARAMETERS: &[&str] = &["since_step", "points"];

/// Which part of the history is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Only what comes after this step; 0: everything.
    pub since_step: u64,
    /// Values in each series of steps and of evaluations, at most; between 1 and 1024.
    pub points: usize,
}

/// Reads `since_step=1000&points=200`; both may be missing.
pub(crate) fn question(asked: &Asked) -> Result<Question, Refusal> {
    let whole = |name: &str, default: usize| match asked.query(name) {
        None => Ok(default as u64),
        Some(text) => text.parse().map_err(|_| invalid_query(&format!("`{name}` must be a whole number"))),
    };
    let since_step = whole("since_step", 0)?;
    let points = usize::try_from(whole("points", POINTS)?).unwrap_or(usize::MAX);
    if !(1..=MOST_POINTS).contains(&points) {
        return Err(invalid_query(&format!("`points` must be between 1 and {MOST_POINTS}")));
    }
    Ok(Question::History(HistoryQuery { since_step, points }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        let query = |since_step, points| Some(Question::History(HistoryQuery { since_step, points }));
        for (text, expected) in [
            (None, query(0, POINTS)),
            (Some(""), query(0, POINTS)),
            (Some("points=7"), query(0, 7)),
            (Some("since_step=12&points=1024"), query(12, 1024)),
            (Some("points=1025"), None),
            (Some("points=0"), None),
            (Some("points=-1"), None),
            (Some("since_step=18446744073709551616"), None),
            (Some("since_step"), None),
            (Some("other=1"), None),
        ] {
            let asked = Asked::new(None, text, PARAMETERS);
            assert_eq!(asked.and_then(|asked| question(&asked)).ok(), expected, "{text:?}");
        }
    }
}
