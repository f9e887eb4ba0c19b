//! `[threads]`: how many threads each role computes on.

use super::table::Table;
use serde::Serialize;

/// `[threads]`, as it takes effect: each role's share of the cores, so that neither starves the other. While one role waits (the
/// trainer for labels, or the teachers because the trainer is `store.max_backlog_bytes` behind, or for ever once all text is labelled)
/// the other uses both shares. Results do not depend on the number of threads. Ingestion, the log and the endpoints take a little of
/// one core, whatever is set here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Threads {
    /// Threads that label, for all teachers together. 0: all cores if nothing is trained, or those that `trainer` leaves, by
    /// default half of them, rounded down; at least one. What takes effect is 0 if nothing is labelled.
    pub teachers: usize,
    /// Threads that train. 0: all cores if nothing is labelled, or those that `teachers` leaves, by default half of them,
    /// rounded up; at least one. What takes effect is 0 if nothing is trained.
    pub trainer: usize,
}

impl Threads {
    /// As the file has it: 0 is yet to be decided.
    pub(super) fn read(mut table: Table) -> Self {
        let threads = Self { teachers: table.size("teachers", 0, ..=1024), trainer: table.size("trainer", 0, ..=1024) };
        table.finish();
        threads
    }

    /// Decides what was left open, for a machine of `cores`, by whether anything is labelled and trained.
    pub(super) fn resolve(self, labels: bool, trains: bool, cores: usize) -> Self {
        let or = |asked: usize, automatic: usize| if asked > 0 { asked } else { automatic.max(1) };
        let Self { teachers, trainer } = self;
        match (labels, trains) {
            (true, true) => {
                let left = if teachers > 0 { cores.saturating_sub(teachers) } else { cores.div_ceil(2) };
                let trainer = or(trainer, left);
                Self { teachers: or(teachers, cores.saturating_sub(trainer)), trainer }
            }
            (true, false) => Self { teachers: or(teachers, cores), trainer: 0 },
            (false, true) => Self { teachers: 0, trainer: or(trainer, cores) },
            (false, false) => Self { teachers: 0, trainer: 0 },
        }
    }

    /// What to tell a user who asked for more threads than there are `cores`.
    pub(super) fn warning(self, cores: usize) -> Option<String> {
        let Self { teachers, trainer } = self;
        let roles = usize::from(teachers > 0) + usize::from(trainer > 0);
        (teachers + trainer > cores.max(roles)).then(|| {
            format!(
                "[threads] teachers = {teachers} and trainer = {trainer} are more than the {cores} cores of this machine; \
                 both will be slower than with fewer"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(asked: (usize, usize), (labels, trains): (bool, bool), cores: usize, expected: (usize, usize)) {
        let threads = Threads { teachers: asked.0, trainer: asked.1 }.resolve(labels, trains, cores);
        assert_eq!((threads.teachers, threads.trainer), expected);
        assert_eq!(threads.resolve(labels, trains, cores), threads, "what takes effect reads back as itself");
        let too_many = expected.0 + expected.1 > cores.max(2);
        assert_eq!(threads.warning(cores).is_some(), too_many);
        assert!(!too_many || asked != (0, 0), "only who asks gets too many");
    }

    #[test]
    fn a_role_alone_has_all_cores() {
        check((0, 0), (true, false), 8, (8, 0));
        check((0, 0), (false, true), 8, (0, 8));
        check((3, 0), (true, false), 8, (3, 0));
        check((3, 5), (false, true), 4, (0, 5));
        check((0, 0), (false, true), 1, (0, 1));
        check((3, 5), (false, false), 4, (0, 0));
    }

    #[test]
    fn two_roles_share_the_cores() {
        for (cores, expected) in [(1, (1, 1)), (2, (1, 1)), (3, (1, 2)), (8, (4, 4)), (9, (4, 5))] {
            check((0, 0), (true, true), cores, expected);
        }
        check((6, 0), (true, true), 8, (6, 2));
        check((0, 6), (true, true), 8, (2, 6));
        check((8, 0), (true, true), 8, (8, 1));
        check((0, 20), (true, true), 8, (1, 20));
        check((3, 4), (true, true), 16, (3, 4));
    }
}
