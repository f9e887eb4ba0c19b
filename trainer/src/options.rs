//! Everything that can be set about training, in one place.

use crate::TrainerError;
use crate::inputs::Inputs;
use crate::schedule::{LambdaSchedule, Schedule};
use crate::state_folder::held_out_path;
use crate::target::LaterTarget;
use crate::turns::Turns;
use model::device::Ranks;
use model::{Architecture, Configuration, RolePool, Tokenizer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use store::Identity;

/// What a [`crate::trainer::Trainer`] is made from.
#[derive(Clone)]
pub struct TrainerOptions {
    /// Seed of the run: initial weights, sampling, dropout.
    pub seed: u64,
    /// The state folder; checkpoints, the journal, `vocab/` and `metrics.jsonl` live in it.
    pub state_dir: PathBuf,
    /// Shape of the student.
    pub student: StudentOptions,
    /// How it is trained.
    pub train: TrainOptions,
    /// How it is evaluated.
    pub evaluation: EvaluationOptions,
    /// Whether TensorBoard's event files are written, into `tensorboard/` of the state folder.
    pub tensorboard: bool,
    /// A language's share is ∝ n_k^alpha.
    pub alpha: f64,
    /// Teachers in the order of the log's teacher table, those that the log does not know yet last.
    pub teachers: Vec<TrainerTeacher>,
    /// What ingestion reads for training while this trainer runs; empty: train from the log as it is.
    pub inputs: Inputs,
    /// The accelerators that the student is trained on; `None`: this processor.
    pub on: Option<Ranks>,
    /// The threads of training; `None`: those of the pool it is called in.
    pub pool: Option<Arc<RolePool>>,
    /// Who computes next on these threads: trainers with clones of it take turns.
    pub turns: Turns,
    /// The state folder of the run that this is a release of; `None`: this is the run itself.
    pub trunk: Option<PathBuf>,
}

impl TrainerOptions {
    /// Checks what the options can say about themselves.
    pub(crate) fn check(&self) -> Result<(), TrainerError> {
        let train = &self.train;
        let counts = [
            ("train.batch_examples", train.batch_examples),
            ("train.micro_batch_tokens", train.micro_batch_tokens),
            ("train.shuffle_examples", train.shuffle_examples),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(TrainerError::Configuration(format!("`{key}` is 0; expected at least 1")));
        }
        if train.schedule == Schedule::Linear && train.steps.is_none() {
            let message = "`train.steps` is missing, and the linear schedule ends with it; set it, or train without end \
                           by schedule = \"trunk\"";
            return Err(TrainerError::Configuration(message.to_owned()));
        }
        Ok(())
    }

    /// Checks what depends on the log that is trained from.
    pub(crate) fn check_log(&self, log: &Identity) -> Result<(), TrainerError> {
        let later = self.train.kd_target_later.map(|later| later.kd_temperature);
        let tempers = [Some(self.train.kd_temperature), later].into_iter().flatten().any(|one| one != 1.0);
        if log.tail_samples() > 0 && tempers {
            let message = "the labels of the log have sampled tails (store.tail_samples), whose entries are weights and \
                           cannot be tempered: set train.kd_temperature and kd_temperature_later to 1";
            return Err(TrainerError::Configuration(message.to_owned()));
        }
        Ok(())
    }

    /// The step at which training begins: that of the checkpoint which a release branches from, 0 otherwise.
    pub(crate) fn first_step(&self) -> u64 {
        match self.train.schedule {
            Schedule::CoolDown(branch) => branch.from_step,
            Schedule::Linear | Schedule::Trunk { .. } => 0,
        }
    }

    /// The name of the release that is trained; `None`: it is the run.
    pub(crate) fn release_name(&self) -> Option<String> {
        self.trunk.as_ref()?;
        self.state_dir.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// Where the held-out records are that retention removed from the log.
    pub(crate) fn held_out_path(&self) -> PathBuf {
        held_out_path(self.trunk.as_ref().unwrap_or(&self.state_dir))
    }

    /// Does one unit of work on training's threads, when it is this trainer's turn.
    pub(crate) fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let _turn = self.turns.take();
        match &self.pool {
            Some(pool) => {
                let pulse = store::pulse::current();
                pool.install(|| {
                    let _entered = pulse.map(store::pulse::Pulse::enter);
                    work()
                })
            }
            None => work(),
        }
    }
}

/// What training needs to know of a teacher.
#[derive(Clone)]
pub struct TrainerTeacher {
    /// Name in the configuration.
    pub name: String,
    /// Languages it has copies of.
    pub languages: Vec<String>,
    /// Whether it labels, or lends only its tokenizer.
    pub labels: bool,
    /// The folder with its weights, if it has any: the word embeddings that a student may begin with.
    pub folder: Option<PathBuf>,
    /// Its tokenizer: the source of its part of the union vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its shape, which says what its labels cost; `None`: it does not label, or nobody knows.
    pub shape: Option<Arc<Configuration>>,
}

/// Shape of the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudentOptions {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward networks.
    pub intermediate_size: usize,
    /// Width of the embeddings; below `hidden_size` the embedding is factorised (an ELECTRA generator).
    pub embedding_size: usize,
    /// Longest sequence, `[CLS]` and `[SEP]` included.
    pub max_sequence_length: usize,
    /// Dropout of embeddings, layers and attention.
    pub dropout: f64,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// What the word embeddings begin with.
    pub init: StudentInit,
}

