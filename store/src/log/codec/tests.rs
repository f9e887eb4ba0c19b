//! Labels there and back, within the bounds; and whatever bytes, read or refused.
#![allow(clippy::unwrap_used)]

use super::*;

use proptest::prelude::*;

/// A number below `bound`, a function of the seed that it moves on.
fn next(seed: &mut u64, bound: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % bound
}

/// A distribution's largest logits: a softmax over `vocabulary` words that falls off as steeply as `steepness` says.
fn label(seed: &mut u64, (top_k, vocabulary): (usize, u32), gold_ids: &[u32], steepness: f64) -> Label {
    let mut label = Label { top_k, ..Label::default() };
    for gold in gold_ids {
        let mut weights: Vec<(f32, u32)> = (0..vocabulary)
            .map(|id| ((steepness * -(1.0 - next(seed, 1 << 20) as f64 / (1 << 20) as f64).ln()) as f32, id))
            .collect();
        weights.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let sum: f64 = weights.iter().map(|(logit, _)| f64::from(*logit).exp()).sum();
        label.top_ids.extend(weights[..top_k].iter().map(|(_, id)| id));
        label.top_logits.extend(weights[..top_k].iter().map(|(logit, _)| logit));
        label.log_sum_exp.push(sum.ln() as f32);
        label.gold_logits.push(weights.iter().find(|(_, id)| id == gold).unwrap().0);
    }
    label
}

fn copy(seed: &mut u64, teacher: u16, tokens: usize, top_k: Option<usize>, vocabulary: u32) -> MaskedCopy {
    const PLACEHOLDER: u32 = 4;
    let mut copy = MaskedCopy {
        teacher,
        token_ids: (0..tokens).map(|_| next(seed, u64::from(vocabulary)) as u32).collect(),
        masked_positions: (0..tokens as u32).filter(|_| next(seed, 6) == 0).collect(),
        gold_ids: Vec::new(),
        label: None,
    };
    for position in &copy.masked_positions {
        copy.gold_ids.push(copy.token_ids[*position as usize]);
        if next(seed, 5) > 0 {
            copy.token_ids[*position as usize] = PLACEHOLDER;
        }
    }
    let steepness = [0.3, 1.0, 3.0, 9.0][next(seed, 4) as usize];
    copy.label = top_k.map(|top_k| label(seed, (top_k, vocabulary), &copy.gold_ids, steepness));
    copy
}

fn with(tables: &Tables) -> Compaction {
    Compaction { tables: tables.clone(), ..Compaction::default() }
}

fn round_trip(copies: &[MaskedCopy], tables: &Tables) -> Vec<MaskedCopy> {
    let copies: Vec<_> = copies.iter().collect();
    let coded = encode(&copies, &mut with(tables)).unwrap();
    let shapes: Vec<_> = copies.iter().map(|copy| Shape::of(copy)).collect();
    let tokens = copies.iter().map(|copy| copy.token_ids.clone()).collect();
    decode(coded.columns, &shapes, tokens, tables).unwrap()
}

