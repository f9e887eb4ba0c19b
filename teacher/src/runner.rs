//! One teacher.

use crate::on_device::DeviceTeacher;
use crate::{Decoder, HeadScratch, Labeller, NonFinite, PendingLabels, Tail, TeacherError, label_rows};
use candle_core::{Device, Tensor};
use model::device::{Best, DeviceError, DevicePlace, Precision};
use model::random::Philox;
use model::{Bert, Configuration, Inference, ModelError, PackedBatch, Tokenizer};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use store::{ComputedIn, Label, MaskedCopy, SequenceNumber};

/// What a runner needs to know besides the teacher's folder.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Name in the configuration.
    pub name: String,
    /// Index in the teacher table.
    pub index: u16,
    /// Labels kept per masked position, k.
    pub top_k: usize,
    /// How the last of them are drawn from the rest of the vocabulary; `None`: all are the best ones.
    pub tail: Option<TailOptions>,
    /// Where the accelerator is that labels; `None`: it is this processor.
    pub on: Option<DevicePlace>,
}

/// An exact head with a sampled tail ([`Tail`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailOptions {
    /// s: labels that are drawn; at least 1, and fewer than k.
    pub samples: usize,
    /// Seed of the run.
    pub seed: u64,
}

impl TailOptions {
    /// `samples` of the k labels are drawn; `None`: it is 0.
    #[must_use]
    pub fn of(samples: usize, seed: u64) -> Option<Self> {
        (samples > 0).then_some(Self { samples, seed })
    }
}

/// A loaded teacher. Labels batch after batch: on an accelerator, or in the rayon pool that it is called in.
#[derive(Debug)]
pub struct Runner {
    options: RunnerOptions,
    /// Folder, and words of its tokenizer.
    path: PathBuf,
    words: usize,
    configuration: Configuration,
    place: RwLock<Place>,
}

/// Where a teacher labels.
#[derive(Debug)]
enum Place {
    Processor(Box<ProcessorTeacher>),
    Device(Box<DeviceTeacher>),
    /// Nowhere: its accelerator failed, and was given up.
    Lost,
}

/// A teacher on this processor.
#[derive(Debug)]
struct ProcessorTeacher {
    network: Inference,
    decoder: Decoder,
    /// The head's buffers, of threads that are done with them.
    spare: Mutex<Vec<HeadScratch>>,
}

impl Runner {
    /// Loads the teacher of folder `path`; `tokenizer` is the one of that folder.
    pub fn load(path: &Path, tokenizer: &Tokenizer, options: RunnerOptions) -> Result<Self, TeacherError> {
        let failed = |source| TeacherError::Model { teacher: options.name.clone(), source: Box::new(source) };
        let bert = Bert::load(path, &Device::Cpu).map_err(failed)?;
        model::check_words(&bert.configuration, tokenizer).map_err(failed)?;
        let words = tokenizer.len();
        if words < bert.configuration.vocabulary_size {
            tracing::warn!(
                teacher = options.name,
                words,
                rows = bert.configuration.vocabulary_size,
                "more embedding rows than words: the surplus counts in the log-sum-exp, never in the top-k"
            );
        }
        if words < options.top_k {
            return Err(TeacherError::FewWords { teacher: options.name, words, top_k: options.top_k });
        }
        let place = match &options.on {
            None => Place::Processor(Box::new(ProcessorTeacher::new(&bert, words).map_err(failed)?)),
            Some(on) => Place::Device(on_device(on, &bert, words, options.top_k).map_err(failed)?),
        };
        let (path, place) = (path.to_owned(), RwLock::new(place));
        Ok(Self { options, path, words, configuration: bert.configuration, place })
    }