/// What a student's word embeddings begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StudentInit {
    /// Normal numbers.
    #[default]
    Random,
    /// The teachers' word embeddings.
    Teachers,
}

impl StudentOptions {
    /// The student's configuration over a vocabulary of `vocabulary_size` tokens.
    #[must_use]
    pub fn configuration(&self, vocabulary_size: usize, pad_token_id: u32) -> Configuration {
        let plain = self.embedding_size == self.hidden_size;
        Configuration {
            architecture: if plain { Architecture::Bert } else { Architecture::ElectraGenerator },
            vocabulary_size,
            embedding_size: self.embedding_size,
            hidden_size: self.hidden_size,
            layers: self.layers,
            heads: self.heads,
            intermediate_size: self.intermediate_size,
            max_position_embeddings: self.max_sequence_length,
            type_vocabulary_size: 2,
            activation: model::Activation::Gelu,
            layer_norm_eps: 1e-12,
            hidden_dropout: self.dropout,
            attention_dropout: self.dropout,
            classifier_dropout: None,
            initializer_range: self.initializer_range,
            tie_word_embeddings: true,
            pad_token_id,
        }
    }
}

/// How the student is trained. Field names are the keys of `[train]`. The journal has them ([`crate::settings`]): a field that it lacks is
/// taken to be the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainOptions {
    /// Optimiser steps of the whole run: what the linear schedule of learning rate and λ spans; `None`: training has no end.
    pub steps: Option<u64>,
    /// What learning rate and λ follow.
    pub schedule: Schedule,
    /// Stop early after this step; alters no schedule, and is not in the journal.
    #[serde(skip)]
    pub until_step: Option<u64>,
    /// Copies per step.
    pub batch_examples: usize,
    /// Tokens per forward and backward pass.
    pub micro_batch_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices; biases and LayerNorms have none.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0: no clipping.
    pub clip_norm: f64,
    /// λ at the first step: the weight of distillation against gold labels.
    pub lambda_start: f64,
    /// λ at the last step, of the run or of a release.
    pub lambda_end: f64,
    /// λ's way between its ends, those of a trunk and of a release too.
    #[serde(skip_serializing_if = "LambdaSchedule::is_linear")]
    pub lambda_schedule: LambdaSchedule,
    /// Which of an example's copies are trained on.
    pub copies: Copies,
    /// How the best copy is told (`copies = "best"`).
    pub best_by: BestBy,
    /// What a copy counts (`copies = "all"`).
    pub copy_weight: CopyWeight,
    /// The distribution that the student is distilled from.
    pub kd_target: KdTarget,
    /// The teacher's temperature in it; the student's is 1.
    #[serde(skip_serializing_if = "is_one")]
    pub kd_temperature: f64,
    /// What takes its place later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_target_later: Option<LaterTarget>,
    /// What the sum of the losses is divided by.
    pub loss_norm: LossNorm,
    /// Examples of a window: the sampler draws and shuffles this many at a time.
    pub shuffle_examples: usize,
    /// Times that a language's records may be gone through once its input has ended; 0: as often as needed.
    pub max_passes: u64,
    /// What a language does that runs short while its input is open.
    pub when_short: WhenShort,
    /// Steps between checkpoints; 0: only when asked and at the end.
    pub checkpoint_every_steps: u64,
    /// Newest checkpoints that are kept.
    pub keep_checkpoints: usize,
}

