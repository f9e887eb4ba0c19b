//! A model of the ids of a teacher's top-k.
//!
//! Words that a teacher holds possible at one place it mostly holds possible together: `the`, `a`, `this`. So an id is looked for first
//! among those that came, in this block, with the same largest one; that one itself among those that came behind the same
//! token. Only what is not there is coded by its frequency, and only that changes frequencies (as PPM's update exclusion does:
//! A. Moffat, "Implementing the PPM data compression scheme", 1990).

use super::coder::{Coder, Interval, Model, PRECISION, TOTAL};
use super::models::Bit;
use super::tables::IdModel;
use crate::log::error::Damage;
/// Ids that a list holds.
const LENGTH: usize = 64;
/// Counts of a list are halved when they add up to this: far below what a [`Bit`] leaves to the rarer answer.
const COUNT_MAX: u16 = 1024;
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
    candidates: Candidates,
}

/// Ids by what they came with.
#[derive(Default)]
struct Lists {
    /// By key: where its list is, plus 1; 0: nowhere.
    places: Vec<u32>,
    lists: Vec<List>,
}

/// Ids with the same low bits share a list. Few vocabularies are larger.
const KEY_BITS: u32 = 18;

/// Ids and how often they came, roughly the most frequent first.
#[derive(Clone, Debug, Default)]
struct List {
    ids: Vec<u32>,
    counts: Vec<u16>,
    sum: u16,
}

/// The ids of a list that can still come at a place.
#[derive(Default)]
struct Candidates {
    ids: Vec<u32>,
    /// 0: it came already.
    counts: Vec<u16>,
    sum: u32,
    /// Probability that the id is among them, out of [`TOTAL`].
    listed: u32,
}

impl TopIds {
    pub(crate) fn new(rest: IdModel) -> Self {
        let listed = vec![Bit::default(); RANKS * EVIDENCE * MISSES];
        Self {
            largest: Lists::default(),
            others: Lists::default(),
            listed,
            rest,
            missed: Vec::new(),
            candidates: Candidates::default(),
        }
    }

    /// Codes the top-k of one place, behind the token `before`.
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, before: u32, ids: &mut [u32]) -> Result<(), Damage> {
        let Some((largest, others)) = ids.split_first_mut() else { return Ok(()) };
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.take_over(self.largest.get(before));
        self.one(coder, &mut candidates, (0, 0), largest)?;
        self.largest.add(before, std::slice::from_ref(largest));
        candidates.take_over(self.others.get(*largest));
        let mut misses = 0;
        for (rank, id) in (1..).zip(others.iter_mut()) {
            misses += usize::from(!self.one(coder, &mut candidates, (rank, misses), id)?);
        }
        self.others.add(*largest, others);
        self.candidates = candidates;
        Ok(())
    }

    /// Codes an id; returns whether it was in the list.
    fn one<C: Coder>(
        &mut self,
        coder: &mut C,
        candidates: &mut Candidates,
        (rank, misses): (usize, usize),
        id: &mut u32,
    ) -> Result<bool, Damage> {
        if candidates.sum == 0 {
            self.miss(coder, id)?;
            return Ok(false);
        }
        let evidence = (candidates.sum.ilog2() as usize).min(EVIDENCE - 1);
        let model = (rank.min(RANKS - 1) * EVIDENCE + evidence) * MISSES + misses.min(MISSES - 1);
        candidates.listed = self.listed[model].probability();
        let place = candidates.place(*id);
        let place = coder.code(candidates, place)? as usize;
        let listed = place < candidates.ids.len();
        self.listed[model].learn(listed);
        if listed {
            *id = candidates.ids[place];
            candidates.take(place);
        } else {
            self.miss(coder, id)?;
        }
        Ok(listed)
    }

    fn miss<C: Coder>(&mut self, coder: &mut C, id: &mut u32) -> Result<(), Damage> {
        *id = self.rest.code(coder, *id)?;
        self.missed.push(*id);
        Ok(())
    }
}

impl Lists {
    fn get(&self, key: u32) -> Option<&List> {
        let place = self.places.get(low(key))?.checked_sub(1)?;
        self.lists.get(place as usize)
    }

