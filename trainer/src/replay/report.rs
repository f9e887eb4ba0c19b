//! What a replay tells.

use serde::Serialize;
use std::sync::Arc;

/// A step, and who made it what it was. Losses are in nats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepAccount {
    /// Which step it is, and from where it was replayed.
    #[serde(flatten)]
    pub plan: Plan,
    /// Its figures, as they were computed now.
    pub figures: Figures,
    /// What was recorded of it when it was made; `None`: nothing.
    pub comparison: Option<Comparison>,
    /// How it stands out among the steps around it; `None`: nothing is recorded of those.
    pub neighbours: Option<Neighbours>,
    /// Whose loss or gradient is not finite; `None`: nobody's, or the weights are to blame.
    pub culprit: Option<Culprit>,
    /// Whether the weights before the step are all finite.
    pub weights_finite: bool,
    /// Other attempts in which a step of this number was skipped.
    pub skipped_in_attempts: Vec<u64>,
    /// Norm of the gradient over the sum of the norms of the copies' own: 1 if all point the same way, about 1/√copies if they have nothing
    /// in common.
    pub alignment: f64,
    /// Norm of the gradient by part of the student.
    pub parameters: Vec<ParameterGroup>,
    /// By source.
    pub sources: Vec<Part>,
    /// By teacher, in the order of the log's table.
    pub teachers: Vec<Part>,
    /// By language.
    pub languages: Vec<Part>,
    /// The copies, that with the largest part in the gradient first.
    pub examples: Vec<CopyAccount>,
    /// The masked positions, that with the largest part in the loss first.
    pub positions: Vec<PositionAccount>,
}

/// What is replayed, and from where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The step, counted from 1.
    pub step: u64,
    /// The release that made it; `None`: the run.
    pub release: Option<String>,
    /// The attempt in which it was made, counted from 1.
    pub attempt: u64,
    /// Attempts so far.
    pub attempts: u64,
    /// Steps that are done in the checkpoint from which it is replayed; `None`: the first weights, which follow from the seed.
    pub checkpoint: Option<u64>,
    /// Steps that are made again, this one included.
    pub steps: u64,
    /// What they took when they were made, as far as that is recorded.
    pub seconds: Option<f64>,
    /// The first and the last step that can be replayed with what is there now; `None`: none.
    pub replayable: Option<(u64, u64)>,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// What was minimised.
    pub loss: f64,
    /// Mean distillation loss of the positions that a teacher labelled.
    pub kd: f64,
    /// Mean loss of the gold labels.
    pub mlm: f64,
    /// Share of gold labels that the student predicted.
    pub top1: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight of distillation.
    pub lambda: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The factor by which it was clipped; 1: it was not.
    pub clip: f64,
    /// Why the step changed nothing; `None`: it did.
    pub skipped: Option<String>,
    /// Copies in the batch.
    pub copies: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their masked positions.
    pub masked_positions: u64,
    /// Micro-batches.
    pub micro_batches: u64,
}

/// What is recorded of a step, beside what was computed now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Loss that is recorded; NaN if it was not finite.
    pub loss: f64,
    /// Norm of the gradient that is recorded; NaN as before.
    pub grad_norm: f64,
    /// Whether every figure is the same to the last bit.
    pub equal: bool,
    /// Those that are not.
    pub differences: Vec<Difference>,
    /// The first of the steps made again whose figures differ.
    pub differs_from: Option<u64>,
    /// Whether the weights after the step are, bit for bit, those of the checkpoint that was written there; `None`: there is none.
    pub checkpoint_agrees: Option<bool>,
}

/// A figure that is not what it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its name in `metrics.jsonl`.
    pub figure: &'static str,
    /// As it is recorded.
    pub recorded: f64,
    /// As it was computed now.
    pub replayed: f64,
}

/// The steps around one: up to 50 before and 50 after, without those that were skipped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbours {
    /// How many.
    pub steps: u64,
    /// Median of their losses.
    pub median_loss: f64,
    /// The step's loss over it.
    pub loss_ratio: f64,
    /// Median of their gradients' norms.
    pub median_grad_norm: f64,
    /// The step's over it.
    pub grad_norm_ratio: f64,
}

