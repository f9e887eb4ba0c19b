//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019) with PyTorch's semantics, over arenas:
//! one pass reads parameters, gradients and moments, writes them, and leaves the gradients 0.
//!
//! Work is cut into pieces of a fixed size, so that nothing depends on the number of threads.

use model::Slot;
use model::device::AdamwFactors;
use model::simd::vectorised;
use rayon::prelude::*;

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;
const FIRST: f32 = (1.0 - BETAS.0) as f32;
const SECOND: f32 = (1.0 - BETAS.1) as f32;
/// Numbers per unit of parallel work.
const PIECE: usize = 1 << 14;
/// Lanes of a sum.
const LANES: usize = 16;

/// The optimiser's state: running means of the gradients and of their squares, in arenas of the parameters' layout.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Updates made so far; skipped steps do not count.
    pub updates: u64,
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

/// Sets all gradients to 0.
pub fn clear(gradients: &mut [f32]) {
    gradients.par_chunks_mut(PIECE).for_each(|piece| piece.fill(0.0));
}

/// The square of the gradients' Euclidean norm, summed in double precision.
#[must_use]
pub fn sum_of_squares(gradients: &[f32]) -> f64 {
    dot(gradients, gradients)
}

/// The scalar product of two arenas of one layout, summed in double precision.
#[must_use]
pub fn dot(one: &[f32], other: &[f32]) -> f64 {
    let pieces = one.par_chunks(PIECE).zip(other.par_chunks(PIECE));
    let pieces: Vec<f64> = pieces.map(|(one, other)| dot_of_piece(one, other)).collect();
    pieces.iter().sum()
}

fn dot_of_piece(one: &[f32], other: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0.0_f64; LANES];
            let ((chunks, rest), (others, other_rest)) = (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
            for (chunk, other) in chunks.iter().zip(others) {
                for lane in 0..LANES {
                    lanes[lane] += f64::from(chunk[lane]) * f64::from(other[lane]);
                }
            }
            let rest = rest.iter().zip(other_rest).map(|(x, y)| f64::from(*x) * f64::from(*y));
            lanes.iter().sum::<f64>() + rest.sum::<f64>()
        },
    )
}

impl AdamW {
    /// No update made yet, for arenas of `length` numbers.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self { updates: 0, first: vec![0.0; length], second: vec![0.0; length] }
    }

    /// The constants of the update that was counted last, for vectors and for what decays.
    #[must_use]
    pub(crate) fn factors(&self, update: &Update) -> [AdamwFactors; 2] {
        let count = i32::try_from(self.updates).unwrap_or(i32::MAX);
        [false, true].map(|decays| {
            let Factors { gradient_scale, keep, step_size, second_correction } = Factors::new(update, count, decays);
            AdamwFactors {
                gradient_scale,
                keep,
                step_size,
                second_correction,
                first: FIRST,
                keep_second: BETAS.1 as f32,
                second: SECOND,
                epsilon: EPSILON as f32,
            }
        })
    }

    /// Moves `parameters` along their `gradients`, which are 0 afterwards. Both are arenas in which `slots` lie in this order.
    ///
    /// # Panics
    /// When an arena has another length than the state.
    pub fn update(&mut self, parameters: &mut [f32], gradients: &mut [f32], slots: &[Slot], update: &Update) {
        assert_eq!([parameters.len(), gradients.len(), self.second.len()], [self.first.len(); 3], "lengths of arenas");
        self.updates += 1;
        let count = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let factors = [false, true].map(|decays| Factors::new(update, count, decays));
        let numbers = parameters.par_chunks_mut(PIECE).zip(gradients.par_chunks_mut(PIECE));
        let states = self.first.par_chunks_mut(PIECE).zip(self.second.par_chunks_mut(PIECE));
        numbers.zip(states).enumerate().for_each(|(piece, ((values, gradients), (first, second)))| {
            let mut arenas = Arenas { values, gradients, first, second };
            for (end, decays) in stretches(slots, piece * PIECE, arenas.values.len()) {
                factors[usize::from(decays)].apply(arenas.take(end));
            }
        });
    }
}

/// How a piece of an arena is to be cut so that each part either decays or does not: (length, whether it decays). What lies between
/// parameters is 0 and stays so.
fn stretches(slots: &[Slot], first: usize, length: usize) -> Vec<(usize, bool)> {
    let end = first + length;
    let mut stretches = Vec::new();
    let mut at = first;
    let from = slots.partition_point(|slot| slot.range.end <= first);
    for slot in slots[from..].iter().take_while(|slot| slot.range.start < end) {
        let stop = slot.range.end.min(end);
        stretches.push((stop - at, slot.decays()));
        at = stop;
    }
    if at < end {
        stretches.push((end - at, false));
    }
    stretches
}

