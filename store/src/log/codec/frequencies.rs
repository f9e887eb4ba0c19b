//! An adaptive model of token ids.

use super::coder::{Coder, Interval, Model, TOTAL};
use crate::log::error::Damage;

/// Largest sum of weights: far enough below [`TOTAL`] for what dividing by it leaves over to be little.
const WEIGHT_MAX: u32 = TOTAL >> 5;
/// What an id that went by adds to its weight.
const STEP: u32 = 32;
/// What was learnt counts from the next time on that sums are made: after so many ids at first, then after twice as many, up to a
/// limit.
const TURN: (usize, usize) = (16, 512);
/// Ids that are summed up together.
const GROUP: usize = 16;
/// Places from which the search for a group begins.
const HINTS: u32 = 1024;

/// The weight of every id below a vocabulary's size.
#[derive(Clone, Debug)]
pub(crate) struct Frequencies {
    /// A whole number of groups; 0 beyond the size.
    weights: Vec<u32>,
    size: usize,
    /// The weight of each group.
    groups: Vec<u32>,
    /// The sum of the weights before each group, and of all.
    before: Vec<u32>,
    /// What each weight has of [`TOTAL`].
    unit: u32,
    /// `hints[s >> shift]`: the first group that ends behind the s, rounded down, that one looks for.
    hints: Vec<u32>,
    shift: u32,
    /// Ids that came since sums were made, and how many there may be.
    learnt: Vec<u32>,
    turn: usize,
}

impl Frequencies {
    /// What weights may add up to in the beginning.
    pub(crate) const ROOM: u32 = WEIGHT_MAX / 2;

    /// From each id's weight, at least 1 and together at most [`Self::ROOM`] and as much as there are ids; there is at least one.
    pub(crate) fn new(mut weights: Vec<u32>) -> Self {
        let size = weights.len();
        weights.resize(size.next_multiple_of(GROUP), 0);
        let before = vec![0; weights.len() / GROUP + 1];
        let (groups, hints, learnt) = (sums(&weights), Vec::new(), Vec::with_capacity(TURN.1));
        let mut frequencies = Self { weights, size, groups, before, unit: 1, hints, shift: 0, learnt, turn: TURN.0 };
        frequencies.sum();
        frequencies
    }

    /// Codes an id below the vocabulary's size, and learns from it.
    #[inline]
    pub(crate) fn code(&mut self, coder: &mut impl Coder, id: u32) -> Result<u32, Damage> {
        let id = coder.code(self, id)?;
        self.learnt.push(id);
        if self.learnt.len() == self.turn {
            self.turn = (2 * self.turn).min(TURN.1);
            self.learn();
        }
        Ok(id)
    }

    fn learn(&mut self) {
        for id in self.learnt.drain(..) {
            self.weights[id as usize] += STEP;
            self.groups[id as usize / GROUP] += STEP;
        }
        if self.groups.iter().sum::<u32>() > WEIGHT_MAX {
            self.weights.iter_mut().for_each(|weight| *weight = weight.div_ceil(2));
            self.groups = sums(&self.weights);
        }
        self.sum();
    }

    fn sum(&mut self) {
        let mut sum = 0_u32;
        for (before, group) in self.before[1..].iter_mut().zip(&self.groups) {
            sum += group;
            *before = sum;
        }
        self.unit = TOTAL / sum.max(1);
        self.shift = (sum / HINTS + 1).next_power_of_two().ilog2();
        self.hints.resize((sum as usize).div_ceil(1 << self.shift), 0);
        let mut from = 0;
        for (group, end) in (0..).zip(&self.before[1..]) {
            let end = (*end as usize).div_ceil(1 << self.shift);
            if from < end {
                self.hints[from..end].fill(group);
                from = end;
            }
        }
    }

    fn of_group(&self, group: usize) -> &[u32; GROUP] {
        &self.weights.as_chunks().0[group]
    }

    fn between(&self, start: u32, weight: u32) -> Interval {
        Interval { start: start * self.unit, width: weight * self.unit }
    }
}

/// What is left over of [`TOTAL`] belongs to nobody.
impl Model for Frequencies {
    fn interval(&self, id: u32) -> Option<Interval> {
        let id = id as usize;
        (id < self.size).then(|| {
            let (group, place) = (id / GROUP, id % GROUP);
            let weights = self.of_group(group);
            self.between(self.before[group] + weights[..place].iter().sum::<u32>(), weights[place])
        })
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        // No encoder writes what is beyond the last sum.
        let all = self.before[self.groups.len()];
        let wanted = (quantile / self.unit).min(all.saturating_sub(1));
        let mut group = self.hints[(wanted >> self.shift) as usize] as usize;
        while self.before[group + 1] <= wanted {
            group += 1;
        }
        let mut up_to = [0; GROUP];
        let mut sum = self.before[group];
        for (up_to, weight) in up_to.iter_mut().zip(self.of_group(group)) {
            sum += weight;
            *up_to = sum;
        }
        let passed: u32 = up_to.iter().map(|up_to| u32::from(*up_to <= wanted)).sum();
        let place = passed as usize % GROUP;
        let start = place.checked_sub(1).map_or(self.before[group], |before| up_to[before]);
        ((group * GROUP + place) as u32, self.between(start, up_to[place] - start))
    }
}

/// The sums of groups.
fn sums(weights: &[u32]) -> Vec<u32> {
    weights.chunks(GROUP).map(|group| group.iter().sum()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::coder::{Decoder, Encoder};
    use super::*;

    #[test]
    fn every_quantile_finds_the_id_whose_interval_holds_it() {
        for size in [1_usize, 15, 257, 5_000, 40_000] {
            let mut frequencies = Frequencies::new((0..size as u32).map(|id| 1 + id * 7_919 % 40).collect());
            for turn in 0..3 {
                for id in (0..size as u32).step_by(1 + size / 900) {
                    let interval = frequencies.interval(id).unwrap();
                    assert!(interval.width > 0);
                    for quantile in [interval.start, interval.start + interval.width - 1] {
                        assert_eq!(frequencies.find(quantile), (id, interval), "{size} {id}");
                    }
                }
                frequencies.learnt = vec![(turn * 7_907) % size as u32; 3_000];
                frequencies.learn();
            }
            assert_eq!(frequencies.interval(size as u32), None);
            assert_eq!(frequencies.find(TOTAL - 1).0, size as u32 - 1);
        }
    }

    #[test]
    fn weights_stay_within_their_bounds_and_both_sides_agree() {
        let ids = || (0..600_000_u32).map(|turn| turn % 2 + turn % 17 / 16 * 30);
        let (mut frequencies, mut encoder) = (Frequencies::new(vec![1; 40]), Encoder::default());
        for id in ids() {
            frequencies.code(&mut encoder, id).unwrap();
        }
        assert!(*frequencies.before.last().unwrap() <= WEIGHT_MAX);
        assert_eq!(frequencies.weights[39], 1);
        let (mut frequencies, mut decoder) = (Frequencies::new(vec![1; 40]), Decoder::new(&encoder.finish()).unwrap());
        assert!(ids().all(|id| frequencies.code(&mut decoder, 0).unwrap() == id));
    }
}
