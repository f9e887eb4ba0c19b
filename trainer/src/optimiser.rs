//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019) with PyTorch's semantics: one
//! pass over a parameter reads gradient and moments and writes moments and value.

use crate::TrainerError;
use crate::student::Student;
use rayon::prelude::*;

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;
/// Numbers per unit of parallel work.
const PIECE: usize = 1 << 14;

/// The optimiser's state: running means of the gradients and of their squares.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Updates made so far; skipped steps do not count.
    pub updates: u64,
    /// In the order of the parameters' names.
    pub moments: Vec<Moments>,
}

/// One parameter's part of the state.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Hugging Face name of the parameter.
    pub name: String,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// What one update is to do.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled decay of matrices; vectors (biases, LayerNorms) have none.
    pub weight_decay: f64,
    /// Gradients are multiplied by this: see [`clip`].
    pub gradient_scale: f64,
}

/// The factor that brings a gradient of this `norm` down to `clip_norm`; 1 if it is not above, or if `clip_norm` is 0.
#[must_use]
pub fn clip(norm: f64, clip_norm: f64) -> f64 {
    if clip_norm > 0.0 { (clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

impl AdamW {
    /// No update made yet.
    #[must_use]
    pub fn new(student: &Student) -> Self {
        let moments = student.parameters().map(|parameter| {
            let count = parameter.gradient.len();
            Moments { name: parameter.name.to_owned(), first: vec![0.0; count], second: vec![0.0; count] }
        });
        Self { updates: 0, moments: moments.collect() }
    }

    /// Moves the student's parameters along their gradients.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be written.
    pub fn update(&mut self, student: &mut Student, update: &Update) -> Result<(), TrainerError> {
        self.updates += 1;
        let count = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let mut moments = self.moments.iter_mut();
        student.for_each_value(|parameter, value| {
            let Some(moments) = moments.next() else { return };
            debug_assert_eq!(moments.name, parameter.name);
            let factors = Factors::new(update, count, parameter.value.rank() > 1);
            let values = value.par_chunks_mut(PIECE).zip(parameter.gradient.par_chunks(PIECE));
            let states = moments.first.par_chunks_mut(PIECE).zip(moments.second.par_chunks_mut(PIECE));
            values
                .zip(states)
                .for_each(|((value, gradient), (first, second))| factors.apply(value, gradient, first, second));
        })
    }
}

/// An update's constants, rounded once.
struct Factors {
    gradient_scale: f32,
    keep: f32,
    step_size: f32,
    second_correction: f32,
}

impl Factors {
    fn new(update: &Update, count: i32, decays: bool) -> Self {
        let decay = if decays { update.learning_rate * update.weight_decay } else { 0.0 };
        Self {
            gradient_scale: update.gradient_scale as f32,
            keep: (1.0 - decay) as f32,
            step_size: (update.learning_rate / (1.0 - BETAS.0.powi(count))) as f32,
            second_correction: (1.0 / (1.0 - BETAS.1.powi(count)).sqrt()) as f32,
        }
    }

    fn apply(&self, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        const FIRST: f32 = (1.0 - BETAS.0) as f32;
        const SECOND: f32 = (1.0 - BETAS.1) as f32;
        let numbers = value.iter_mut().zip(gradient).zip(first).zip(second);
        for (((x, gradient), m), v) in numbers {
            let gradient = gradient * self.gradient_scale;
            *m += (gradient - *m) * FIRST;
            *v = *v * BETAS.1 as f32 + gradient * gradient * SECOND;
            *x = *x * self.keep - self.step_size * *m / (v.sqrt() * self.second_correction + EPSILON as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_is_clipped_to_its_norm() {
        assert_eq!(clip(0.5, 1.0), 1.0);
        assert!((clip(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip(4.0, 0.0), 1.0);
    }

    /// The textbook's formulas, in double precision.
    #[test]
    fn updates_follow_the_paper() {
        let update = Update { learning_rate: 0.01, weight_decay: 0.1, gradient_scale: 0.5 };
        let (mut value, mut first, mut second) = ([1.0_f32], [0.0_f32], [0.0_f32]);
        let (mut x, mut m, mut v) = (1.0_f64, 0.0_f64, 0.0_f64);
        for count in 1..=20 {
            let gradient = f64::from(count % 7) - 3.0;
            Factors::new(&update, count, true).apply(&mut value, &[gradient as f32], &mut first, &mut second);
            let gradient = gradient * 0.5;
            x -= 0.01 * 0.1 * x;
            m = 0.9 * m + 0.1 * gradient;
            v = 0.999 * v + 0.001 * gradient * gradient;
            x -= 0.01 * (m / (1.0 - 0.9_f64.powi(count))) / ((v / (1.0 - 0.999_f64.powi(count))).sqrt() + 1e-8);
            assert!((f64::from(value[0]) - x).abs() < 1e-6, "{count}: {} for {x}", value[0]);
        }
    }
}