/// Whether a setting that is 1 by default is so.
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

/// Which of an example's copies are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copies {
    /// Every teacher's.
    All,
    /// That of the teacher with the lowest loss on the example (ties: configuration order).
    Best,
    /// One of them, drawn anew each time the example is read: what "best" is to be compared with, at as many copies.
    Random,
}

/// How losses of different teachers on one example are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BestBy {
    /// Mean over the masked positions.
    Position,
    /// Sum over the masked positions per character of the tokens that are masked: does not favour finer tokenizers.
    Character,
}

/// Weight of a copy against those of other examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyWeight {
    /// Each copy counts 1.
    Equal,
    /// The copies of one example share a weight of 1.
    Shared,
}

/// The distribution that the student is distilled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KdTarget {
    /// The teacher's top-k, renormalised to a sum of 1 (the paper's).
    Renormalised,
    /// The teacher's true probabilities of its top-k, and one bucket for the mass of all other tokens.
    Ghost,
    /// The teacher's true probabilities of its top-k, and the mass of all other tokens on the gold token.
    GoldResidual,
}

/// What the sum of the losses over a batch is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossNorm {
    /// The batch's masked positions.
    Batch,
    /// Each language's masked positions apart: the sum of per-language means (the paper's).
    Language,
}

/// What a language does that runs short of records while its input is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenShort {
    /// Waits for more.
    Wait,
    /// Goes through what it has again.
    Replay,
}

/// How the student is evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationOptions {
    /// Steps between evaluations; 0: only before the first step and after the last.
    pub every_steps: u64,
    /// Most held-out examples per language and set.
    pub max_examples: usize,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self { every_steps: 250, max_examples: 500 }
    }
}

impl Default for StudentOptions {
    fn default() -> Self {
        Self {
            layers: 4,
            hidden_size: 256,
            heads: 4,
            intermediate_size: 1024,
            embedding_size: 256,
            max_sequence_length: 128,
            dropout: 0.1,
            initializer_range: 0.02,
            init: StudentInit::Random,
        }
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: Some(1000),
            schedule: Schedule::Linear,
            until_step: None,
            batch_examples: 64,
            micro_batch_tokens: 4096,
            learning_rate: 5e-4,
            warmup_steps: 100,
            weight_decay: 0.01,
            clip_norm: 1.0,
            lambda_start: 1.0,
            lambda_end: 0.0,
            lambda_schedule: LambdaSchedule::Linear,
            copies: Copies::All,
            best_by: BestBy::Position,
            copy_weight: CopyWeight::Equal,
            // Not what a configuration has by default: what a journal without it was made with.
            kd_target: KdTarget::Renormalised,
            kd_temperature: 1.0,
            kd_target_later: None,
            loss_norm: LossNorm::Batch,
            shuffle_examples: 4096,
            max_passes: 0,
            when_short: WhenShort::Wait,
            checkpoint_every_steps: 500,
            keep_checkpoints: 3,
        }
    }
}
