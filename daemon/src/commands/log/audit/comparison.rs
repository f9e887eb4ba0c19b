//! One label against another: the stored one, and the one that the teacher gives now.

use std::collections::BTreeMap;
use store::Label;

/// A tail is never taken for smaller: below it is nothing but rounding.
const SMALLEST_TAIL: f64 = 1e-9;

/// A label that was computed again, with the logits of further tokens.
#[derive(Debug)]
pub(super) struct Recomputed {
    label: Label,
    /// By (position, id): tokens that are not among the top k.
    others: BTreeMap<(usize, u32), f32>,
}

/// Differences, summed up over positions.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) positions: u64,
    pub(super) entries: u64,
    pub(super) id_sets_differ: u64,
    pub(super) orders_differ: u64,
    /// Per position.
    pub(super) shortfall: Vec<f32>,
    /// Per entry.
    pub(super) log_p: Vec<f32>,
    /// Per position.
    pub(super) gold_log_p: Vec<f32>,
    /// Per position.
    pub(super) log_sum_exp: Vec<f32>,
    /// Per position.
    pub(super) kl: Vec<f32>,
}

impl Recomputed {
    pub(super) fn new(label: Label) -> Self {
        Self { label, others: BTreeMap::new() }
    }

    /// Of each position the first entry of `stored` whose logit is not known, as `(position, id)`. Ids that a vocabulary of
    /// `rows` rows does not have are left out.
    pub(super) fn unknown(&self, stored: &Label, rows: usize) -> Vec<(usize, u32)> {
        let first = |position: usize| {
            let mut ids = row(&stored.top_ids, stored.top_k, position).iter().copied();
            ids.find(|id| (*id as usize) < rows && self.logit(position, *id).is_none()).map(|id| (position, id))
        };
        (0..stored.positions()).filter_map(first).collect()
    }

    /// Takes over the gold logits of `answer` as those of the tokens that it was asked for.
    pub(super) fn learn(&mut self, asked: &[(usize, u32)], answer: &Label) {
        let logit = |(position, id): &(usize, u32)| {
            let logit = answer.gold_logits.get(*position).copied().unwrap_or(f32::NAN);
            ((*position, *id), logit)
        };
        self.others.extend(asked.iter().map(logit));
    }

    fn logit(&self, position: usize, id: u32) -> Option<f32> {
        let (ids, logits) = self.row(position);
        let rank = ids.iter().position(|top| *top == id);
        rank.map(|rank| logits[rank]).or_else(|| self.others.get(&(position, id)).copied())
    }

    fn row(&self, position: usize) -> (&[u32], &[f32]) {
        let Label { top_k, top_ids, top_logits, .. } = &self.label;
        (row(top_ids, *top_k, position), row(top_logits, *top_k, position))
    }
}

impl Tally {
    /// Counts the differences of a copy's stored label.
    pub(super) fn add(&mut self, stored: &Label, now: &Recomputed) {
        for position in 0..stored.positions() {
            self.add_position(stored, now, position);
        }
    }

    fn add_position(&mut self, stored: &Label, now: &Recomputed, position: usize) {
        self.positions += 1;
        let (old_sum, new_sum) = (f64::from(stored.log_sum_exp[position]), f64::from(now.label.log_sum_exp[position]));
        let (old_gold, new_gold) = (stored.gold_logits[position], now.label.gold_logits[position]);
        self.log_sum_exp.push(difference(old_sum, new_sum));
        self.gold_log_p.push(difference(f64::from(old_gold) - old_sum, f64::from(new_gold) - new_sum));

        let ids = row(&stored.top_ids, stored.top_k, position);
        let logits = row(&stored.top_logits, stored.top_k, position);
        self.add_ranks(ids, now, position);
        let log_p = |logit: f32, sum: f64| f64::from(logit) - sum;
        let old: Vec<f64> = logits.iter().map(|logit| log_p(*logit, old_sum)).collect();
        let new_logit = |id: &u32| now.logit(position, *id).unwrap_or(f32::NEG_INFINITY);
        let new: Vec<f64> = ids.iter().map(|id| log_p(new_logit(id), new_sum)).collect();
        self.entries += ids.len() as u64;
        self.log_p.extend(old.iter().zip(&new).map(|(old, new)| difference(*old, *new)));
        self.kl.push(divergence(&new, &old) as f32);
    }

    /// Which tokens are the top k, and in which order.
    fn add_ranks(&mut self, ids: &[u32], now: &Recomputed, position: usize) {
        let (top_ids, top_logits) = now.row(position);
        let top_ids = &top_ids[..ids.len().min(top_ids.len())];
        if !ids.iter().all(|id| top_ids.contains(id)) || !top_ids.iter().all(|id| ids.contains(id)) {
            self.id_sets_differ += 1;
        } else if ids != top_ids {
            self.orders_differ += 1;
        }
        let Some(kth) = ids.len().checked_sub(1).and_then(|last| top_logits.get(last)) else { return };
        let below = |id: &u32| now.logit(position, *id).map_or(f32::INFINITY, |logit| (kth - logit).max(0.0));
        let twice = ids.iter().enumerate().any(|(at, id)| ids[..at].contains(id));
        let worst = ids.iter().map(below).fold(0.0, f32::max);
        self.shortfall.push(if twice { f32::INFINITY } else { worst });
    }
}

/// A position's part of `[positions, top_k]`.
fn row<T>(values: &[T], top_k: usize, position: usize) -> &[T] {
    values.get(position * top_k..(position + 1) * top_k).unwrap_or_default()
}

fn difference(old: f64, new: f64) -> f32 {
    (old - new).abs() as f32
}

