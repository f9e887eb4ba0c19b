//! What training costs in floating-point operations, so that learning curves can be compared at equal compute.
//!
//! A pass is counted by its shape ([`Configuration::flops`]). A step is a forward pass and a backward pass, which takes twice as much.
//! A teacher's pass is counted with the first step that reads its label; where one copy of each example is chosen, all its teachers'
//! passes with the first that reads the example. So a curve carries what its labels have cost; what was labelled
//! and is never trained on is not in it.

use crate::batch::Batch;
use crate::checkpoint::Totals;
use crate::options::TrainerTeacher;
use model::Configuration;
use serde::Serialize;

/// What a step has cost, and all steps up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Floating-point operations of the step: a forward pass, and twice that for the backward pass.
    pub train_flops: u64,
    /// What the teachers' labels have cost that were read for the first time. A teacher whose shape is not known costs nothing.
    pub teacher_flops: u64,
    /// Tokens trained on since the beginning.
    pub total_tokens: u64,
    /// `train_flops` since the beginning.
    pub total_train_flops: f64,
    /// `teacher_flops` since the beginning.
    pub total_teacher_flops: f64,
}

impl Cost {
    /// That of a step on `batch`, which is added to `totals`; `teachers` are in the order of the log's table.
    pub(crate) fn of(batch: &Batch, student: &Configuration, teachers: &[TrainerTeacher], totals: &mut Totals) -> Self {
        let by_teacher = teachers.iter().zip(0_u16..).filter_map(|(teacher, index)| {
            let labelled = batch.labelled.iter().filter(|copy| copy.teacher == index);
            Some(teacher.shape.as_ref()?.flops(labelled.map(|copy| (copy.tokens, copy.masked))))
        });
        let (train_flops, teacher_flops) = (3 * student.flops(batch.sizes.iter().copied()), by_teacher.sum());
        totals.tokens += batch.tokens as u64;
        totals.train_flops += train_flops as f64;
        totals.teacher_flops += teacher_flops as f64;
        let Totals { tokens: total_tokens, train_flops: total_train_flops, teacher_flops: total_teacher_flops, .. } =
            *totals;
        Self { train_flops, teacher_flops, total_tokens, total_train_flops, total_teacher_flops }
    }
}
