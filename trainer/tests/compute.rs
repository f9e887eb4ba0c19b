//! What training has cost, in floating-point operations.
#![allow(clippy::unwrap_used)]

mod scene;

use scene::{Scene, metrics, mixture};
use serde_json::Value;
use std::sync::Arc;
use store::{Payload, SequenceNumber};
use trainer::{Copies, Outcome, TrainerOptions};

/// A scene whose teachers have a shape, and options to train longer than there are records.
fn costly(copies: Copies, state: &str) -> (Scene, TrainerOptions) {
    let scene = Scene::with_log(&mixture(40));
    let mut options = scene.options(state);
    (options.train.steps, options.train.copies) = (Some(40), copies);
    for (teacher, words) in options.teachers.iter_mut().zip([30, 50]) {
        teacher.shape = Some(Arc::new(options.student.configuration(words, 0)));
    }
    (scene, options)
}

fn steps(options: &TrainerOptions) -> Vec<Value> {
    metrics(&options.state_dir).into_iter().filter(|line| line.get("loss").is_some()).collect()
}

#[test]
fn a_teacher_is_charged_once_for_what_is_read() {
    for copies in [Copies::All, Copies::Best, Copies::Random] {
        let (scene, options) = costly(copies, "state");
        assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Finished);
        let reader = scene.reader();
        let mut expected = 0.0;
        for sequence in 0..40 {
            let entry = reader.entry(SequenceNumber(sequence)).unwrap();
            let Payload::Record(record) = &entry.payload else { panic!("entry {sequence} is no record") };
            for copy in record.copies.iter().filter(|_| !record.held_out) {
                let shape = options.teachers[usize::from(copy.teacher)].shape.as_ref().unwrap();
                let size = (copy.token_ids.len(), copy.masked_positions.len());
                expected += shape.flops([size].into_iter()) as f64;
            }
        }
        let lines = steps(&options);
        assert_eq!(
            lines[39]["total_teacher_flops"], expected,
            "every record was read, some more than once: {copies:?}"
        );
        for (figure, total) in
            [("tokens", "total_tokens"), ("train_flops", "total_train_flops"), ("teacher_flops", "total_teacher_flops")]
        {
            let mut sum = 0.0;
            for line in &lines {
                sum += line[figure].as_f64().unwrap();
                assert_eq!(line[total].as_f64(), Some(sum), "{figure}");
            }
        }
    }
}

#[test]
fn a_step_costs_three_passes_of_the_student() {
    let (scene, mut options) = costly(Copies::All, "state");
    options.train.steps = Some(3);
    options.train.batch_examples = 1;
    scene.run(&options, |_| ()).unwrap();
    let size = trainer::Vocabulary::load(&options.state_dir.join("vocab")).unwrap().size();
    for line in steps(&options) {
        let one = (line["tokens"].as_u64().unwrap() as usize, line["masked_positions"].as_u64().unwrap() as usize);
        let pass = options.student.configuration(size, 0).flops([one].into_iter());
        assert_eq!(line["train_flops"], 3 * pass);
    }
}

#[test]
fn sums_go_on_after_an_interruption() {
    let (whole, options) = costly(Copies::All, "whole");
    whole.run(&options, |_| ()).unwrap();
    let (parts, mut stopped) = costly(Copies::All, "parts");
    for until in [Some(7), None] {
        stopped.train.until_step = until;
        parts.run(&stopped, |_| ()).unwrap();
    }
    let totals = |options: &TrainerOptions| -> Vec<Value> {
        let figures = ["total_tokens", "total_train_flops", "total_teacher_flops"];
        steps(options).into_iter().map(|line| figures.map(|figure| line[figure].clone()).to_vec().into()).collect()
    };
    assert_eq!(totals(&options), totals(&stopped));
}
