//! One optimiser step: student, optimiser, and a batch.

use crate::TrainerError;
use crate::batch::{Batch, MicroBatch};
use crate::device_student::DeviceStudent;
use crate::evaluate::Predictor;
use crate::loss::{LossSums, Score};
use crate::optimiser::{self, AdamW, Update};
use crate::options::TrainOptions;
use crate::schedule::{self, Rates};
use crate::student::Student;
use model::device::Ranks;
use model::random::Philox;
use model::{Dropout, PackedBatch};

/// Micro-batches of a step have numbers below this, so that each has dropout masks of its own.
const MICRO_BATCHES_MAX: u64 = 1 << 20;

/// What learns: the student and the optimiser's state.
pub struct Learner {
    /// While it learns on an accelerator, what it was when it was copied back ([`Learner::settle`]); the same holds for the optimiser's means.
    pub(crate) student: Student,
    pub(crate) optimiser: AdamW,
    device: Option<DeviceStudent>,
    dropout: Option<Philox>,
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct Learned {
    /// Losses over the batch, before the update.
    pub sums: LossSums,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Weight of distillation in the step's loss.
    pub lambda: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Why the weights were left as they are.
    pub skipped: Option<String>,
}

impl Learner {
    /// `optimiser` is the state that belongs to `student`; dropout, if its configuration has any, follows from `seed`.
    #[must_use]
    pub fn new(student: Student, optimiser: AdamW, seed: u64) -> Self {
        let configuration = student.configuration();
        let drops = configuration.hidden_dropout > 0.0 || configuration.attention_dropout > 0.0;
        Self { student, optimiser, device: None, dropout: drops.then(|| Philox::new(seed, "dropout", &[])) }
    }

    /// Goes on on accelerators.
    ///
    /// # Errors
    /// When there is no room, or one cannot train this shape.
    pub fn place(&mut self, on: &Ranks) -> Result<(), TrainerError> {
        self.settle()?;
        self.device = None; // First its room.
        self.device = Some(DeviceStudent::new(on, &self.student, &self.optimiser)?);
        Ok(())
    }

    /// The accelerators; `None`: it learns on the processor.
    pub(crate) fn on(&self) -> Option<Ranks> {
        self.device.as_ref().map(|device| device.on().clone())
    }

    /// The student as it is now.
    ///
    /// # Errors
    /// When an accelerator fails.
    pub fn student(&mut self) -> Result<&Student, TrainerError> {
        self.settle()?;
        Ok(&self.student)
    }

    /// Brings student and optimiser up to date with the accelerator.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub(crate) fn settle(&mut self) -> Result<(), TrainerError> {
        match &mut self.device {
            Some(device) => device.fetch(&mut self.student, &mut self.optimiser),
            None => Ok(()),
        }
    }

    /// Becomes another student, on the processor.
    pub(crate) fn replace(&mut self, (student, optimiser): (Student, AdamW)) {
        (self.student, self.optimiser, self.device) = (student, optimiser, None);
    }

    /// Times that a micro-batch was cut in two because an accelerator had no room for it, since this was asked last.
    pub(crate) fn take_halvings(&mut self) -> u64 {
        self.device.as_mut().map_or(0, DeviceStudent::take_halvings)
    }

    /// Bytes that it has on accelerators.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        self.device.as_ref().map_or(0, DeviceStudent::device_bytes)
    }

    pub(crate) fn gradient_norm(&mut self) -> Result<f64, TrainerError> {
        self.device.as_mut().map_or_else(|| Ok(self.student.gradient_norm()), DeviceStudent::gradient_norm)
    }

    pub(crate) fn clear_gradients(&mut self) -> Result<(), TrainerError> {
        match &mut self.device {
            Some(device) => device.clear_gradients(),
            None => {
                self.student.clear_gradients();
                Ok(())
            }
        }
    }

    fn update(&mut self, update: &Update) -> Result<(), TrainerError> {
        match &mut self.device {
            Some(device) => device.update(&mut self.optimiser, update),
            None => {
                self.student.update(&mut self.optimiser, update);
                Ok(())
            }
        }
    }

    /// Trains on `batch` as step `step`, counted from 0. A step whose loss or gradient is not finite changes nothing.
    ///
    /// # Errors
    /// When the batch does not fit the student.
    pub fn step(&mut self, step: u64, batch: &Batch, options: &TrainOptions) -> Result<Learned, TrainerError> {
        let Rates { learning_rate, lambda } = schedule::rates(step, options);
        let sums = self.accumulate(step, batch, lambda)?;
        let gradient_norm = self.gradient_norm()?;
        let skipped = why_skipped(&sums, gradient_norm);
        if skipped.is_none() {
            let gradient_scale = optimiser::clip(gradient_norm, options.clip_norm);
            let update = Update { learning_rate, weight_decay: options.weight_decay, gradient_scale };
            self.update(&update)?;
        } else {
            self.clear_gradients()?;
        }
        Ok(Learned { sums, learning_rate, lambda, gradient_norm, skipped })
    }

    /// Losses and gradients of a batch, which is that of step `step`; the weights stay what they are.
    ///
    /// # Errors
    /// When the batch does not fit the student; there are no gradients then.
    pub(crate) fn accumulate(&mut self, step: u64, batch: &Batch, lambda: f64) -> Result<LossSums, TrainerError> {
        let parts: Vec<_> = batch.micro_batches.iter().zip(0..).map(|(part, number)| (part, number, 0)).collect();
        let sums = self.accumulate_parts(step, &parts, lambda);
        if sums.is_err() {
            let _ = self.clear_gradients(); // What failed first says why.
        }
        sums
    }

    /// Adds the gradients of parts: (part, its micro-batch's number in step `step`, its first row there).
    pub(crate) fn accumulate_parts(
        &mut self,
        step: u64,
        parts: &[(&MicroBatch, u64, u32)],
        lambda: f64,
    ) -> Result<LossSums, TrainerError> {
        let stream = self.dropout;
        let dropout = |number, first_row| {
            stream.map(|stream| Dropout { stream, step: step * MICRO_BATCHES_MAX + number, first_row })
        };
        if let Some(device) = &mut self.device {
            let parts = parts.iter().map(|(part, number, first_row)| (*part, dropout(*number, *first_row)));
            return device.accumulate(parts.collect(), lambda);
        }
        let mut sums = LossSums::default();
        for (part, number, first_row) in parts {
            let dropout = dropout(*number, *first_row);
            sums.add(&self.student.accumulate(&part.packed, &part.targets(), lambda, dropout)?);
            store::pulse::beat();
        }
        Ok(sums)
    }
}

impl Predictor for Learner {
    fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError> {
        match &mut self.device {
            Some(device) => device.score(batch, gold_ids),
            None => self.student.score(batch, gold_ids),
        }
    }
}

/// Why a step with these losses and this norm of the gradient is to change nothing; `None`: all is finite.
pub(crate) fn why_skipped(sums: &LossSums, gradient_norm: f64) -> Option<String> {
    match (sums.loss.is_finite(), gradient_norm.is_finite()) {
        (false, _) => Some(format!("the loss is {}", sums.loss)),
        (true, false) => Some(format!("the gradient's norm is {gradient_norm}")),
        (true, true) => None,
    }
}
