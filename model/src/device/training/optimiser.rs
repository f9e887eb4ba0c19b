//! AdamW, the gradient's norm, and clearing it.

use super::super::calls::{at, f};
use super::super::{Argument, DeviceError};
use super::DeviceTraining;

/// An update's constants. m += (g · gradient_scale − m) · first; v = v · keep_second + (g · gradient_scale)² · second; x = x · keep − step_size · m / (√v · second_correction +
/// epsilon).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwFactors {
    /// What gradients are multiplied by.
    pub gradient_scale: f32,
    /// What is left of a parameter after weight decay.
    pub keep: f32,
    /// Learning rate, corrected for the first moment's beginning.
    pub step_size: f32,
    /// What the second moment's root is multiplied by.
    pub second_correction: f32,
    /// 1 − β₁.
    pub first: f32,
    /// β₂.
    pub keep_second: f32,
    /// 1 − β₂.
    pub second: f32,
    /// ε.
    pub epsilon: f32,
}

impl DeviceTraining {
    /// Moves the own part's parameters along their gradients, which are 0 afterwards. `factors` are those of vectors, and of what decays.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn update(&mut self, factors: [AdamwFactors; 2]) -> Result<(), DeviceError> {
        for (range, decays) in self.stretches() {
            let by = factors[usize::from(decays)];
            let place = 4 * range.start as u64;
            let narrow = self.narrow.as_ref().map_or(0, |narrow| narrow.at() + 2 * range.start as u64);
            let in_own = 4 * (range.start - self.own().start) as u64;
            let mut arguments = [&self.parameters, &self.gradients].map(|arena| at(arena.at() + place)).to_vec();
            arguments.extend([&self.first, &self.second].map(|moments| at(moments.at() + in_own)));
            arguments.extend([at(narrow), Argument::U64(range.len() as u64)]);
            let AdamwFactors {
                gradient_scale,
                keep,
                step_size,
                second_correction,
                first,
                keep_second,
                second,
                epsilon,
            } = by;
            arguments.extend(
                [gradient_scale, keep, step_size, second_correction, first, keep_second, second, epsilon].map(f),
            );
            self.calls.elements("adamw", range.len(), &arguments)?;
        }
        Ok(())
    }

    /// The square of the Euclidean norm of the own part's gradients.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn sum_of_squares(&mut self) -> Result<f64, DeviceError> {
        let own = self.own();
        self.calls.sum_of_squares(self.gradient(own.start), own.len(), &mut self.room.squares)
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn clear_gradients(&mut self) -> Result<(), DeviceError> {
        self.calls.clear(self.gradients.at(), 4 * self.layout.length())
    }
}