/// KL(exact ‖ stored) in nats, from the log-probabilities of the same tokens; what is left of both is one bucket more.
fn divergence(exact: &[f64], stored: &[f64]) -> f64 {
    let with_tail = |log_p: &[f64]| {
        let sum: f64 = log_p.iter().map(|log_p| log_p.exp()).sum();
        let tail = (1.0 - sum).max(SMALLEST_TAIL);
        // Rounding may have made the sum larger than 1.
        let whole = (sum + tail).ln();
        log_p.iter().copied().chain([tail.ln()]).map(move |log_p| log_p - whole).collect::<Vec<f64>>()
    };
    let term = |(p, q): (f64, f64)| if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) };
    with_tail(exact).into_iter().zip(with_tail(stored)).map(term).sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two positions, k = 2, of four tokens with these logits.
    const LOGITS: [[f32; 4]; 2] = [[1.0, 3.0, 2.0, 0.0], [5.0, -1.0, 0.5, 4.0]];
    const GOLDS: [usize; 2] = [0, 3];

    fn log_sum_exp(logits: &[f32]) -> f32 {
        logits.iter().map(|logit| logit.exp()).sum::<f32>().ln()
    }

    fn exact() -> Label {
        Label {
            top_k: 2,
            top_ids: vec![1, 2, 0, 3],
            top_logits: vec![3.0, 2.0, 5.0, 4.0],
            log_sum_exp: LOGITS.iter().map(|logits| log_sum_exp(logits)).collect(),
            gold_logits: (0..2).map(|at| LOGITS[at][GOLDS[at]]).collect(),
            ..Label::default()
        }
    }

    /// What is counted of `stored`, once the teacher was asked for all that is not in its top k.
    fn tally(stored: &Label) -> Tally {
        let mut now = Recomputed::new(exact());
        loop {
            let wanted = now.unknown(stored, 4);
            if wanted.is_empty() {
                break;
            }
            let mut answer = exact();
            wanted.iter().for_each(|(position, id)| answer.gold_logits[*position] = LOGITS[*position][*id as usize]);
            now.learn(&wanted, &answer);
        }
        let mut tally = Tally::default();
        tally.add(stored, &now);
        tally
    }

    fn largest(values: &[f32]) -> f32 {
        values.iter().copied().fold(0.0, f32::max)
    }

    #[test]
    fn equal_labels_do_not_differ() {
        let tally = tally(&exact());
        assert_eq!((tally.positions, tally.entries, tally.id_sets_differ, tally.orders_differ), (2, 4, 0, 0));
        for values in [&tally.log_p, &tally.gold_log_p, &tally.log_sum_exp, &tally.shortfall, &tally.kl] {
            assert_eq!(largest(values), 0.0, "{tally:?}");
        }
    }

    #[test]
    fn a_shift_of_everything_is_one_of_the_log_sum_exp_alone() {
        let mut stored = exact();
        stored.top_logits.iter_mut().for_each(|logit| *logit += 0.5);
        stored.log_sum_exp.iter_mut().for_each(|sum| *sum += 0.5);
        stored.gold_logits.iter_mut().for_each(|logit| *logit += 0.5);
        let tally = tally(&stored);
        assert!((largest(&tally.log_sum_exp) - 0.5).abs() < 1e-6, "{tally:?}");
        assert!(largest(&tally.log_p) < 1e-6 && largest(&tally.gold_log_p) < 1e-6, "{tally:?}");
        assert!(largest(&tally.kl) < 1e-6, "{tally:?}");
    }

    #[test]
    fn each_wrong_value_shows_where_it_belongs() {
        let mut stored = exact();
        stored.top_logits[3] += 0.25;
        let changed = tally(&stored);
        assert!((largest(&changed.log_p) - 0.25).abs() < 1e-6 && largest(&changed.gold_log_p) < 1e-6, "{changed:?}");
        assert!(changed.kl[0] < 1e-6 && changed.kl[1] > 1e-3, "{changed:?}");
        let mut stored = exact();
        stored.gold_logits[0] -= 0.25;
        let changed = tally(&stored);
        assert!((largest(&changed.gold_log_p) - 0.25).abs() < 1e-6 && largest(&changed.log_p) < 1e-6, "{changed:?}");
    }

    #[test]
    fn other_ids_and_other_orders() {
        let mut stored = exact();
        stored.top_ids[..2].reverse();
        stored.top_logits[..2].reverse();
        let swapped = tally(&stored);
        assert_eq!((swapped.id_sets_differ, swapped.orders_differ, largest(&swapped.log_p)), (0, 1, 0.0));
        // Token 0, with its own logit, in place of token 2: one lower than the second largest.
        let mut stored = exact();
        (stored.top_ids[1], stored.top_logits[1]) = (0, 1.0);
        let other = tally(&stored);
        assert_eq!((other.id_sets_differ, other.orders_differ), (1, 0));
        assert_eq!((largest(&other.shortfall), largest(&other.log_p)), (1.0, 0.0));
        // One that nobody has, and one that is there twice.
        for id in [9, 1] {
            let mut stored = exact();
            stored.top_ids[1] = id;
            assert_eq!(largest(&tally(&stored).shortfall), f32::INFINITY);
        }
    }

    #[test]
    fn divergence_counts_the_tail() {
        let two = |p: f64| p * (p / 0.5).ln() + (1.0 - p) * ((1.0 - p) / 0.5).ln();
        assert!((divergence(&[0.3_f64.ln()], &[0.5_f64.ln()]) - two(0.3)).abs() < 1e-12);
        // More than all: the rest counts as nothing.
        assert!(divergence(&[0.0], &[0.03]) < 1e-6);
        assert_eq!(divergence(&[], &[]), 0.0);
    }
}
