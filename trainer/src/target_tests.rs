//! Tests of [`super`].

use super::*;
use KdTarget::{Ghost, GoldResidual, Renormalised};

/// Of the first position's mass the top two have all but a fifth; the second's was rounded to less than theirs.
fn label() -> Label {
    Label {
        top_k: 2,
        top_ids: vec![1, 2, 3, 4],
        top_logits: vec![3.0_f32.ln() + 40.0, 40.0, -7.5, -7.5],
        log_sum_exp: vec![5.0_f32.ln() + 40.0, -7.5],
        gold_logits: vec![0.0; 2],
        ..Label::default()
    }
}

#[track_caller]
fn check(target: Target, probabilities: [f32; 4], tail_masses: [f32; 2], gold_masses: [f32; 2]) {
    let found = target.distribution(&label());
    assert_eq!((found.probabilities.len(), found.tail_masses.len(), found.gold_masses.len()), (4, 2, 2));
    let pairs = found.probabilities.iter().zip(probabilities);
    let pairs = pairs.chain(found.tail_masses.iter().zip(tail_masses)).chain(found.gold_masses.iter().zip(gold_masses));
    for (found, expected) in pairs {
        assert!((found - expected).abs() < 1e-5, "{target:?}: {found}, not {expected}");
    }
}

fn tempered(kd_target: KdTarget, temperature: f64) -> Target {
    Target { form: TargetForm { kd_target, temperature }, other: None }
}

#[test]
fn forms_say_which_mass_goes_where() {
    check(Renormalised.into(), [0.75, 0.25, 0.5, 0.5], [0.0; 2], [0.0; 2]);
    check(Ghost.into(), [0.6, 0.2, 0.5, 0.5], [0.2, 0.0], [0.0; 2]);
    check(GoldResidual.into(), [0.6, 0.2, 0.5, 0.5], [0.0; 2], [0.2, 0.0]);
}

#[test]
fn the_temperature_shapes_the_top_and_keeps_its_mass() {
    // 3^2 : 1, and √3 : 1.
    let soft = 3.0_f32.sqrt() / (3.0_f32.sqrt() + 1.0);
    check(tempered(Renormalised, 0.5), [0.9, 0.1, 0.5, 0.5], [0.0; 2], [0.0; 2]);
    check(tempered(Renormalised, 2.0), [soft, 1.0 - soft, 0.5, 0.5], [0.0; 2], [0.0; 2]);
    check(tempered(Ghost, 0.5), [0.72, 0.08, 0.5, 0.5], [0.2, 0.0], [0.0; 2]);
    check(tempered(GoldResidual, 2.0), [0.8 * soft, 0.8 - 0.8 * soft, 0.5, 0.5], [0.0; 2], [0.2, 0.0]);
}

#[test]
fn a_later_target_comes_at_once_or_little_by_little() {
    let train = |blend_steps| TrainOptions {
        kd_temperature: 0.5,
        kd_target_later: Some(LaterTarget { kd_target: Ghost, kd_temperature: 1.0, from_step: 10, blend_steps }),
        ..TrainOptions::default()
    };
    let (first, later) = (tempered(Renormalised, 0.5), Target::from(Ghost));
    let at_once = TargetSchedule::of(&train(0));
    assert_eq!([0, 9, 10, u64::MAX].map(|step| at_once.at(step)), [first, first, later, later]);
    let blended = TargetSchedule::of(&train(3));
    assert_eq!([9, 13, 14].map(|step| blended.at(step)), [first, later, later]);
    for (step, share) in [(10, 0.25), (11, 0.5), (12, 0.75)] {
        assert_eq!(blended.at(step).other, Some((later.form, share)), "step {step}");
        assert_eq!(blended.at(step).form, first.form);
    }
    let expected = [0.25 * 0.9 + 0.75 * 0.6, 0.25 * 0.1 + 0.75 * 0.2, 0.5, 0.5];
    check(blended.at(12), expected, [0.15, 0.0], [0.0; 2]);
    assert_eq!(TargetSchedule::of(&train(u64::MAX)).at(u64::MAX).other.map(|(form, _)| form), Some(later.form));
    let none = TargetSchedule::of(&TrainOptions::default());
    assert_eq!([0, u64::MAX].map(|step| none.at(step)), [Renormalised.into(); 2]);
}

#[test]
fn a_mixture_with_the_gold_token_has_both_rests() {
    let mixed = Target { other: Some((tempered(GoldResidual, 1.0).form, 0.5)), ..Ghost.into() };
    assert_eq!(
        [mixed.uses_gold(), Target::from(Ghost).uses_gold(), Target::from(GoldResidual).uses_gold()],
        [true, false, true]
    );
    check(mixed, [0.6, 0.2, 0.5, 0.5], [0.1, 0.0], [0.1, 0.0]);
}

/// Weights of a head and a sampled tail add up to 1: whether they are renormalised makes no difference.
#[test]
fn a_sampled_tail_leaves_nothing_for_other_tokens() {
    // The third entry is drawn, and stands for more than the second has.
    let weights = [0.5_f64, 0.1, 0.4];
    let label = Label {
        top_k: 3,
        top_ids: vec![1, 2, 3],
        top_logits: weights.iter().map(|weight| (weight.ln() + 12.0) as f32).collect(),
        log_sum_exp: vec![12.0],
        gold_logits: vec![0.0],
        ..Label::default()
    };
    for kd_target in [Renormalised, Ghost, GoldResidual] {
        let found = Target::from(kd_target).distribution(&label);
        for (found, expected) in found.probabilities.iter().zip(weights) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{kd_target:?}: {found}, not {expected}");
        }
        assert!(found.tail_masses[0] < 1e-6 && found.gold_masses[0] < 1e-6, "{kd_target:?}: {found:?}");
    }
}

#[test]
fn distributions_of_wrong_labels_show() {
    for (logit, log_sum_exp) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (f32::NEG_INFINITY, 1.0), (1.0, f32::NAN)] {
        let label = Label {
            top_k: 1,
            top_ids: vec![1],
            top_logits: vec![logit],
            log_sum_exp: vec![log_sum_exp],
            gold_logits: vec![0.0],
            ..Label::default()
        };
        for temperature in [1.0, 2.0] {
            let found = tempered(Ghost, temperature).distribution(&label);
            assert!(!found.probabilities[0].is_finite(), "{logit} {log_sum_exp} {temperature}: {found:?}");
        }
    }
}
