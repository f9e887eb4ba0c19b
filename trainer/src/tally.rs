//! Sums of an evaluation over masked positions.

use crate::calibration::Calibration;
use crate::evaluate::TeacherEvaluation;
use crate::loss::Score;
use store::Label;

/// Sums over one teacher's masked positions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    /// The student at all of them.
    pub(crate) student: Tally,
    /// The student at the positions that the teacher labelled: not all, if it stalled.
    compared: Tally,
    teacher: Tally,
    /// Of the labelled positions, those at which both have the same best guess.
    agreed: u64,
    /// Sum of the mass that the labels retain.
    retained_mass: f64,
}

/// Sums over predictions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    loss: f64,
    correct: u64,
    pub(crate) positions: u64,
    calibration: Calibration,
}

impl Sums {
    /// Adds a position at which the student scores `score`.
    pub(crate) fn add_student(&mut self, score: &Score) {
        self.student.add(score.loss, score.best_probability, score.correct);
    }

    /// Adds the position again, which the teacher labelled, as position `at` of `label`. `gold` and the label's ids are the teacher's;
    /// `student_id` maps them to the student's. The label's last `samples` entries were drawn from the tail.
    pub(crate) fn add_labelled(
        &mut self,
        score: &Score,
        label: &Label,
        at: usize,
        gold: u32,
        samples: usize,
        student_id: impl Fn(u32) -> Option<u32>,
    ) {
        self.compared.add(score.loss, score.best_probability, score.correct);
        let loss = f64::from(label.log_sum_exp[at]) - f64::from(label.gold_logits[at]);
        let (best, probability) = label.best(at).unzip();
        self.teacher.add(loss, probability.unwrap_or_default(), best == Some(gold));
        self.agreed += u64::from(best.and_then(student_id) == Some(score.best_id));
        self.retained_mass += label.retained_mass(at, samples);
    }

    /// The teacher's entry in the report; `None`: it labelled nothing.
    pub(crate) fn evaluation(&self) -> Option<TeacherEvaluation> {
        let positions = self.teacher.positions;
        let (top1, student_top1) = (self.teacher.top1(), self.compared.top1());
        (positions > 0).then(|| TeacherEvaluation {
            loss: self.teacher.mean_loss(),
            top1,
            student_loss: self.compared.mean_loss(),
            student_top1,
            rdt: (top1 > 0.0).then(|| 100.0 * (student_top1 - top1) / top1),
            positions,
            ece: self.teacher.calibration.error(),
            student_ece: self.compared.calibration.error(),
            agreement: Some(self.agreed as f64 / positions as f64),
            retained_mass: Some(self.retained_mass / positions as f64),
        })
    }
}

impl Tally {
    fn add(&mut self, loss: f64, confidence: f64, correct: bool) {
        self.loss += loss;
        self.correct += u64::from(correct);
        self.positions += 1;
        self.calibration.add(confidence, correct);
    }

    /// Adds the sums of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.loss += other.loss;
        self.correct += other.correct;
        self.positions += other.positions;
        self.calibration.merge(&other.calibration);
    }

    pub(crate) fn mean_loss(&self) -> f64 {
        self.loss / self.positions.max(1) as f64
    }

    pub(crate) fn top1(&self) -> f64 {
        self.correct as f64 / self.positions.max(1) as f64
    }

    /// `None` without predictions.
    pub(crate) fn ece(&self) -> Option<f64> {
        self.calibration.error()
    }
}