fn assert_within_bounds(copies: &[MaskedCopy], stored: &[MaskedCopy]) {
    assert_eq!(copies.len(), stored.len());
    for (copy, stored) in copies.iter().zip(stored) {
        assert_eq!((&copy.token_ids, &copy.masked_positions), (&stored.token_ids, &stored.masked_positions));
        assert_eq!((copy.teacher, &copy.gold_ids), (stored.teacher, &stored.gold_ids));
        assert_eq!(copy.label.is_some(), stored.label.is_some());
        if let (Some(label), Some(stored)) = (&copy.label, &stored.label) {
            assert_eq!((label.top_k, &label.top_ids), (stored.top_k, &stored.top_ids));
            label::check(label, stored).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn labels_come_back_within_bounds(seed: u64, copies in 0_usize..6, tokens in 1_usize..40, k in 1_usize..9) {
        let mut seed = seed;
        let copies: Vec<_> = (0..copies)
            .map(|number| {
                let top_k = (next(&mut seed, 4) > 0).then_some(k + number % 2);
                copy(&mut seed, (number / 2) as u16, tokens, top_k, 11 + 40 * (number / 2) as u32)
            })
            .collect();
        assert_within_bounds(&copies, &round_trip(&copies, &Tables::default()));
    }

    #[test]
    fn any_bytes_are_read_or_refused(seed: u64, columns: [Vec<u8>; 7], cut in 0_usize..4, copies in 1_usize..4) {
        let mut seed = seed;
        let copies: Vec<_> = (0..copies).map(|_| copy(&mut seed, 0, 30, Some(3), 50)).collect();
        let shapes: Vec<_> = copies.iter().map(Shape::of).collect();
        let tokens: Vec<_> = copies.iter().map(|copy| copy.token_ids.clone()).collect();
        let mut columns = columns.into_iter();
        let _ = decode(Streams::<Vec<u8>>::default().try_map(|_| columns.next().ok_or(())).unwrap(), &shapes, tokens.clone(), &Tables::default());
        // The real ones, cut, so that what follows the first symbols is looked at too.
        let coded = encode(&copies.iter().collect::<Vec<_>>(), &mut Compaction::default()).unwrap();
        let columns = coded.columns.try_map(|mut bytes| { bytes.truncate(bytes.len().saturating_sub(4 * cut)); Ok::<_, Damage>(bytes) }).unwrap();
        let _ = decode(columns, &shapes, tokens, &Tables::default());
    }

    #[test]
    fn tables_come_back(counts in proptest::collection::vec(proptest::collection::vec(0_u32..300, 0..200), 0..4)) {
        let tables = tables_of(&counts);
        prop_assert_eq!(Tables::parse(&tables.encode().unwrap()).unwrap(), tables);
        let _ = Tables::parse(&counts.iter().flatten().map(|count| *count as u8).collect::<Vec<_>>());
    }
}

/// Tables of ids that came so often.
fn tables_of(counts: &[Vec<u32>]) -> Tables {
    let mut census = Census::default();
    for (teacher, counts) in (0..).zip(counts) {
        let ids: Vec<u32> = (0..).zip(counts).flat_map(|(id, count)| vec![id; *count as usize]).collect();
        let once = || ids.iter().map(|id| (*id, 1));
        census.add(teacher, once(), once());
    }
    census.tables(&Tables::default())
}

#[test]
fn ranks_follow_frequencies() {
    let tables = tables_of(&[vec![0, 900, 30, 0, 2_000]]);
    let ranks = tables.ranks(0);
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|id| ranks.of(id)), [3, 1, 2, 4, 0, 5, 6]);
    assert!((0..7).all(|id| ranks.id(ranks.of(id)) == id));
    assert_eq!(tables.ranks(1).of(9), 9);
}

#[test]
fn what_was_compact_stays_what_it_is() {
    let mut seed = 5;
    let copies: Vec<_> = (0..20).map(|number| copy(&mut seed, number / 10, 40, Some(5), 60)).collect();
    let once = round_trip(&copies, &Tables::default());
    assert_ne!(once, copies);
    assert_eq!(round_trip(&once, &Tables::default()), once);
}

#[test]
fn every_k_and_large_vocabularies_are_held() {
    let mut seed = 7;
    for (top_k, vocabulary) in [(1, 3), (64, 200), (512, 600)] {
        let copies = [copy(&mut seed, 0, 30, Some(top_k), vocabulary), copy(&mut seed, 3, 10, Some(top_k), vocabulary)];
        assert_within_bounds(&copies, &round_trip(&copies, &Tables::default()));
    }
    let mut far = copy(&mut seed, 0, 40, Some(4), 60);
    let move_up = |ids: &mut Vec<u32>| ids.iter_mut().for_each(|id| *id = (1 << 24) - 1 - *id * 250_000);
    move_up(&mut far.gold_ids);
    far.label.iter_mut().for_each(|label| move_up(&mut label.top_ids));
    assert_within_bounds(&[far.clone()], &round_trip(&[far.clone()], &Tables::default()));
    far.gold_ids[0] = 1 << 24;
    assert!(encode(&[&far], &mut Compaction::default()).unwrap_err().0.contains("beyond 2^24"));
}

