#![allow(clippy::unwrap_used)]

use super::*;
use crate::vocabulary::TeacherTokens;
use model::{Normalisation, SpecialTokens};
use store::Span;

/// Teacher 0: ids 5.. are `a ##bcd ef`; teacher 1: `ef x a`; both without labels of their own.
fn vocabulary() -> Arc<Vocabulary> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let tokens = |words: [&str; 3]| special.iter().chain(&words).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (en, de) = (tokens(["a", "##bcd", "ef"]), tokens(["ef", "x", "a"]));
    let teacher = |name, tokens| TeacherTokens {
        name,
        tokens,
        special: SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 },
        normalisation: Normalisation { lowercase: false, strip_accents: None, handle_chinese_chars: true },
        fingerprint: name,
    };
    Arc::new(Vocabulary::union(&[teacher("en", &en), teacher("de", &de)]).unwrap())
}

fn maker(copies: Copies, best_by: BestBy, copy_weight: CopyWeight) -> CopyMaker {
    maker_of([false; 2], copies, best_by, copy_weight)
}

fn maker_of(labels: [bool; 2], copies: Copies, best_by: BestBy, copy_weight: CopyWeight) -> CopyMaker {
    CopyMaker::new(
        7,
        vocabulary(),
        labels.to_vec(),
        CopyOptions { copies, best_by, copy_weight, max_sequence_length: 5 },
    )
}

/// [CLS] [MASK] `second` [SEP] with gold `gold`; `loss` is that of the teacher.
fn copy(teacher: u16, gold: u32, loss: Option<f32>) -> MaskedCopy {
    MaskedCopy {
        teacher,
        token_ids: vec![2, 4, 6, 3],
        masked_positions: vec![1],
        gold_ids: vec![gold],
        label: loss.map(|loss| Label {
            top_k: 2,
            top_ids: vec![gold, 5],
            top_logits: vec![3.0, 1.0],
            log_sum_exp: vec![3.0 + loss],
            gold_logits: vec![3.0],
            ..Label::default()
        }),
    }
}

fn record(copies: Vec<MaskedCopy>) -> Record {
    Record {
        source: "en".into(),
        document: "f@0".into(),
        span: Span { first: 0, end: 9 },
        language: "en".into(),
        round: 0,
        held_out: false,
        copies,
        text: None,
    }
}

#[test]
fn ids_are_mapped_and_nothing_else() {
    let record = record(vec![copy(0, 7, Some(0.5)), copy(1, 5, Some(0.5)), copy(1, 6, None)]);
    let maker = maker(Copies::All, BestBy::Position, CopyWeight::Equal);
    let made: Vec<_> = (0..3).map(|index| maker.make(SequenceNumber(4), 1, &record, index).unwrap()).collect();
    assert_eq!(made[0].copy, record.copies[0], "the first teacher's ids are the student's here");
    // Teacher 1: ef → 7, x → 8, a → 5.
    assert_eq!(made[1].copy.token_ids, [2, 4, 8, 3]);
    assert_eq!((made[1].copy.gold_ids[0], made[1].copy.masked_positions[0], made[1].copy.teacher), (7, 1, 1));
    let label = made[1].copy.label.as_ref().unwrap();
    assert_eq!(label.top_ids, [7, 7], "an id that comes up twice stays twice");
    assert_eq!((label.top_logits[0], label.log_sum_exp[0], label.gold_logits[0]), (3.0, 3.5, 3.0));
    assert_eq!((made[2].copy.gold_ids[0], made[2].copy.label.is_none()), (8, true));
    assert_eq!((made[0].sequence, made[0].pass, &*made[0].language), (SequenceNumber(4), 1, "en"));
}

#[test]
fn random_draws_each_copy_as_often_and_anew_in_each_pass() {
    let maker = maker(Copies::Random, BestBy::Position, CopyWeight::Equal);
    let record_of = |count: u16| record((0..count).map(|teacher| copy(teacher % 2, 6, Some(0.5))).collect());
    let three = record_of(3);
    let mut counts = [0; 3];
    let mut changed = 0;
    for sequence in (0..3000).map(SequenceNumber) {
        let chosen = [0, 1].map(|pass| maker.choose(sequence, pass, &three));
        assert_eq!(chosen[0], maker.choose(sequence, 0, &three), "the same again");
        assert_eq!(chosen[0].len(), 1);
        counts[chosen[0][0]] += 1;
        changed += usize::from(chosen[0] != chosen[1]);
    }
    // Four standard deviations of a binomial distribution.
    assert!(counts.iter().all(|count: &i32| (count - 1000).abs() < 104), "{counts:?}");
    assert!(changed.abs_diff(2000) < 104, "{changed}");
    assert_eq!(maker.choose(SequenceNumber(1), 0, &record_of(1)), [0]);
    assert!(maker.choose(SequenceNumber(1), 0, &record_of(0)).is_empty());
}