/// A copy with which something is not finite any more.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Culprit {
    /// Its place among `examples`.
    pub example: usize,
    /// The record.
    pub sequence: u64,
    /// The teacher whose copy it is.
    pub teacher: Arc<str>,
    /// What is not finite.
    pub what: String,
}

/// A part of the student.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParameterGroup {
    /// `embeddings`, `layer 0` and so on, `head`.
    pub name: String,
    /// Its numbers.
    pub parameters: u64,
    /// Norm of the gradient in it.
    pub grad_norm: f64,
    /// Its share of the square of the whole norm.
    pub share: f64,
}

/// Copies that have something in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Name of the source, teacher or language.
    pub name: Arc<str>,
    /// Copies.
    pub copies: u64,
    /// Their masked positions.
    pub masked_positions: u64,
    /// Mean distillation loss of the positions that a teacher labelled; `None`: there are none.
    pub kd: Option<f64>,
    /// Mean loss of the gold labels.
    pub mlm: f64,
    /// What they add to the step's loss.
    pub loss: f64,
    /// Their share of it.
    pub loss_share: f64,
    /// What they add to the norm of its gradient.
    pub projection: f64,
    /// Their share of it.
    pub projection_share: f64,
}

/// One copy of an example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CopyAccount {
    /// The record's place in the log.
    pub sequence: u64,
    /// The corpus.
    pub source: Arc<str>,
    /// The document, unique in its source.
    pub document: Arc<str>,
    /// First byte of the document, and the one after the last.
    pub span: (u64, u64),
    /// Its language.
    pub language: Arc<str>,
    /// Labelling round.
    pub round: u32,
    /// How often the record had been read before.
    pub pass: u64,
    /// Whose copy it is.
    pub teacher: Arc<str>,
    /// Whether the teacher labelled it.
    pub labelled: bool,
    /// The micro-batch in which it was computed, from 0.
    pub micro_batch: u64,
    /// Tokens.
    pub tokens: u64,
    /// Masked positions.
    pub masked_positions: u64,
    /// Those that the student predicted.
    pub correct: u64,
    /// What the copy counts against others.
    pub weight: f64,
    /// What each of its positions counts in the step's loss.
    pub position_weight: f64,
    /// Sum of the distillation losses.
    pub kd_sum: f64,
    /// Their mean.
    pub kd: f64,
    /// Sum of the losses of the gold labels.
    pub mlm_sum: f64,
    /// Their mean.
    pub mlm: f64,
    /// What it adds to the step's loss.
    pub loss: f64,
    /// Its share of it.
    pub loss_share: f64,
    /// Norm of its own gradient.
    pub grad_norm: f64,
    /// What it adds to the norm of the step's gradient: the projection of its own on that.
    pub projection: f64,
    /// Its share of it.
    pub projection_share: f64,
    /// Its text as its teacher's tokens say it, what was masked in double brackets: `[[so]]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// One masked position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionAccount {
    /// Its copy's place among `examples`.
    pub example: usize,
    /// The record.
    pub sequence: u64,
    /// The teacher whose copy it is.
    pub teacher: Arc<str>,
    /// Where it is in the copy, `[CLS]` counted.
    pub position: u32,
    /// The token that stood there.
    pub gold: String,
    /// Distillation loss; 0 without a label.
    pub kd: f64,
    /// Loss of the gold label.
    pub mlm: f64,
    /// What it adds to the step's loss.
    pub loss: f64,
    /// Its share of it.
    pub loss_share: f64,
    /// The student's best guess.
    pub student: Guess,
    /// Probability that it gives the gold token.
    pub student_gold: f64,
    /// The teacher's best guess; `None`: it did not label.
    pub teacher_guess: Option<Guess>,
    /// Probability that the teacher gives the gold token.
    pub teacher_gold: Option<f64>,
}

/// A token that somebody expects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guess {
    /// The token.
    pub token: String,
    /// Its probability.
    pub probability: f64,
}