#[test]
fn divergence_is_bounded_where_probability_is_concentrated() {
    let mut copies = Vec::new();
    for (number, certainty) in [0.5_f64, 0.9, 0.99, 0.999, 0.999_99].into_iter().enumerate() {
        let mut copy = copy(&mut (number as u64), 0, 60, None, 40);
        let masked = copy.masked_positions.len();
        let rest = 1.0 - certainty;
        let logits = [certainty, rest * 0.6, rest * 0.3, rest * 0.05].map(|p| p.ln() as f32 + 5.0);
        copy.label = Some(Label {
            top_k: 4,
            top_ids: [1, 2, 3, 5].repeat(masked),
            top_logits: logits.repeat(masked),
            log_sum_exp: vec![5.0; masked],
            gold_logits: copy
                .gold_ids
                .iter()
                .map(|id| match id {
                    1 => logits[0],
                    2 => logits[1],
                    3 => logits[2],
                    5 => logits[3],
                    _ => -20.0,
                })
                .collect(),
            ..Label::default()
        });
        copies.push(copy);
    }
    let stored = round_trip(&copies, &Tables::default());
    assert_within_bounds(&copies, &stored);
    let (mut sum, mut positions) = (0.0, 0);
    for (copy, stored) in copies.iter().zip(&stored) {
        let (label, stored) = (copy.label.as_ref().unwrap(), stored.label.as_ref().unwrap());
        for position in 0..label.positions() {
            sum += divergence(&probabilities(label, position), &probabilities(stored, position));
            positions += 1;
        }
    }
    assert!(sum / f64::from(positions) <= label::DIVERGENCE_MAX, "{}", sum / f64::from(positions));
}

fn probabilities(label: &Label, position: usize) -> Vec<f64> {
    let logits = &label.top_logits[position * label.top_k..(position + 1) * label.top_k];
    let top = logits.iter().map(|logit| (f64::from(*logit) - f64::from(label.log_sum_exp[position])).exp());
    let mut all: Vec<f64> = top.collect();
    all.push((1.0 - all.iter().sum::<f64>()).max(1e-9));
    all
}

fn divergence(before: &[f64], after: &[f64]) -> f64 {
    before.iter().zip(after).map(|(p, q)| p * (p / q).ln()).sum()
}

#[test]
fn what_is_no_distribution_is_refused() {
    let mut seed = 3;
    let good = copy(&mut seed, 0, 40, Some(3), 50);
    let refused = |change: &dyn Fn(&mut Label)| {
        let mut copy = good.clone();
        change(copy.label.as_mut().unwrap());
        encode(&[&copy], &mut Compaction::default()).unwrap_err().0
    };
    assert!(refused(&|label| label.top_logits[1] = f32::NAN).contains("no distribution"));
    assert!(refused(&|label| label.top_logits[4] = label.top_logits[3] + 1.0).contains("no distribution"));
    assert!(refused(&|label| label.log_sum_exp[0] -= 2.0).contains("no distribution"));
    assert!(refused(&|label| label.gold_logits[0] = f32::INFINITY).contains("gold logit"));
}

#[test]
fn what_is_known_of_ids_makes_labels_smaller() {
    let mut seed = 11;
    let copies: Vec<_> = (0..4).map(|number| rare_contexts(copy(&mut seed, 0, 60, Some(4), 40), number)).collect();
    let counts: Vec<u32> = (0..6400).map(|id| if id % 100 == 0 { 50 } else { 0 }).collect();
    let tables = tables_of(&[counts]);
    let refs: Vec<_> = copies.iter().collect();
    let bytes = |tables: &Tables| encode(&refs, &mut with(tables)).unwrap().columns.top_ids.len();
    assert!(bytes(&tables) * 3 < bytes(&Tables::default()) * 2, "{} {}", bytes(&tables), bytes(&Tables::default()));
    assert_within_bounds(&copies, &round_trip(&copies, &tables));
}

/// The same copy with other ids: multiples of 100, of which few come twice.
fn rare_contexts(mut copy: MaskedCopy, number: u32) -> MaskedCopy {
    let Some(label) = &mut copy.label else { return copy };
    for (position, ids) in label.top_ids.chunks_mut(4).enumerate() {
        let first = (number * 29 + position as u32 * 4) % 60;
        ids.copy_from_slice(&[first, first + 1, first + 2, first + 3].map(|id| id * 100));
        copy.gold_ids[position] = ids[0];
        label.gold_logits[position] = label.top_logits[position * 4];
    }
    copy
}