/// The same part of four arenas.
struct Arenas<'a> {
    values: &'a mut [f32],
    gradients: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl<'a> Arenas<'a> {
    /// Takes the first `count` numbers of each away.
    fn take(&mut self, count: usize) -> Self {
        fn take<'a>(part: &mut &'a mut [f32], count: usize) -> &'a mut [f32] {
            part.split_off_mut(..count).unwrap_or_default()
        }
        Self {
            values: take(&mut self.values, count),
            gradients: take(&mut self.gradients, count),
            first: take(&mut self.first, count),
            second: take(&mut self.second, count),
        }
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

    fn apply(&self, part: Arenas<'_>) {
        vectorised(
            #[inline(always)]
            || {
                let Arenas { values, gradients, first, second } = part;
                let numbers = values.iter_mut().zip(gradients).zip(first).zip(second);
                for (((x, gradient), m), v) in numbers {
                    let scaled = *gradient * self.gradient_scale;
                    *gradient = 0.0;
                    *m += (scaled - *m) * FIRST;
                    *v = *v * BETAS.1 as f32 + scaled * scaled * SECOND;
                    *x = *x * self.keep - self.step_size * *m / (v.sqrt() * self.second_correction + EPSILON as f32);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::options::StudentOptions;
    use model::Layout;
    use model::random::Philox;

    #[test]
    fn a_gradient_is_clipped_to_its_norm() {
        assert_eq!(clip(0.5, 1.0), 1.0);
        assert!((clip(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip(4.0, 0.0), 1.0);
    }

    #[test]
    fn squares_add_up() {
        let numbers: Vec<f32> = (0..3 * PIECE + 7).map(|at| (at % 13) as f32 - 5.0).collect();
        let expected: f64 = numbers.iter().map(|x| f64::from(x * x)).sum();
        assert_eq!(sum_of_squares(&numbers), expected);
        let other: Vec<f32> = numbers.iter().map(|x| x - 2.0).collect();
        let product: f64 = numbers.iter().zip(&other).map(|(x, y)| f64::from(x * y)).sum();
        assert_eq!(dot(&numbers, &other), product);
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan() && sum_of_squares(&[f32::MAX; 20]).is_finite());
    }

    /// Several pieces, and parameters that begin and end inside them.
    fn layout() -> Layout {
        let options = StudentOptions {
            layers: 2,
            hidden_size: 36,
            heads: 2,
            intermediate_size: 50,
            embedding_size: 36,
            max_sequence_length: 16,
            dropout: 0.1,
            ..StudentOptions::default()
        };
        Layout::of(&options.configuration(1001, 0))
    }

    fn values(length: usize, seed: u64) -> Vec<f32> {
        let stream = Philox::new(seed, "test", &[]);
        (0..length as u64).map(|at| stream.normal(at, 0) as f32).collect()
    }

    const UPDATE: Update = Update { learning_rate: 0.01, weight_decay: 0.1, gradient_scale: 0.5 };

    /// The textbook's formulas, in double precision.
    #[test]
    fn updates_follow_the_paper() {
        let layout = layout();
        let mut arena = values(layout.length(), 1);
        let mut optimiser = AdamW::new(layout.length());
        let mut expected: Vec<(f64, f64, f64)> = arena.iter().map(|x| (f64::from(*x), 0.0, 0.0)).collect();
        for count in 1..=10 {
            let mut gradients = values(layout.length(), 1 + count as u64);
            for slot in layout.slots() {
                for at in slot.range.clone() {
                    let (x, m, v) = &mut expected[at];
                    let gradient = f64::from(gradients[at]) * 0.5;
                    *x -= if slot.shape.len() > 1 { 0.01 * 0.1 * *x } else { 0.0 };
                    *m = 0.9 * *m + 0.1 * gradient;
                    *v = 0.999 * *v + 0.001 * gradient * gradient;
                    let corrected = *m / (1.0 - 0.9_f64.powi(count));
                    *x -= 0.01 * corrected / ((*v / (1.0 - 0.999_f64.powi(count))).sqrt() + 1e-8);
                }
            }
            optimiser.update(&mut arena, &mut gradients, layout.slots(), &UPDATE);
            assert!(gradients.iter().all(|gradient| *gradient == 0.0));
        }
        for at in layout.slots().iter().flat_map(|slot| slot.range.clone()) {
            assert!((f64::from(arena[at]) - expected[at].0).abs() < 1e-5, "{at}: {} for {}", arena[at], expected[at].0);
        }
        assert_eq!(optimiser.updates, 10);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let layout = layout();
        let updated = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut arena, mut optimiser) = (values(layout.length(), 1), AdamW::new(layout.length()));
                let mut gradients = values(layout.length(), 2);
                let norm = sum_of_squares(&gradients);
                optimiser.update(&mut arena, &mut gradients, layout.slots(), &UPDATE);
                (arena, optimiser, norm)
            })
        };
        let one = updated(1);
        assert!(updated(2) == one && updated(3) == one);
    }
}
