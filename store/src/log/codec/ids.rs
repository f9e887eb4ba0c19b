//! A model of the ids of a teacher's top-k.
//!
//! Words that a teacher holds possible at one place it mostly holds possible together: `the`, `a`, `this`. So an id is looked for first
//! among those that came, in this block, with the same largest one; that one itself among those that came behind the same
//! token. Only what is not there is coded by its frequency, and only that changes frequencies (as PPM's update exclusion does:
//! A. Moffat, "Implementing the PPM data compression scheme", 1990).

use super::coder::{Coder, Interval, Model, TOTAL};
use super::lists::{COUNT_MAX, LENGTH, Lists, STEP, Taken};
use super::models::{BIT_FLOOR, Bit};
use super::tables::IdModel;

/// Ranks, amounts of evidence, and ids that were not found, which are told apart.
const RANKS: usize = 8;
const EVIDENCE: usize = 8;
const MISSES: usize = 5;

/// The ids of one place after another.
pub(crate) struct TopIds {
    /// By the token before the place: largest ones.
    largest: Lists,
    /// By the largest one: the others.
    others: Lists,
    /// Whether an id is in its list.
    listed: Vec<Bit>,
    /// Of those that are not.
    rest: IdModel,
    /// Those.
    pub(crate) missed: Vec<u32>,
    taken: Taken,
}

impl TopIds {
    pub(crate) fn new(rest: IdModel) -> Self {
        Self {
            largest: Lists::default(),
            others: Lists::default(),
            listed: vec![Bit::default(); RANKS * EVIDENCE * MISSES],
            rest,
            missed: Vec::new(),
            taken: Taken::default(),
        }
    }

    /// Codes the id of a rank at a place behind the token `before`; `place` is none for the first.
    #[inline(always)]
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        rank: usize,
        before: u32,
        place: &mut Option<Place>,
        id: &mut u32,
    ) {
        let Some(place) = place else {
            let list = self.largest.open(before);
            let known = self.missed.len();
            self.one(coder, rank, Place { list, known }, id);
            self.largest.learn(list, &mut self.taken, &self.missed[known..]);
            *place = Some(Place { list: self.others.open(*id), known: self.missed.len() });
            return;
        };
        self.one(coder, rank, *place, id);
    }

    /// Learns from a place, all of whose ids were coded.
    pub(crate) fn learn(&mut self, place: Option<Place>) {
        if let Some(Place { list, known }) = place {
            self.others.learn(list, &mut self.taken, &self.missed[known..]);
        }
    }

    #[inline(always)]
    fn one<C: Coder>(&mut self, coder: &mut C, rank: usize, place: Place, id: &mut u32) {
        let lists = if rank == 0 { &mut self.largest } else { &mut self.others };
        let (ids, counts, sum) = lists.get(place.list);
        let sum = sum - self.taken.sum;
        if sum > 0 {
            let evidence = (sum.ilog2() as usize).min(EVIDENCE - 1);
            let misses = (self.missed.len() - place.known).min(MISSES - 1);
            let listed = &mut self.listed[(rank.min(RANKS - 1) * EVIDENCE + evidence) * MISSES + misses];
            let model = Listed { counts, sum, unit: share(listed.probability(), sum) };
            let at = if C::ENCODES { place_of(*id, ids, counts) } else { 0 };
            let at = coder.code(&model, at) as usize;
            listed.learn(at < ids.len());
            if let Some(found) = ids.get(at) {
                *id = *found;
                lists.take(place.list, at, &mut self.taken);
                return;
            }
        }
        *id = self.rest.code(coder, *id);
        self.missed.push(*id);
    }
}

/// Where ids are looked for at one place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    list: usize,
    /// Ids that were missed before this place.
    known: usize,
}

/// The place of an id that can still come, or the one behind the last.
fn place_of(id: u32, ids: &[u32], counts: &[u16]) -> u32 {
    const AT_ONCE: usize = 8;
    let chunk = ids.chunks(AT_ONCE).position(|chunk| chunk.iter().fold(false, |found, known| found | (*known == id)));
    let first = chunk.map_or(ids.len(), |chunk| chunk * AT_ONCE);
    let place = (first..ids.len()).find(|place| ids[*place] == id && counts[*place] > 0);
    place.unwrap_or(ids.len()) as u32
}

/// What each of `sum` has of a probability; a little less than one divided by the other, which takes longer.
fn share(probability: u32, sum: u32) -> u32 {
    const SUM_MAX: usize = COUNT_MAX as usize + STEP as usize * LENGTH;
    static RECIPROCALS: [u32; SUM_MAX + 1] = {
        let (mut reciprocals, mut sum) = ([u32::MAX; SUM_MAX + 1], 2);
        while sum <= SUM_MAX {
            reciprocals[sum] = ((1_u64 << 32) / sum as u64) as u32;
            sum += 1;
        }
        reciprocals
    };
    ((u64::from(probability) * u64::from(RECIPROCALS[sum as usize])) >> 32) as u32
}

/// The ids of a list that can still come at a place: those with a count.
struct Listed<'a> {
    counts: &'a [u16],
    /// Of the counts.
    sum: u32,
    /// What each count has of [`TOTAL`].
    unit: u32,
}

impl Listed<'_> {
    fn between(&self, sum: u32, count: u32) -> Interval {
        Interval { start: sum * self.unit, width: count * self.unit }
    }

    fn behind(&self) -> Interval {
        let start = self.sum * self.unit;
        Interval { start, width: TOTAL - start }
    }
}

/// A place in the list, or the one behind the last for an id that is not in it. There must be one that can come.
impl Model for Listed<'_> {
    #[inline]
    fn interval(&self, place: u32) -> Option<Interval> {
        let before: u32 = self.counts.get(..place as usize)?.iter().map(|count| u32::from(*count)).sum();
        Some(self.counts.get(place as usize).map_or(self.behind(), |count| self.between(before, u32::from(*count))))
    }

    #[inline]
    fn find(&self, quantile: u32) -> (u32, Interval) {
        const AT_ONCE: usize = 8;
        if quantile < self.sum * self.unit {
            let mut start = 0;
            for (chunk, counts) in self.counts.chunks(AT_ONCE).enumerate() {
                let (mut end, mut passed) = (start, 0);
                for count in counts {
                    end += u32::from(*count) * self.unit;
                    // Without branches, and all of it in registers.
                    let passes = end <= quantile;
                    start = if passes { end } else { start };
                    passed += usize::from(passes);
                }
                if let Some(count) = counts.get(passed) {
                    let interval = Interval { start, width: u32::from(*count) * self.unit };
                    return ((chunk * AT_ONCE + passed) as u32, interval);
                }
            }
        }
        (self.counts.len() as u32, self.behind())
    }
}

// A unit is at least 1.
const _: () = assert!((COUNT_MAX as u32) * 2 < BIT_FLOOR);
