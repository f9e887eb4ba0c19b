//! An adaptive model of token ids.

use super::coder::{Coder, Interval, Model, PRECISION, TOTAL};
use crate::log::error::Damage;

/// Largest sum of weights: far enough below [`TOTAL`] for every id to get a part of it.
const WEIGHT_MAX: u32 = TOTAL >> 1;
/// What an id that went by adds to its weight.
const STEP: u32 = 32;

/// The weight of every id below a vocabulary's size, in a Fenwick tree: a sum, a search and a change each take as many steps
/// as the size has bits (P. Fenwick, "A new data structure for cumulative frequency tables", 1994).
#[derive(Clone, Debug)]
pub(crate) struct Frequencies {
    /// `tree[i]`: the sum of the weights from i + 1 − lowbit(i + 1) to i.
    tree: Vec<u32>,
    total: u32,
}

impl Frequencies {
    /// From each id's weight, at least 1 and together at most [`Self::ROOM`].
    pub(crate) fn new(mut weights: Vec<u32>) -> Self {
        let total = weights.iter().sum();
        for index in 0..weights.len() {
            let above = index | (index + 1);
            if above < weights.len() {
                weights[above] += weights[index];
            }
        }
        Self { tree: weights, total }
    }

    /// What weights may add up to in the beginning.
    pub(crate) const ROOM: u32 = WEIGHT_MAX / 2;

    /// Codes an id below the vocabulary's size, and learns from it.
    pub(crate) fn code(&mut self, coder: &mut impl Coder, id: u32) -> Result<u32, Damage> {
        let id = coder.code(self, id)?;
        self.add(id);
        Ok(id)
    }

    fn add(&mut self, id: u32) {
        if self.total > WEIGHT_MAX - STEP {
            self.halve();
        }
        let mut index = id as usize;
        while index < self.tree.len() {
            self.tree[index] += STEP;
            index |= index + 1;
        }
        self.total += STEP;
    }

    fn halve(&mut self) {
        let mut weights = std::mem::take(&mut self.tree);
        for index in (0..weights.len()).rev() {
            let above = index | (index + 1);
            if above < weights.len() {
                weights[above] -= weights[index];
            }
        }
        weights.iter_mut().for_each(|weight| *weight = (*weight).div_ceil(2));
        *self = Self::new(weights);
    }

    /// The sum of the weights of the ids below `id`.
    fn below(&self, id: usize) -> u32 {
        let (mut sum, mut end) = (0, id);
        while end > 0 {
            sum += self.tree[end - 1];
            end &= end - 1;
        }
        sum
    }

    /// The sum of weights as a part of [`TOTAL`].
    fn edge(&self, sum: u32) -> u32 {
        ((u64::from(sum) << PRECISION) / u64::from(self.total.max(1))) as u32
    }

    /// The weight of one id: what its node of the tree holds, less the nodes below.
    fn weight(&self, id: usize) -> u32 {
        let (mut weight, mut end, first) = (self.tree[id], id, id & (id + 1));
        while end > first {
            weight -= self.tree[end - 1];
            end &= end - 1;
        }
        weight
    }

    fn between(&self, from: u32, to: u32) -> Interval {
        let start = self.edge(from);
        Interval { start, width: self.edge(to) - start }
    }
}

impl Model for Frequencies {
    fn interval(&self, id: u32) -> Option<Interval> {
        let id = id as usize;
        (id < self.tree.len()).then(|| {
            let below = self.below(id);
            self.between(below, below + self.weight(id))
        })
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        // The largest sum whose edge is at or before the quantile: floor(s · TOTAL / n) ≤ q ⟺ s < (q + 1) · n / TOTAL.
        let wanted = (((u64::from(quantile) + 1) * u64::from(self.total.max(1)) - 1) >> PRECISION) as u32;
        let (mut id, mut sum) = (0, 0);
        let mut step = (self.tree.len() + 1).next_power_of_two() / 2;
        while step > 0 {
            if let Some(part) = self.tree.get(id + step - 1)
                && sum + part <= wanted
            {
                id += step;
                sum += part;
            }
            step /= 2;
        }
        // There is an id, and what is wanted is below the sum of all.
        (id as u32, self.between(sum, sum + self.weight(id)))
    }
}