    /// Name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Index in the teacher table.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.options.index
    }

    /// The teacher's shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Labels of each position that are drawn from the tail.
    #[must_use]
    pub fn tail_samples(&self) -> usize {
        self.options.tail.map_or(0, |tail| tail.samples)
    }

    /// What labels are computed in.
    fn computed_in(&self) -> ComputedIn {
        self.options.on.as_ref().map_or(ComputedIn::Float32, |on| computed_in(on.precision))
    }

    /// Floating-point operations of the matrix products and the attention that [`Runner::label`] does for `copies`; a multiplication
    /// and an addition count as two. With M masked positions, E embedding size and V rows of the decoder, 2·M·E·V more than
    /// [`Inference::flops`]. Tiles that are computed again for a sampled tail do not count, and an accelerator's are those of its shape.
    pub fn flops<'a>(&self, copies: impl Iterator<Item = &'a MaskedCopy> + Clone) -> u64 {
        let configuration = self.configuration();
        let place = self.place();
        let Place::Processor(teacher) = &*place else {
            return configuration.flops(copies.map(|copy| (copy.token_ids.len(), copy.masked_positions.len())));
        };
        let decoder = 2 * configuration.embedding_size as u64 * configuration.vocabulary_size as u64;
        let masked: u64 = copies.clone().map(|copy| copy.masked_positions.len() as u64).sum();
        decoder * masked + teacher.network.flops(copies.map(|copy| (copy.token_ids.len(), copy.masked_positions.len())))
    }

    /// Labels `copies` (this teacher's own) in one forward pass; one label per copy, in order.
    pub fn label(&self, copies: &[&MaskedCopy]) -> Result<Vec<Label>, TeacherError> {
        self.begin(copies)?.wait()
    }

    /// Begins to label `copies`: on an accelerator what is begun next waits there for it, on the processor it is done when this returns.
    pub fn begin(&self, copies: &[&MaskedCopy]) -> Result<PendingLabels, TeacherError> {
        let (batch, gold_ids) = pack(copies);
        let positions: Vec<usize> = copies.iter().map(|copy| copy.masked_positions.len()).collect();
        let (name, top_k) = (self.options.name.clone(), self.options.top_k);
        let failed = |source| TeacherError::Model { teacher: self.options.name.clone(), source: Box::new(source) };
        let uniforms = self.options.tail.map(|tail| self.uniforms(tail.seed, copies));
        let tail = uniforms.as_deref().map(|uniforms| Tail { samples: self.tail_samples(), uniforms });
        match &*self.place() {
            Place::Processor(teacher) => {
                let label = teacher.label(&batch, &gold_ids, top_k, tail).map_err(failed)?;
                finite(label, name).map(|label| PendingLabels::ready(split(&label, &positions)))
            }
            Place::Device(teacher) => {
                let parts = teacher.begin(&batch, &gold_ids, tail).map_err(failed)?;
                let computed_in = self.computed_in();
                Ok(PendingLabels::later(move || {
                    let failed = |source| TeacherError::Model { teacher: name.clone(), source: Box::new(source) };
                    let label = label_of(parts.wait().map_err(failed)?, top_k, computed_in);
                    finite(label, name).map(|label| split(&label, &positions))
                }))
            }
            Place::Lost => Err(failed(lost(&name))),
        }
    }

    fn place(&self) -> RwLockReadGuard<'_, Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A uniform number for each masked position: a function of seed, teacher, the copy's tokens (masks in) and the position, so that a label
    /// depends on the copy alone, in whichever batch it is. A copy that says the same at another place has the same draws.
    fn uniforms(&self, seed: u64, copies: &[&MaskedCopy]) -> Vec<f64> {
        let mut uniforms = Vec::new();
        for copy in copies {
            let tokens: Vec<u8> = copy.token_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let stream = Philox::new(seed, "tail", &[self.options.name.as_bytes(), &tokens]);
            uniforms.extend(copy.masked_positions.iter().map(|position| stream.uniform(u64::from(*position), 0)));
        }
        uniforms
    }
}

impl ProcessorTeacher {
    fn new(bert: &Bert, words: usize) -> Result<Self, ModelError> {
        let network = Inference::checked(bert)?;
        let (weight, bias) = bert.decoder();
        let decoder = Decoder::new(&values(weight)?, &values(bias)?, words);
        Ok(Self { network, decoder, spare: Mutex::default() })
    }

    /// All labels of a batch.
    fn label(
        &self,
        batch: &PackedBatch,
        gold_ids: &[u32],
        top_k: usize,
        tail: Option<Tail<'_>>,
    ) -> Result<Result<Label, NonFinite>, ModelError> {
        let parts = self.network.map_shards(batch, |masked, hidden| {
            let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let mut scratch = spare().pop().unwrap_or_default();
            let tail = tail.map(|tail| Tail { uniforms: &tail.uniforms[masked.clone()], ..tail });
            let labels = label_rows(&self.decoder, hidden, &gold_ids[masked], top_k, tail, &mut scratch);
            spare().push(scratch);
            labels
        })?;
        let mut all = Label { top_k, ..Label::default() };
        for part in parts {
            let part = match part {
                Ok(part) => part,
                Err(not_finite) => return Ok(Err(not_finite)),
            };
            all.top_ids.extend(part.top_ids);
            all.top_logits.extend(part.top_logits);
            all.log_sum_exp.extend(part.log_sum_exp);
            all.gold_logits.extend(part.gold_logits);
        }
        Ok(Ok(all))
    }
}

