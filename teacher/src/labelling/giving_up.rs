//! What can be completed without a teacher that stalls.

use std::collections::HashSet;
use store::Group;

/// Whether a group can be completed without what `teacher` has still to label, the batches of its that are `missing`: whether each
/// of their records keeps a copy in a batch of another teacher that `is_labelled`, now or soon. Otherwise nothing of the teacher's
/// is given up: the group waits for it anyway.
pub(super) fn can_go_without(
    group: &Group,
    teacher: u16,
    missing: impl Fn(usize) -> bool,
    is_labelled: impl Fn(usize) -> bool,
) -> bool {
    let (own, others): (Vec<_>, Vec<_>) =
        group.batches.iter().enumerate().partition(|(_, plan)| plan.teacher == teacher);
    let others = others.into_iter().filter(|(batch, _)| is_labelled(*batch));
    let kept: HashSet<u32> = others.flat_map(|(_, plan)| &plan.members).map(|(entry, _)| *entry).collect();
    let mut missing = own.into_iter().filter(|(batch, _)| missing(*batch)).flat_map(|(_, plan)| &plan.members);
    missing.all(|(entry, _)| kept.contains(entry))
}
