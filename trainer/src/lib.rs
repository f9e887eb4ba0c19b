//! The student's side of the pipeline: union vocabulary, sampling from the log, batches, loss, optimiser,
//! schedules, checkpoints, evaluation and export.
//!
//! Invariants
//!
//! - Log, journal and seed determine every step: after a crash a run reaches the same weights, bit for bit, as
//!   one that was never interrupted. So nothing here depends on time, on the order of threads or on their number:
//!   sums run over pieces of a fixed size, in a fixed order.
//! - A checkpoint is one folder that appears complete or not at all.
//! - Memory for logits is bounded by a chunk of positions, however large batch and vocabulary are ([`loss`]).
//! - A record that is held out is never trained on; evaluation changes nothing that training reads.
//!
//! Beside all that, [`downstream`] fine-tunes a finished model on a task and scores it.
//!
//! What it does not do: it reads no corpus and runs no teacher (the log has all it needs), it serves nothing (its
//! metrics go to the registry it is given), and it decides nothing about retention beyond saying what it needs
//! ([`TrainerProgress::need`]).

pub mod batch;
pub mod checkpoint;
pub mod copy_stream;
pub mod downstream;
pub mod evaluate;
mod evaluation_gauges;
pub mod export;
mod flops;
pub mod journal;
mod language_cut;
pub mod learner;
pub mod loss;
pub mod optimiser;
pub mod options;
pub mod records;
pub mod release;
pub mod replay;
pub mod sampler;
pub mod schedule;
pub mod settings;
pub mod student;
pub mod target;
pub mod tokenizer_export;
pub mod trainer;
pub mod training_copy;
pub mod vocabulary;

mod branch;
mod calibration;
mod device_student;
mod durable;
mod error;
mod event;
mod growth;
mod initial;
mod inputs;
mod metrics;
mod model_card;
mod need;
mod newest;
mod resume;
mod run_log;
mod state_folder;
mod tally;
mod tensorboard;
mod turns;

pub use error::TrainerError;
pub use evaluate::{DocumentEvaluation, EvaluationReport, LanguageEvaluation, TeacherEvaluation};
pub use event::{BranchPoint, Event, Outcome, Request, StepReport, Ticket, TrainerProgress};
pub use export::{Exported, export_languages, export_newest};
pub use flops::Cost;
pub use inputs::{Input, Inputs};
pub use newest::{check_resume, evaluate_newest, evaluate_newest_documents, need_of_state, required_position};
pub use options::{
    BestBy, Copies, CopyWeight, EvaluationOptions, KdTarget, LossNorm, StudentInit, StudentOptions, TrainOptions,
    TrainerOptions, TrainerTeacher, WhenShort,
};
pub use release::{ReleaseError, ReleaseStatus, Releases};
pub use replay::{Replay, ReplayOptions};
pub use schedule::{CoolDown, LambdaSchedule, Schedule};
pub use settings::{Settings, SettingsEntry};
pub use state_folder::held_out_path;
pub use target::LaterTarget;
pub use tokenizer_export::{check_tokenizer_folder, export_learned};
pub use trainer::Trainer;
pub use turns::Turns;
pub use vocabulary::{TeacherTokens, Vocabulary};