#[test]
fn best_is_the_lowest_loss_and_ties_go_to_the_first() {
    for (best_by, losses, expected) in [
        (BestBy::Position, [Some(0.5), Some(0.4)], 1),
        (BestBy::Position, [Some(0.4), Some(0.5)], 0),
        (BestBy::Position, [Some(0.4), Some(0.4)], 0),
        (BestBy::Position, [None, Some(9.0)], 1),
        (BestBy::Position, [Some(9.0), None], 0),
        (BestBy::Position, [None, None], 0),
        (BestBy::Position, [Some(f32::NAN), Some(9.0)], 1),
        // The first copy's gold token is `##bcd`, three characters, the other's is `x`.
        (BestBy::Character, [Some(2.0), Some(1.0)], 0),
        (BestBy::Character, [Some(3.0), Some(1.0)], 0),
        (BestBy::Character, [Some(3.2), Some(1.0)], 1),
    ] {
        let record = record(vec![copy(0, 6, losses[0]), copy(1, 6, losses[1])]);
        let chosen = maker(Copies::Best, best_by, CopyWeight::Equal).choose(SequenceNumber(0), 0, &record);
        assert_eq!(chosen, [expected], "{best_by:?} {losses:?}");
        assert_eq!(maker(Copies::All, best_by, CopyWeight::Equal).choose(SequenceNumber(0), 0, &record), [0, 1]);
    }
    assert!(
        maker(Copies::Best, BestBy::Position, CopyWeight::Equal)
            .choose(SequenceNumber(0), 0, &record(Vec::new()))
            .is_empty()
    );
}

#[test]
fn best_averages_over_positions() {
    // Mean 1.0 over two positions beats 1.5 at one, although the sum is larger.
    let mut long = copy(0, 5, Some(0.0));
    long.masked_positions = vec![1, 2];
    long.gold_ids = vec![5, 5];
    let label = long.label.as_mut().unwrap();
    (label.log_sum_exp, label.gold_logits) = (vec![4.0, 4.0], vec![3.0, 3.0]);
    let record = record(vec![copy(1, 5, Some(1.5)), long]);
    assert_eq!(maker(Copies::Best, BestBy::Position, CopyWeight::Equal).choose(SequenceNumber(0), 0, &record), [1]);
}

#[test]
fn weights_of_copies() {
    let record = record(vec![copy(0, 5, Some(1.0)), copy(1, 5, Some(2.0))]);
    for (copies, copy_weight, expected) in [
        (Copies::All, CopyWeight::Equal, 1.0),
        (Copies::All, CopyWeight::Shared, 0.5),
        (Copies::Best, CopyWeight::Shared, 1.0),
    ] {
        let made = maker(copies, BestBy::Position, copy_weight).make(SequenceNumber(0), 0, &record, 0).unwrap();
        assert_eq!(made.weight, expected, "{copies:?} {copy_weight:?}");
    }
}

#[test]
fn copies_whose_labels_were_dropped_are_left_out_unless_there_is_no_other() {
    // Teacher 0 labels; teacher 1 does or does not.
    for (labels, losses, all, best) in [
        ([true, true], [None, Some(1.0)], vec![1], 1),
        ([true, true], [Some(1.0), None], vec![0], 0),
        ([true, false], [None, None], vec![1], 1),
        ([true, false], [Some(1.0), None], vec![0, 1], 0),
        ([true, true], [None, None], vec![0, 1], 0),
    ] {
        let record = record(vec![copy(0, 5, losses[0]), copy(1, 5, losses[1])]);
        let maker = |copies| maker_of(labels, copies, BestBy::Position, CopyWeight::Shared);
        assert_eq!(maker(Copies::All).choose(SequenceNumber(0), 0, &record), all, "{labels:?} {losses:?}");
        assert_eq!(maker(Copies::Best).choose(SequenceNumber(0), 0, &record), [best], "{labels:?} {losses:?}");
        for index in &all {
            let made = maker(Copies::All).make(SequenceNumber(0), 0, &record, *index).unwrap();
            assert_eq!(made.weight, 1.0 / all.len() as f64, "{labels:?} {losses:?}");
        }
    }
}

#[test]
fn unusable_copies_are_errors() {
    let good = copy(0, 5, Some(1.0));
    type Change = fn(&mut MaskedCopy);
    let changes: [(Change, &str); 8] = [
        (|copy| copy.token_ids[2] = 8, "token id 8, but the tokenizer of `en` has 8 tokens"),
        (|copy| copy.gold_ids[0] = 99, "token id 99"),
        (|copy| copy.label.as_mut().unwrap().top_ids[1] = 99, "token id 99"),
        (|copy| copy.teacher = 2, "the vocabulary has 2 teachers"),
        (|copy| copy.masked_positions[0] = 4, "masked positions"),
        (|copy| copy.gold_ids.push(5), "masked positions"),
        (|copy| copy.label.as_mut().unwrap().top_k = 3, "labels do not fit"),
        (|copy| copy.token_ids.extend([6, 6]), "6 tokens, but the student takes at most 5"),
    ];
    for (change, expected) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let maker = maker(Copies::All, BestBy::Position, CopyWeight::Equal);
        let error = maker.make(SequenceNumber(31), 0, &record(vec![bad]), 0).unwrap_err().to_string();
        assert!(error.contains("entry 31") && error.contains(expected), "{error}");
    }
}
