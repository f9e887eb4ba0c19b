//! A network whose weights do not change: a teacher.

use super::absorbed::{self, Absorbed};
use super::embedding::{Embedded, Tokens};
use super::first::FirstLayer;
use super::head::Transformed;
use super::layer::{self, Activations, Part, Scratch, Setting};
use super::shard::{self, Shard};
use super::weights::{Dense, Matrices, Weights};
use crate::trial::{self, Difference};
use crate::{Bert, Configuration, Layout, ModelError, PackedBatch, Parameters};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// A BERT or an ELECTRA generator without its decoder, ready to be asked for the hidden states at masked rows.
#[derive(Debug)]
pub struct Inference {
    configuration: Configuration,
    layout: Layout,
    /// The arena without the matrices, which are packed.
    arena: Vec<f32>,
    matrices: Matrices,
    first: Option<FirstLayer>,
    absorbed: Option<Absorbed>,
    /// Buffers of shards that are done, for others.
    spare: Mutex<Vec<Workspace>>,
}

/// How far hidden states may be from those of the plain composition, relative to the largest: far above rounding in float32,
/// far below any mistake.
const TOLERANCE: f32 = 1e-3;

/// Buffers for one shard at a time.
#[derive(Debug, Default)]
struct Workspace {
    embedded: Embedded,
    x: Vec<f32>,
    layer: Activations,
    /// Of the last layer, which has fewer rows.
    last: Activations,
    transformed: Transformed,
    scratch: Scratch,
    absorbed: absorbed::Scratch,
}

impl Inference {
    /// Takes the weights over, packed; `parameters` are not needed afterwards.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be read.
    pub fn new(configuration: &Configuration, parameters: &Parameters) -> Result<Self, ModelError> {
        let layout = Layout::of(configuration);
        let mut arena = layout.gather(parameters)?;
        let mut matrices = Matrices::default();
        matrices.pack(configuration, &layout, &arena, false);
        let weights = Weights { configuration, layout: &layout, arena: &arena, matrices: &matrices };
        let (first, absorbed) = (FirstLayer::new(&weights), Absorbed::new(&weights));
        arena.truncate(layout.matrices);
        arena.shrink_to_fit();
        if let (Some(_), Some(last)) = (&absorbed, matrices.layers.last_mut()) {
            last.key_value = Dense::default();
        }
        let configuration = configuration.clone();
        Ok(Self { configuration, layout, arena, matrices, first, absorbed, spare: Mutex::default() })
    }

    /// The same, and asks it and the plain composition for the same hidden states: on a machine whose vector instructions nobody
    /// has tried yet, wrong labels must not go unnoticed.
    ///
    /// # Errors
    /// [`ModelError::Instructions`] when they differ.
    pub fn checked(bert: &Bert) -> Result<Self, ModelError> {
        let network = Self::new(&bert.configuration, &bert.parameters)?;
        let hidden = |batch: &PackedBatch| Ok(network.map_shards(batch, |_, hidden| hidden.to_vec())?.concat());
        if let Some(Difference { apart, size, .. }) = trial::difference(bert, TOLERANCE, hidden)? {
            return Err(ModelError::Instructions { apart, size });
        }
        Ok(network)
    }

    /// Its shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether the first layer's queries, keys and values are looked up.
    pub(crate) fn looks_up(&self) -> bool {
        self.first.is_some()
    }

    /// Whether the last layer's queries absorb keys and values.
    pub(crate) fn absorbs(&self) -> bool {
        self.absorbed.is_some()
    }

    /// Computes the hidden states `[masked, embedding]` shard by shard, in parallel in the rayon pool that this is called in, and
    /// hands each shard's to `f` as soon as they are there, with the shard's part of the batch's masked rows. Returns what
    /// `f` made of them, in order. Times the decoder's weight, plus its bias, hidden states are logits.
    ///
    /// # Errors
    /// When the batch does not fit the model; see [`PackedBatch::validate`].
    pub fn map_shards<R: Send>(
        &self,
        batch: &PackedBatch,
        f: impl Fn(Range<usize>, &[f32]) -> R + Sync,
    ) -> Result<Vec<R>, ModelError> {
        batch.validate(&self.configuration)?;
        let positions = batch.positions();
        let shards = shard::cut(batch);
        let results = shards.par_iter().with_max_len(1).map(|shard| {
            let mut workspace = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            self.forward(batch, &positions, shard, &mut workspace);
            let result = f(shard.masked.clone(), &workspace.transformed.hidden);
            self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
            result
        });
        Ok(results.collect())
    }

    fn forward(&self, batch: &PackedBatch, positions: &[u32], shard: &Shard, workspace: &mut Workspace) {
        let configuration = &self.configuration;
        let weights = Weights { configuration, layout: &self.layout, arena: &self.arena, matrices: &self.matrices };
        let Workspace { embedded, x, layer: made, last: made_last, transformed, scratch, absorbed } = workspace;
        let tokens = Tokens::of(batch, positions, shard);
        // The tables of the first layer are those of type 0.
        let first = self.first.as_ref().filter(|_| !batch.is_typed());
        embedded.forward(&weights.embedding(), configuration, tokens, shard, None, first.is_some());
        for number in 0..configuration.layers {
            let setting = Setting { number, weights: weights.layer(number), configuration, dropout: None };
            let last = number + 1 == configuration.layers;
            let masked = last.then(|| &batch.masked_rows[shard.masked.clone()]);
            let input: &[f32] = if number == 0 { embedded.output() } else { x };
            if let Some(first) = first.filter(|_| number == 0) {
                let (query, key_value) = made.projected(shard.tokens.len(), configuration.hidden_size);
                first.look_up((tokens.ids, tokens.positions), embedded.scales(), query, key_value);
                layer::forward_projected(&setting, Part { shard, masked }, input, false, made, scratch);
                std::mem::swap(x, &mut made.output);
            } else if let Some(maps) = self.absorbed.as_ref().filter(|_| last) {
                layer::forward_absorbed(&setting, (maps, absorbed), Part { shard, masked }, input, made_last, scratch);
            } else if last {
                layer::forward(&setting, Part { shard, masked }, input, false, made_last, scratch);
            } else {
                layer::forward(&setting, Part { shard, masked }, input, false, made, scratch);
                std::mem::swap(x, &mut made.output);
            }
        }
        transformed.forward(&weights.head(), configuration, &made_last.output, false);
    }
}