/// What the log says of labels that are computed in `precision`.
#[must_use]
pub fn computed_in(precision: Precision) -> ComputedIn {
    match precision {
        Precision::F32 => ComputedIn::Float32,
        Precision::Bf16 => ComputedIn::Bfloat16,
        Precision::F16 => ComputedIn::Float16,
    }
}

/// The teacher on an accelerator, which is opened for it.
fn on_device(on: &DevicePlace, bert: &Bert, words: usize, top_k: usize) -> Result<Box<DeviceTeacher>, ModelError> {
    Ok(Box::new(DeviceTeacher::new(&on.open()?, bert, words, top_k)?))
}

fn finite(label: Result<Label, NonFinite>, teacher: String) -> Result<Label, TeacherError> {
    label.map_err(|NonFinite(token)| TeacherError::NonFinite { teacher, token })
}

fn lost(teacher: &str) -> ModelError {
    DeviceError::Failed { device: format!("the device of teacher `{teacher}`"), reason: "it was lost".to_owned() }
        .into()
}

/// What an accelerator found.
fn label_of(best: Best, top_k: usize, computed_in: ComputedIn) -> Result<Label, NonFinite> {
    let Best { top_ids, top_logits, log_sum_exp, gold_logits, not_finite } = best;
    match not_finite {
        Some(token) => Err(NonFinite(token as usize)),
        None => Ok(Label { top_k, top_ids, top_logits, log_sum_exp, gold_logits, computed_in }),
    }
}

impl Labeller for Runner {
    fn name(&self) -> &str {
        self.name()
    }

    fn index(&self) -> u16 {
        self.index()
    }

    fn begin(&self, copies: &[&MaskedCopy], _: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        self.begin(copies)
    }

    /// An accelerator never waits for the processor to prepare what comes and to hand on what was.
    fn ahead(&self) -> usize {
        usize::from(self.options.on.is_some())
    }

    fn flops(&self, copies: &[&MaskedCopy]) -> u64 {
        let sizes = copies.iter().map(|copy| (copy.token_ids.len(), copy.masked_positions.len()));
        self.configuration().flops(sizes)
    }

    fn tail_samples(&self) -> usize {
        self.tail_samples()
    }

    fn needs_pool(&self) -> bool {
        self.options.on.is_none()
    }

    fn device_bytes(&self) -> usize {
        match &*self.place() {
            Place::Processor(_) | Place::Lost => 0,
            Place::Device(teacher) => teacher.device_bytes(),
        }
    }

    fn take_halvings(&self) -> u64 {
        match &*self.place() {
            Place::Processor(_) | Place::Lost => 0,
            Place::Device(teacher) => teacher.take_halvings(),
        }
    }

    fn recover(&self) -> Result<(), TeacherError> {
        let failed = |source| TeacherError::Model { teacher: self.options.name.clone(), source: Box::new(source) };
        let Some(on) = &self.options.on else { return Ok(()) };
        let mut place = self.place.write().unwrap_or_else(PoisonError::into_inner);
        // First all that it has there goes: what has failed may only come back when nobody holds it any more.
        *place = Place::Lost;
        let bert = Bert::load(&self.path, &Device::Cpu).map_err(failed)?;
        *place = Place::Device(on_device(on, &bert, self.words, self.options.top_k).map_err(failed)?);
        Ok(())
    }
}

/// The tensor's values, row after row.
fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Sequences one after another, and the gold id of each masked row.
fn pack(copies: &[&MaskedCopy]) -> (PackedBatch, Vec<u32>) {
    let mut batch = PackedBatch::default();
    let mut gold_ids = Vec::new();
    for copy in copies {
        let first_row = batch.token_ids.len() as u32;
        batch.masked_rows.extend(copy.masked_positions.iter().map(|position| first_row + position));
        batch.token_ids.extend_from_slice(&copy.token_ids);
        batch.lengths.push(copy.token_ids.len());
        gold_ids.extend_from_slice(&copy.gold_ids);
    }
    (batch, gold_ids)
}

/// Gives each copy its part of the batch's labels: `positions` of it.
fn split(all: &Label, positions: &[usize]) -> Vec<Label> {
    let k = all.top_k;
    let mut first = 0;
    positions
        .iter()
        .map(|positions| {
            let end = first + positions;
            let label = Label {
                top_k: k,
                top_ids: all.top_ids[first * k..end * k].to_vec(),
                top_logits: all.top_logits[first * k..end * k].to_vec(),
                log_sum_exp: all.log_sum_exp[first..end].to_vec(),
                gold_logits: all.gold_logits[first..end].to_vec(),
                computed_in: all.computed_in,
            };
            first = end;
            label
        })
        .collect()
}
