//! Labelling as the stage of a run does it: a teacher's runner, and batches of masked copies.

use super::examples;
use crate::cli::{BenchCommonArgs, LabelWorkArgs, PlaceArgs};
use crate::configuration::Placement;
use crate::failure::{ExitCode, Failure};
use model::{Configuration, Tokenizer};
use std::path::PathBuf;
use store::{Label, MaskedCopy};
use teacher::{PendingLabels, Runner, RunnerOptions, TailOptions};

/// What a teacher is to label.
pub(super) struct Examples {
    teacher: PathBuf,
    tokenizer: Tokenizer,
    top_k: usize,
    tail: Option<TailOptions>,
    batches: Vec<Vec<MaskedCopy>>,
    place: Placement,
}

/// A teacher with what it labels.
pub(super) struct Labelling {
    runner: Runner,
    batches: Vec<Vec<MaskedCopy>>,
}

impl Examples {
    /// Reads and masks the text, in the teacher's tokens.
    ///
    /// # Errors
    /// When the teacher or the text cannot be read, or the teacher is too small for the options.
    pub(super) fn read(args: &LabelWorkArgs, common: &BenchCommonArgs, place: &PlaceArgs) -> Result<Self, Failure> {
        let tokenizer = open_teacher(args, common.top_k)?;
        let sequences = examples::read(&args.text, &tokenizer, args.max_length, args.limit_tokens)?;
        let copies = examples::mask(sequences, &tokenizer, common.seed);
        let batches = examples::batches(copies, args.batch_tokens);
        let (top_k, samples) = (common.top_k, args.tail_samples);
        if samples >= top_k {
            let message = format!("--tail-samples {samples} of --top-k {top_k}: at least one label has to be exact");
            return Err(Failure::new(ExitCode::Usage, message));
        }
        let tail = TailOptions::of(samples, common.seed);
        Ok(Self { teacher: args.teacher.clone(), tokenizer, top_k, tail, batches, place: place.placement()? })
    }

    /// Loads the teacher's weights.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn load_teacher(self) -> Result<Labelling, Failure> {
        let on = self.place.on_device();
        let options = RunnerOptions { name: "bench".to_owned(), index: 0, top_k: self.top_k, tail: self.tail, on };
        let runner = Runner::load(&self.teacher, &self.tokenizer, options)?;
        Ok(Labelling { runner, batches: self.batches })
    }
}

impl Labelling {
    /// The batches, by ascending length of their copies; at least one.
    pub(super) fn batches(&self) -> &[Vec<MaskedCopy>] {
        &self.batches
    }

    /// See [`Runner::flops`].
    pub(super) fn flops<'a>(&self, copies: impl Iterator<Item = &'a MaskedCopy> + Clone) -> u64 {
        self.runner.flops(copies)
    }

    /// Labels the batch of this index, in the pool that it is called in.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub(super) fn label(&self, batch: usize) -> Result<Vec<Label>, Failure> {
        Ok(self.begin(batch)?.wait()?)
    }

    /// Labels all batches as a run does: on a GPU each is begun before the one before it is waited for.
    ///
    /// # Errors
    /// As of [`Labelling::label`].
    pub(super) fn label_all(&self) -> Result<Vec<Vec<Label>>, Failure> {
        let (mut labels, mut at_work) = (Vec::new(), None);
        for batch in 0..self.batches.len() {
            let earlier = at_work.replace(self.begin(batch)?);
            labels.extend(earlier.map(PendingLabels::wait).transpose()?);
        }
        labels.extend(at_work.map(PendingLabels::wait).transpose()?);
        Ok(labels)
    }

    fn begin(&self, batch: usize) -> Result<PendingLabels, Failure> {
        let copies: Vec<&MaskedCopy> = self.batches[batch].iter().collect();
        Ok(self.runner.begin(&copies)?)
    }
}

/// The teacher's tokenizer; its shape is checked against the options.
fn open_teacher(args: &LabelWorkArgs, top_k: usize) -> Result<Tokenizer, Failure> {
    let path = &args.teacher;
    if !path.is_dir() {
        let message = format!("there is no folder {}; correct --teacher", path.display());
        return Err(Failure::new(ExitCode::NoInput, message));
    }
    let failed = |error: model::ModelError| Failure::new(ExitCode::of_model(&error), error);
    let tokenizer = Tokenizer::load(path).map_err(failed)?;
    let (words, positions) = (tokenizer.len(), Configuration::load(path).map_err(failed)?.max_position_embeddings);
    if top_k > words {
        let message = format!("the teacher has {words} words, fewer than --top-k {top_k}; lower it");
        return Err(Failure::new(ExitCode::Usage, message));
    }
    if args.max_length > positions {
        let message =
            format!("the teacher has {positions} positions, fewer than --max-length {}; lower it", args.max_length);
        return Err(Failure::new(ExitCode::Usage, message));
    }
    Ok(tokenizer)
}
