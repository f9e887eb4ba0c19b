//! An adaptive model of token ids.

use super::coder::{Coder, Interval, Model, TOTAL};

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
    /// Of each id and those before it in its group; beyond the size, ids weigh nothing.
    up_to: Vec<u32>,
    size: usize,
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
        add_up(&mut weights);
        let (hints, learnt) = (Vec::new(), Vec::with_capacity(TURN.1));
        let mut frequencies = Self { up_to: weights, size, before, unit: 1, hints, shift: 0, learnt, turn: TURN.0 };
        frequencies.sum();
        frequencies
    }

    /// Codes an id below the vocabulary's size, and learns from it.
    #[inline]
    pub(crate) fn code(&mut self, coder: &mut impl Coder, id: u32) -> u32 {
        let id = coder.code(self, id);
        self.learnt.push(id);
        if self.learnt.len() == self.turn {
            self.turn = (2 * self.turn).min(TURN.1);
            self.learn();
        }
        id
    }

    fn learn(&mut self) {
        let groups = self.up_to.as_chunks_mut().0;
        for id in self.learnt.drain(..) {
            let group: &mut [u32; GROUP] = &mut groups[id as usize / GROUP];
            for (at, up_to) in (0..).zip(group) {
                *up_to += if at < id % GROUP as u32 { 0 } else { STEP };
            }
        }
        let sum = groups.iter().map(|group| group[GROUP - 1]).sum::<u32>();
        if sum > WEIGHT_MAX {
            self.halve();
        }
        self.sum();
    }

    fn halve(&mut self) {
        for group in self.up_to.chunks_mut(GROUP) {
            let mut before = 0;
            for weight in group {
                let up_to = *weight;
                *weight = (up_to - before).div_ceil(2);
                before = up_to;
            }
        }
        add_up(&mut self.up_to);
    }

    fn sum(&mut self) {
        let mut sum = 0_u32;
        for (before, group) in self.before[1..].iter_mut().zip(self.up_to.as_chunks::<GROUP>().0) {
            sum += group[GROUP - 1];
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
        &self.up_to.as_chunks().0[group]
    }

    /// What a group's id has of [`TOTAL`].
    fn interval_of(&self, group: usize, place: usize) -> Interval {
        let up_to = self.of_group(group);
        let start = place.checked_sub(1).map_or(0, |before| up_to[before]);
        Interval { start: (self.before[group] + start) * self.unit, width: (up_to[place] - start) * self.unit }
    }
}

/// What is left over of [`TOTAL`] belongs to nobody.
impl Model for Frequencies {
    fn interval(&self, id: u32) -> Option<Interval> {
        let id = id as usize;
        (id < self.size).then(|| self.interval_of(id / GROUP, id % GROUP))
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        // No encoder writes what is beyond the last sum.
        let all = self.before[self.before.len() - 1];
        let wanted = (quantile / self.unit).min(all.saturating_sub(1));
        let mut group = self.hints[(wanted >> self.shift) as usize] as usize;
        while self.before[group + 1] <= wanted {
            group += 1;
        }
        let within = wanted - self.before[group];
        let passed: u32 = self.of_group(group).iter().map(|up_to| u32::from(*up_to <= within)).sum();
        let place = passed as usize % GROUP;
        ((group * GROUP + place) as u32, self.interval_of(group, place))
    }
}

/// Adds up weights, in each group.
fn add_up(weights: &mut [u32]) {
    for group in weights.chunks_mut(GROUP) {
        let mut sum = 0;
        for weight in group {
            sum += *weight;
            *weight = sum;
        }
    }
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
            frequencies.code(&mut encoder, id);
        }
        assert!(*frequencies.before.last().unwrap() <= WEIGHT_MAX);
        assert_eq!(frequencies.interval_of(39 / GROUP, 39 % GROUP).width, frequencies.unit);
        let (mut frequencies, mut decoder) =
            (Frequencies::new(vec![1; 40]), Decoder::new(&encoder.finish().unwrap()).unwrap());
        assert!(ids().all(|id| frequencies.code(&mut decoder, 0) == id));
    }
}
