#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;
use trainer::replay::{Comparison, Culprit, Difference, Figures, Guess, Neighbours, Plan, PositionAccount};

fn part(name: &str, copies: u64, projection_share: f64) -> Part {
    Part {
        name: name.into(),
        copies,
        masked_positions: 3 * copies,
        kd: Some(2.0),
        mlm: 3.0,
        loss: 1.0,
        loss_share: copies as f64 / 10.0,
        projection: projection_share,
        projection_share,
    }
}

fn example(sequence: u64, projection_share: f64) -> CopyAccount {
    CopyAccount {
        sequence,
        source: "wiki".into(),
        document: "a.txt@0".into(),
        span: (10, 20),
        language: "en".into(),
        round: 0,
        pass: 0,
        teacher: "big".into(),
        labelled: true,
        micro_batch: 0,
        tokens: 9,
        masked_positions: 3,
        correct: 0,
        weight: 1.0,
        position_weight: 1.0 / 30.0,
        kd_sum: 6.0,
        kd: 2.0,
        mlm_sum: 9.0,
        mlm: 3.0,
        loss: 0.3,
        loss_share: 0.1,
        grad_norm: 0.3,
        projection: projection_share,
        projection_share,
        text: None,
    }
}

/// Ten copies alike, of a step like those around it.
fn quiet() -> StepAccount {
    let guess = || Guess { token: "so".to_owned(), probability: 0.5 };
    StepAccount {
        plan: Plan {
            step: 7,
            release: None,
            attempt: 1,
            attempts: 1,
            checkpoint: None,
            steps: 7,
            seconds: None,
            replayable: None,
        },
        figures: Figures {
            loss: 3.0,
            kd: 2.0,
            mlm: 3.0,
            top1: 0.1,
            learning_rate: 1e-3,
            lambda: 0.5,
            grad_norm: 1.0,
            clip: 1.0,
            skipped: None,
            copies: 10,
            tokens: 90,
            masked_positions: 30,
            micro_batches: 1,
        },
        comparison: None,
        neighbours: Some(Neighbours {
            steps: 12,
            median_loss: 3.0,
            loss_ratio: 1.0,
            median_grad_norm: 1.0,
            grad_norm_ratio: 1.0,
        }),
        culprit: None,
        weights_finite: true,
        skipped_in_attempts: Vec::new(),
        alignment: 0.3,
        parameters: Vec::new(),
        sources: vec![part("wiki", 5, 0.5), part("news", 5, 0.5)],
        teachers: vec![part("big", 10, 1.0)],
        languages: vec![part("en", 5, 0.5), part("de", 5, 0.5)],
        examples: (0..10).map(|sequence| example(sequence, 0.1)).collect(),
        positions: vec![PositionAccount {
            example: 0,
            sequence: 0,
            teacher: "big".into(),
            position: 4,
            gold: "oh".to_owned(),
            kd: 2.0,
            mlm: 3.0,
            loss: 0.1,
            loss_share: 1.0 / 30.0,
            student: guess(),
            student_gold: 0.05,
            teacher_guess: Some(guess()),
            teacher_gold: Some(0.1),
        }],
    }
}

/// What is found once `change` is made; each of `expected` is in it, in order, and nothing else.
#[track_caller]
fn check(change: impl FnOnce(&mut StepAccount), expected: &[&str]) {
    let mut account = quiet();
    change(&mut account);
    let found = findings(&account);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (finding, expected) in found.iter().zip(expected) {
        assert!(finding.contains(expected), "no `{expected}` in {found:#?}");
    }
}

fn spike(account: &mut StepAccount, loss_ratio: f64, grad_norm_ratio: f64) {
    let near = account.neighbours.as_mut().unwrap();
    (near.loss_ratio, near.grad_norm_ratio) = (loss_ratio, grad_norm_ratio);
}

#[test]
fn what_stands_out_is_named() {
    let nothing = "no example, source, language or teacher stands out";
    check(|_| (), &[nothing]);
    check(|account| spike(account, 3.0, 1.0), &["all are worse than at other steps"]);
    check(
        |account| account.examples[0] = example(9, 0.6),
        &["record 9 (wiki, document a.txt@0, bytes 10–20; copy of teacher big) makes 60 %"],
    );
    let few = |account: &mut StepAccount| account.sources = vec![part("wiki", 8, 0.3), part("weird", 2, 0.7)];
    check(few, &["source weird: 2 of 10 copies make 70 % of the gradient and 20 % of the loss"]);
    let many = |account: &mut StepAccount| account.sources = vec![part("wiki", 2, 0.01), part("weird", 8, 0.99)];
    check(many, &[nothing]);
    check(|account| (many(account), spike(account, 1.0, 3.0)).0, &["source weird: 8 of 10 copies make 99 %"]);
    // A language that is the same copies says nothing new.
    let both = |account: &mut StepAccount| {
        few(account);
        account.languages = vec![part("en", 8, 0.3), part("de", 2, 0.7)];
    };
    check(both, &["source weird"]);
    check(|account| (account.alignment = 0.9, spike(account, 1.0, 3.0)).0, &["point the same way"]);
    check(|account| account.alignment = 0.9, &[nothing]);
    check(|account| account.examples[9].projection_share = -0.2, &[nothing]);
    let against = |account: &mut StepAccount| {
        (account.examples[9].projection, account.examples[9].projection_share) = (-0.2, -0.2);
    };
    check(against, &["1 copies pull against the others: -20 %"]);
    check(
        |account| account.positions[0].loss_share = 0.4,
        &["record 0, token 4) makes 40 % of the loss: the student gives `oh`"],
    );
    check(|account| account.figures.clip = 0.25, &[nothing, "clipped to 0.250"]);
}

#[test]
fn what_is_not_finite_has_a_culprit_or_none() {
    let skip = |account: &mut StepAccount| {
        account.figures.skipped = Some("the loss is NaN".to_owned());
        account.examples[0].loss = f64::NAN;
        let (teacher, what) = ("big".into(), "its loss is NaN".to_owned());
        account.culprit = Some(Culprit { example: 0, sequence: 0, teacher, what });
    };
    check(
        skip,
        &["record 0 (wiki, document a.txt@0, bytes 10–20; copy of teacher big) is not finite: its loss is NaN"],
    );
    let some = |account: &mut StepAccount| {
        skip(account);
        account.examples[1].grad_norm = f64::INFINITY;
    };
    check(some, &["nor are 1 other copies"]);
    let all = |account: &mut StepAccount| {
        skip(account);
        account.examples.iter_mut().for_each(|example| example.loss = f64::NAN);
    };
    check(all, &["nor is any other copy: look at the weights"]);
    let weights = |account: &mut StepAccount| {
        skip(account);
        (account.culprit, account.weights_finite, account.figures.grad_norm) = (None, false, f64::NAN);
    };
    check(weights, &["no example is to blame"]);
    check(
        |account| account.skipped_in_attempts = vec![2],
        &["in attempt 2 the step of this number was skipped", "no example"],
    );
    let differs = |account: &mut StepAccount| {
        let differences = vec![Difference { figure: "loss", recorded: 3.5, replayed: 3.0 }];
        let comparison = Comparison {
            loss: 3.5,
            grad_norm: 1.0,
            equal: false,
            differences,
            differs_from: Some(5),
            checkpoint_agrees: None,
        };
        account.comparison = Some(comparison);
    };
    check(differs, &["from step 5 on (loss was 3.5, is 3)", "no example"]);
}
