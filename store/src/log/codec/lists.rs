//! Lists of ids by what they came with.

/// Ids that a list holds.
pub(crate) const LENGTH: usize = 64;
/// Counts of a list are halved when they add up to this.
pub(crate) const COUNT_MAX: u16 = 1024;
/// What an id that came adds to its count.
pub(crate) const STEP: u16 = 2;
/// Ids for which a list has room in the beginning.
const CAPACITY: usize = 8;
/// Ids with the same low bits share a list. Few vocabularies are larger.
const KEY_BITS: u32 = 18;

/// A list of ids and how often they came, roughly the most frequent first, for each key.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    /// By key: which list, plus 1; 0: none.
    places: Vec<u32>,
    lists: Vec<List>,
    /// Of all lists.
    ids: Vec<u32>,
    counts: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct List {
    /// Of `ids` and `counts`.
    first: usize,
    length: usize,
    capacity: usize,
    /// Of its counts.
    sum: u16,
}

/// Places of one list whose ids have come at a place, so that they cannot come again. Their counts are 0 meanwhile.
#[derive(Debug)]
pub(crate) struct Taken {
    /// A bit for each.
    places: u64,
    counts: [u16; LENGTH],
    /// Of their counts.
    pub(crate) sum: u32,
}

impl Default for Taken {
    fn default() -> Self {
        Self { places: 0, counts: [0; LENGTH], sum: 0 }
    }
}

impl Lists {
    /// The list for a key.
    pub(crate) fn open(&mut self, key: u32) -> usize {
        let key = (key & ((1 << KEY_BITS) - 1)) as usize;
        if self.places.len() <= key {
            self.places.resize(key + 1, 0);
        }
        if self.places[key] == 0 {
            self.lists.push(List { first: 0, length: 0, capacity: 0, sum: 0 });
            self.places[key] = self.lists.len() as u32;
        }
        self.places[key] as usize - 1
    }

    /// Ids, their counts, and the sum of those, what is taken included.
    #[inline]
    pub(crate) fn get(&self, list: usize) -> (&[u32], &[u16], u32) {
        let List { first, length, sum, .. } = self.lists[list];
        (&self.ids[first..first + length], &self.counts[first..first + length], u32::from(sum))
    }

    /// The id at a place came.
    #[inline]
    pub(crate) fn take(&mut self, list: usize, place: usize, taken: &mut Taken) {
        let count = std::mem::take(&mut self.counts[self.lists[list].first + place]);
        taken.places |= 1 << place;
        taken.counts[place] = count;
        taken.sum += u32::from(count);
    }

    /// Counts the ids that were taken, and those that were not in the list.
    pub(crate) fn learn(&mut self, list: usize, taken: &mut Taken, others: &[u32]) {
        let List { first, length, ref mut sum, .. } = self.lists[list];
        let (ids, counts) = (&mut self.ids[first..first + length], &mut self.counts[first..first + length]);
        *sum += STEP * taken.places.count_ones() as u16;
        while taken.places != 0 {
            let place = taken.places.trailing_zeros() as usize;
            taken.places &= taken.places - 1;
            counts[place] = taken.counts[place] + STEP;
            // Towards the front, one place at a time.
            if let Some(before) = place.checked_sub(1).filter(|before| counts[*before] < counts[place]) {
                ids.swap(place, before);
                counts.swap(place, before);
            }
        }
        taken.sum = 0;
        others.iter().for_each(|id| self.add(list, *id));
        if self.lists[list].sum >= COUNT_MAX {
            self.halve(list);
        }
    }

    fn add(&mut self, list: usize, id: u32) {
        let mut at = self.lists[list];
        if at.length == LENGTH {
            // The last one has to make room, but not for the first that comes along.
            let last = at.first + LENGTH - 1;
            self.counts[last] -= 1;
            self.lists[list].sum -= 1;
            if self.counts[last] == 0 {
                (self.ids[last], self.counts[last]) = (id, STEP);
                self.lists[list].sum += STEP;
            }
            return;
        }
        if at.length == at.capacity {
            let from = at.first..at.first + at.length;
            at = List { first: self.ids.len(), capacity: (2 * at.capacity).max(CAPACITY), ..at };
            self.ids.extend_from_within(from.clone());
            self.counts.extend_from_within(from);
            self.ids.resize(at.first + at.capacity, 0);
            self.counts.resize(at.first + at.capacity, 0);
        }
        (self.ids[at.first + at.length], self.counts[at.first + at.length]) = (id, STEP);
        self.lists[list] = List { length: at.length + 1, sum: at.sum + STEP, ..at };
    }

    fn halve(&mut self, list: usize) {
        let List { first, length, .. } = self.lists[list];
        let counts = &mut self.counts[first..first + length];
        counts.iter_mut().for_each(|count| *count = count.div_ceil(2));
        self.lists[list].sum = counts.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn come(lists: &mut Lists, key: u32, ids: &[u32]) {
        let list = lists.open(key);
        let (mut taken, mut others) = (Taken::default(), Vec::new());
        for id in ids {
            let place = lists.get(list).0.iter().position(|known| known == id);
            match place {
                Some(place) => lists.take(list, place, &mut taken),
                None => others.push(*id),
            }
        }
        lists.learn(list, &mut taken, &others);
    }

    #[test]
    fn frequent_ids_come_first_and_sums_are_kept() {
        let mut lists = Lists::default();
        for turn in 0..2_000 {
            let key = turn % 3;
            come(&mut lists, key, &[7, 100 + turn % 90, 500 + turn % 7]);
            let list = lists.open(key);
            let (ids, counts, sum) = lists.get(list);
            assert_eq!(counts.iter().map(|count| u32::from(*count)).sum::<u32>(), sum);
            assert!(ids.len() <= LENGTH && sum < u32::from(COUNT_MAX) && counts.iter().all(|count| *count > 0));
        }
        let list = lists.open(1);
        assert_eq!(lists.get(list).0[0], 7);
    }

    #[test]
    fn what_was_taken_cannot_come_again() {
        let mut lists = Lists::default();
        come(&mut lists, 5, &[1, 2, 3]);
        let list = lists.open(5);
        let mut taken = Taken::default();
        lists.take(list, 1, &mut taken);
        assert_eq!((lists.get(list).1, lists.get(list).2, taken.sum), (&[2, 0, 2][..], 6, 2));
        lists.learn(list, &mut taken, &[9]);
        assert_eq!(lists.get(list), (&[2, 1, 3, 9][..], &[4, 2, 2, 2][..], 10));
        assert_eq!(taken.sum, 0);
    }
}
