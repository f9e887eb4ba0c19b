//! The terminal that the process was started on: when it goes, so does a run.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

/// A shell that exits takes the terminal from its processes a moment after it has told them.
const TAKEN: Duration = Duration::from_millis(100);

/// What the process was started on.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    was_there: bool,
}

impl Terminal {
    /// To be called before SIGHUP is caught. Under `nohup`, and where there is no terminal, none can go.
    pub fn of_start() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { was_there: !ignores_hangups(&status) && is_there() }
    }

    /// Whether SIGHUP came because there was a terminal, and it is gone. Takes a moment.
    pub fn is_gone(self) -> bool {
        self.was_there && {
            thread::sleep(TAKEN);
            !is_there()
        }
    }
}

/// Whether the process has a controlling terminal, whatever its standard streams are.
fn is_there() -> bool {
    File::open("/dev/tty").is_ok()
}

/// What proc(5) says of the first signal.
fn ignores_hangups(status: &str) -> bool {
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_known_by_the_mask() {
        for (status, expected) in [
            ("Name:\tm\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n", true),
            ("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\n", false),
            ("SigIgn:\tno number\n", false),
            ("", false),
        ] {
            assert_eq!(ignores_hangups(status), expected, "{status}");
        }
        assert!(!Terminal { was_there: false }.is_gone());
    }
}
