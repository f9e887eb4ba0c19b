//! From the configuration's sections to the trainer's options.

use crate::configuration::Configuration;
use crate::inputs::Inputs;
use ingest::CorpusOptions;
use model::RolePool;
use std::sync::Arc;
use trainer::{
    BestBy, Copies, CopyWeight, EvaluationOptions, Input, KdTarget, LambdaSchedule, LaterTarget, LossNorm, Schedule,
    Settings, StudentInit, StudentOptions, TrainOptions, TrainerOptions, TrainerTeacher, Turns, WhenShort,
};

/// What the trainer is made from; `None`: the configuration has no student.
/// `pool` is training's.
pub fn options(
    configuration: &Configuration,
    inputs: &Inputs,
    until_step: Option<u64>,
    pool: Option<Arc<RolePool>>,
) -> Option<TrainerOptions> {
    let section = configuration.student.as_ref()?;
    let student = StudentOptions {
        layers: section.layers,
        hidden_size: section.hidden_size,
        heads: section.heads,
        intermediate_size: section.intermediate_size,
        embedding_size: section.embedding_size,
        max_sequence_length: section.max_sequence_length,
        dropout: section.dropout,
        initializer_range: section.initializer_range,
        init: if section.init == "teachers" { StudentInit::Teachers } else { StudentInit::Random },
    };
    let teachers = inputs.teachers.iter().map(|teacher| TrainerTeacher {
        name: teacher.section.name.clone(),
        languages: teacher.section.languages.clone(),
        labels: teacher.section.labels,
        folder: teacher.section.labels.then(|| teacher.section.path.clone()),
        tokenizer: Arc::clone(&teacher.tokenizer),
        shape: teacher.shape.clone(),
    });
    Some(TrainerOptions {
        seed: configuration.run.seed,
        state_dir: configuration.run.state_dir.clone(),
        student,
        train: train_options(configuration, until_step),
        evaluation: evaluation_options(configuration),
        tensorboard: configuration.ops.tensorboard,
        alpha: configuration.sampling.alpha,
        teachers: teachers.collect(),
        inputs: inputs_for_training(&inputs.corpora, inputs.languages()).into(),
        on: None,
        pool,
        turns: Turns::default(),
        trunk: None,
    })
}

/// What may change while training goes on.
pub fn settings(configuration: &Configuration) -> (Settings, EvaluationOptions) {
    let settings = Settings { alpha: configuration.sampling.alpha, train: train_options(configuration, None) };
    (settings, evaluation_options(configuration))
}

fn evaluation_options(configuration: &Configuration) -> EvaluationOptions {
    let section = &configuration.evaluate;
    EvaluationOptions { every_steps: section.every_steps, max_examples: section.max_examples }
}

/// What is read of the corpora for training; none: the log is trained from as it is. `languages` are the teachers'.
pub fn inputs_for_training<'a>(
    corpora: &[CorpusOptions],
    languages: impl Iterator<Item = &'a str> + Clone,
) -> Vec<Input> {
    let for_training = corpora.iter().filter(|corpus| !corpus.evaluation_only);
    for_training
        .flat_map(|corpus| {
            let sources = corpus.sources(languages.clone()).into_iter();
            sources.map(|(source, language)| Input { source, language, finite: corpus.is_finite() })
        })
        .collect()
}

fn train_options(configuration: &Configuration, until_step: Option<u64>) -> TrainOptions {
    let section = &configuration.train;
    TrainOptions {
        steps: section.steps,
        schedule: match (section.schedule, section.lambda_steps, section.lambda_floor) {
            ("trunk", Some(lambda_steps), Some(lambda_floor)) => Schedule::Trunk { lambda_steps, lambda_floor },
            _ => Schedule::Linear,
        },
        until_step,
        batch_examples: section.batch_examples,
        micro_batch_tokens: section.micro_batch_tokens,
        learning_rate: section.learning_rate,
        warmup_steps: section.warmup_steps,
        weight_decay: section.weight_decay,
        clip_norm: section.clip_norm,
        lambda_start: section.lambda_start,
        lambda_end: section.lambda_end,
        lambda_schedule: match (section.lambda_schedule, section.lambda_step_at) {
            ("cosine", _) => LambdaSchedule::Cosine,
            ("step", Some(at)) => LambdaSchedule::Step { at },
            _ => LambdaSchedule::Linear,
        },
        copies: match section.copies {
            "best" => Copies::Best,
            "random" => Copies::Random,
            _ => Copies::All,
        },
        best_by: if section.best_by == "character" { BestBy::Character } else { BestBy::Position },
        copy_weight: if section.copy_weight == "shared" { CopyWeight::Shared } else { CopyWeight::Equal },
        kd_target: kd_target(section.kd_target),
        kd_temperature: section.kd_temperature,
        kd_target_later: section.later_target().map(|later| LaterTarget {
            kd_target: kd_target(later.kd_target),
            kd_temperature: later.kd_temperature,
            from_step: later.from_step,
            blend_steps: later.blend_steps,
        }),
        loss_norm: if section.loss_norm == "language" { LossNorm::Language } else { LossNorm::Batch },
        shuffle_examples: section.shuffle_examples,
        max_passes: section.max_passes.into(),
        when_short: if section.when_short == "replay" { WhenShort::Replay } else { WhenShort::Wait },
        checkpoint_every_steps: section.checkpoint_every_steps,
        keep_checkpoints: section.keep_checkpoints,
    }
}

fn kd_target(name: &str) -> KdTarget {
    match name {
        "ghost" => KdTarget::Ghost,
        "gold-residual" => KdTarget::GoldResidual,
        _ => KdTarget::Renormalised,
    }
}