    fn add(&mut self, key: u32, ids: &[u32]) {
        let key = low(key);
        if self.places.len() <= key {
            self.places.resize(key + 1, 0);
        }
        if self.places[key] == 0 {
            self.lists.push(List::default());
            self.places[key] = self.lists.len() as u32;
        }
        let list = &mut self.lists[self.places[key] as usize - 1];
        ids.iter().for_each(|id| list.add(*id));
    }
}

fn low(key: u32) -> usize {
    (key & ((1 << KEY_BITS) - 1)) as usize
}

impl List {
    fn add(&mut self, id: u32) {
        match self.ids.iter().position(|known| *known == id) {
            Some(at) => {
                self.counts[at] += 2;
                self.sum += 2;
                // Towards the front, one place at a time.
                if let Some(before) = at.checked_sub(1).filter(|before| self.counts[*before] < self.counts[at]) {
                    self.ids.swap(at, before);
                    self.counts.swap(at, before);
                }
            }
            None if self.ids.len() < LENGTH => {
                self.ids.push(id);
                self.counts.push(2);
                self.sum += 2;
            }
            None => self.replace_last(id),
        }
        if self.sum >= COUNT_MAX {
            self.counts.iter_mut().for_each(|count| *count = count.div_ceil(2));
            self.sum = self.counts.iter().sum();
        }
    }

    /// The last one has to make room for a new one, but not for the first that comes along.
    fn replace_last(&mut self, id: u32) {
        if let (Some(last), Some(count)) = (self.ids.last_mut(), self.counts.last_mut()) {
            *count -= 1;
            self.sum -= 1;
            if *count == 0 {
                (*last, *count) = (id, 2);
                self.sum += 2;
            }
        }
    }
}

impl Candidates {
    fn take_over(&mut self, list: Option<&List>) {
        self.ids.clear();
        self.counts.clear();
        self.sum = 0;
        if let Some(List { ids, counts, sum }) = list {
            self.ids.extend_from_slice(ids);
            self.counts.extend_from_slice(counts);
            self.sum = u32::from(*sum);
        }
    }

    /// The place of an id, or the one behind the last.
    fn place(&self, id: u32) -> u32 {
        let found = self.ids.iter().zip(&self.counts).position(|(known, count)| *known == id && *count > 0);
        found.unwrap_or(self.ids.len()) as u32
    }

    fn take(&mut self, place: usize) {
        self.sum -= u32::from(self.counts[place]);
        self.counts[place] = 0;
    }

    fn edge(&self, sum: u32) -> u32 {
        (u64::from(sum) * u64::from(self.listed) / u64::from(self.sum)) as u32
    }

    fn between(&self, sum: u32, count: u32) -> Interval {
        let start = self.edge(sum);
        Interval { start, width: self.edge(sum + count) - start }
    }
}

/// A place in the list, or the one behind the last for an id that is not in it. There must be one that can come.
impl Model for Candidates {
    fn interval(&self, place: u32) -> Option<Interval> {
        let before: u32 = self.counts.get(..place as usize)?.iter().map(|count| u32::from(*count)).sum();
        match self.counts.get(place as usize) {
            Some(count) => Some(self.between(before, u32::from(*count))),
            None => Some(Interval { start: self.listed, width: TOTAL - self.listed }),
        }
    }

    fn find(&self, quantile: u32) -> (u32, Interval) {
        let behind = (self.counts.len() as u32, Interval { start: self.listed, width: TOTAL - self.listed });
        if quantile >= self.listed {
            return behind;
        }
        // The largest sum whose edge is at or before the quantile: floor(s · listed / n) ≤ q ⟺ s < (q + 1) · n / listed.
        let wanted = ((u64::from(quantile) + 1) * u64::from(self.sum) - 1) / u64::from(self.listed);
        let mut sum = 0;
        for (place, count) in self.counts.iter().map(|count| u32::from(*count)).enumerate() {
            if u64::from(sum + count) > wanted {
                return (place as u32, self.between(sum, count));
            }
            sum += count;
        }
        behind
    }
}

const _: () = assert!(PRECISION == 24 && (COUNT_MAX as u32) * 2 < super::models::BIT_FLOOR);
