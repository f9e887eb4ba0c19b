//! When what is in the parts of a watched feed arrived, as far as this process saw it come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;
use store::arrivals::unix_milliseconds;

/// Growths that are remembered.
const GROWTHS: usize = 4096;

/// The latest growths of the parts, in the order in which they were seen.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    growths: VecDeque<Growth>,
    /// Whether earlier ones were forgotten.
    forgot: bool,
}

#[derive(Debug)]
struct Growth {
    part: Arc<str>,
    /// Size of the part since then.
    bytes: u64,
    /// Milliseconds since 1970.
    seen_ms: u64,
}

impl Arrived {
    /// The part has this size now.
    pub(super) fn note(&mut self, part: &Arc<str>, bytes: u64) {
        if self.growths.len() == GROWTHS {
            self.growths.pop_front();
            self.forgot = true;
        }
        let seen_ms = unix_milliseconds(SystemTime::now());
        self.growths.push_back(Growth { part: Arc::clone(part), bytes, seen_ms });
    }

    /// When the part first reached beyond this offset, in milliseconds since 1970; `None`: that was not seen, or is forgotten.
    pub(super) fn reached_ms(&self, part: &str, offset_bytes: u64) -> Option<u64> {
        let mut earliest = None;
        for (at, growth) in self.growths.iter().enumerate().rev().filter(|(_, growth)| &*growth.part == part) {
            if growth.bytes <= offset_bytes {
                // Whoever asks has read further than anyone has looked so far: it comes just now.
                return earliest.or_else(|| Some(unix_milliseconds(SystemTime::now())));
            }
            // The one before the oldest that is remembered may have reached it already.
            earliest = (at > 0 || !self.forgot).then_some(growth.seen_ms);
        }
        earliest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_growth_beyond_an_offset_counts() {
        let mut arrived = Arrived::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let grow = |arrived: &mut Arrived, part: &Arc<str>, bytes, seen_ms| {
            arrived.note(part, bytes);
            arrived.growths.iter_mut().last().into_iter().for_each(|growth| growth.seen_ms = seen_ms);
        };
        for (part, bytes, seen_ms) in [(&a, 10, 1), (&a, 20, 2), (&b, 5, 3), (&a, 30, 4), (&b, 90, 5)] {
            grow(&mut arrived, part, bytes, seen_ms);
        }
        for (part, offset, expected) in [
            ("a", 0, Some(1)),
            ("a", 9, Some(1)),
            ("a", 10, Some(2)),
            ("a", 25, Some(4)),
            ("b", 4, Some(3)),
            ("b", 5, Some(5)),
            ("c", 0, None),
        ] {
            assert_eq!(arrived.reached_ms(part, offset), expected, "{part} at {offset}");
        }
        assert!(arrived.reached_ms("a", 30).is_some_and(|seen_ms| seen_ms > 1_600_000_000_000), "now");
        for seen_ms in 0..GROWTHS as u64 {
            grow(&mut arrived, &b, 100 + seen_ms, 6 + seen_ms);
        }
        assert_eq!(arrived.growths.len(), GROWTHS);
        assert_eq!(arrived.reached_ms("b", 99), None, "it may have been reached before");
        assert_eq!(arrived.reached_ms("b", 100), Some(7));
    }
}
