//! A teacher on an accelerator.

use crate::head::Tail;
use model::device::{Accelerator, Best, DeviceError, Draws, Network, OnDevice, PendingBest, TopK};
use model::{Bert, ModelError, PackedBatch};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Network and head of a teacher, which label batch after batch.
#[derive(Debug)]
pub(crate) struct DeviceTeacher {
    device: Arc<dyn Accelerator>,
    work: Mutex<Work>,
    top_k: usize,
    halvings: AtomicU64,
}

#[derive(Debug)]
struct Work {
    network: Network,
    head: TopK,
}

/// The labels of a batch's parts, on their way from the accelerator.
#[derive(Debug)]
pub(crate) struct PendingParts(Vec<PendingBest>);

impl PendingParts {
    /// Waits for all of them.
    ///
    /// # Errors
    /// When the accelerator failed.
    pub(crate) fn wait(self) -> Result<Best, ModelError> {
        let mut best = Best::default();
        self.0.into_iter().try_for_each(|part| part.wait().map(|part| best.append(part)))?;
        Ok(best)
    }
}

impl DeviceTeacher {
    /// Takes the weights over, and holds the network against the plain composition.
    ///
    /// # Errors
    /// When the accelerator has no room for them, or cannot compute this model.
    pub(crate) fn new(on: &OnDevice, bert: &Bert, words: usize, top_k: usize) -> Result<Self, ModelError> {
        let OnDevice { device, precision } = on;
        if top_k > TopK::MOST {
            let reason = format!("store.top_k = {top_k}; a GPU labels at most {}: use device = \"cpu\"", TopK::MOST);
            return Err(DeviceError::Unusable { device: device.name().to_owned(), reason }.into());
        }
        let c = &bert.configuration;
        let network = Network::checked(on, bert)?;
        let sizes = (c.vocabulary_size, words, c.embedding_size);
        let head = TopK::new(device, *precision, network.decoder(), sizes)?;
        let work = Mutex::new(Work { network, head });
        Ok(Self { device: Arc::clone(device), work, top_k, halvings: AtomicU64::new(0) })
    }

    /// How often a batch had to be cut in two because the accelerator had no room for it, since this was asked last.
    pub(crate) fn take_halvings(&self) -> u64 {
        self.halvings.swap(0, Ordering::Relaxed)
    }

    /// Bytes that it has on its accelerator.
    pub(crate) fn device_bytes(&self) -> usize {
        self.device.reserved()
    }

    /// Begins to label a batch. Where the accelerator has no room for all of it, the sequences go in two halves, and those in halves again.
    ///
    /// # Errors
    /// When the batch does not fit the model, the accelerator has no room for one sequence, or fails.
    pub(crate) fn begin(
        &self,
        batch: &PackedBatch,
        golds: &[u32],
        tail: Option<Tail<'_>>,
    ) -> Result<PendingParts, ModelError> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Vec::new();
        self.begin_in_parts(&mut work, batch, golds, tail, &mut parts)?;
        Ok(PendingParts(parts))
    }

    fn begin_in_parts(
        &self,
        work: &mut Work,
        batch: &PackedBatch,
        golds: &[u32],
        tail: Option<Tail<'_>>,
        parts: &mut Vec<PendingBest>,
    ) -> Result<(), ModelError> {
        match work.begin(batch, golds, self.top_k, tail) {
            Err(ModelError::Device(error @ DeviceError::OutOfMemory { .. })) if batch.lengths.len() > 1 => {
                tracing::warn!(
                    sequences = batch.lengths.len(),
                    tokens = batch.tokens(),
                    "{error}; the batch goes in two halves"
                );
                self.halvings.fetch_add(1, Ordering::Relaxed);
                work.network.release()?;
                work.head.release()?;
                let (low, high) = batch.cut(2);
                let rows = low.masked_rows.len();
                let (of_low, of_high) = golds.split_at(rows);
                let [tail_of_low, tail_of_high] = [0..rows, rows..golds.len()]
                    .map(|of| tail.map(|tail| Tail { uniforms: &tail.uniforms[of], ..tail }));
                self.begin_in_parts(work, &low, of_low, tail_of_low, parts)?;
                self.begin_in_parts(work, &high, of_high, tail_of_high, parts)
            }
            begun => begun.map(|part| parts.push(part)),
        }
    }
}

impl Work {
    fn begin(
        &mut self,
        batch: &PackedBatch,
        golds: &[u32],
        top_k: usize,
        tail: Option<Tail<'_>>,
    ) -> Result<PendingBest, ModelError> {
        let hidden = self.network.hidden(batch)?;
        let draws = tail.map(|Tail { samples, uniforms }| Draws { samples, uniforms });
        // SAFETY: the network holds the hidden states of this batch until its next one, and its decoder for as long as it lives.
        #[allow(unsafe_code, reason = "places in an accelerator's memory are numbers")]
        let begun = unsafe { self.head.begin(hidden, golds, top_k, draws) };
        Ok(begun?)
    }
}
