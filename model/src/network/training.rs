//! A network in training: a forward pass that keeps what the backward pass needs, and that backward pass.

use super::embedding::{Embedded, EmbeddedGradients, Tokens};
use super::head::{Transformed, TransformedGradients};
use super::layer::{self, Activations, Gradients, Part, Scratch, Setting, disjoint, sized};
use super::shard::{self, Shard};
use super::weights::{Matrices, Weights};
use crate::Dropout;
use crate::fused::embedding::scatter;
use crate::product::{Matrix, Packed, Start, multiply};
use crate::{Configuration, Layout, ModelError, PackedBatch};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a matrix whose gradient is one task.
const ROWS_PER_TASK: usize = 96;
/// From one row of a task's columns to the next: an odd number of cache lines, so that a column spreads over all sets of a cache.
const COLUMNS_NEAR: usize = ROWS_PER_TASK + 16;

/// The passes of a network whose parameters and gradients lie in arenas of its [`Layout`]. Its buffers are kept from batch to
/// batch. Everything runs in the rayon pool that it is called in.
#[derive(Debug)]
pub struct Training {
    configuration: Configuration,
    layout: Layout,
    matrices: Matrices,
    batch: PackedBatch,
    positions: Vec<u32>,
    dropout: Option<Dropout>,
    shards: Vec<Shard>,
    states: Vec<State>,
    /// `[masked, embedding]`, behind the head; `[masked, hidden]` without it.
    hidden: Vec<f32>,
    /// `[tokens, embedding]`: the gradient of the sum of the embeddings.
    of_embedding: Vec<f32>,
}

/// What is kept of a shard.
#[derive(Debug, Default)]
struct State {
    embedded: Embedded,
    layers: Vec<Activations>,
    transformed: Transformed,
    /// `[rows, hidden]`: the gradient on its way down.
    flow: Vec<f32>,
    of_transformed: TransformedGradients,
    of_layer: Gradients,
    of_embedded: EmbeddedGradients,
    scratch: Scratch,
}

impl Training {
    /// A network of this shape. [`Training::pack`] has to come before the first batch.
    #[must_use]
    pub fn new(configuration: &Configuration) -> Self {
        Self {
            configuration: configuration.clone(),
            layout: Layout::of(configuration),
            matrices: Matrices::default(),
            batch: PackedBatch::default(),
            positions: Vec::new(),
            dropout: None,
            shards: Vec::new(),
            states: Vec::new(),
            hidden: Vec::new(),
            of_embedding: Vec::new(),
        }
    }

    /// Where parameters lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Takes the matrices from an arena: needed whenever they changed.
    pub fn pack(&mut self, arena: &[f32]) {
        self.matrices.pack(&self.configuration, &self.layout, arena, true);
    }

    /// The hidden states at masked rows, `[masked, embedding]`: times the decoder's weight, plus its bias, the logits.
    ///
    /// # Errors
    /// When the batch does not fit the model; see [`PackedBatch::validate`].
    pub fn forward(
        &mut self,
        arena: &[f32],
        batch: &PackedBatch,
        dropout: Option<Dropout>,
    ) -> Result<&[f32], ModelError> {
        self.pass(arena, batch, dropout, true)
    }

    /// The last layer's output at masked rows, `[masked, hidden]`, without the head that predicts tokens: for heads of other tasks.
    ///
    /// # Errors
    /// When the batch does not fit the model; see [`PackedBatch::validate`].
    pub fn encode(
        &mut self,
        arena: &[f32],
        batch: &PackedBatch,
        dropout: Option<Dropout>,
    ) -> Result<&[f32], ModelError> {
        self.pass(arena, batch, dropout, false)
    }

    /// A forward pass, with the head or without it.
    fn pass(
        &mut self,
        arena: &[f32],
        batch: &PackedBatch,
        dropout: Option<Dropout>,
        head: bool,
    ) -> Result<&[f32], ModelError> {
        batch.validate(&self.configuration)?;
        self.batch.clone_from(batch);
        self.positions = batch.positions();
        self.dropout = dropout;
        self.shards = shard::cut(batch);
        if self.states.len() < self.shards.len() {
            self.states.resize_with(self.shards.len(), State::default);
        }
        let mut states = std::mem::take(&mut self.states);
        states.par_iter_mut().zip(&self.shards).with_max_len(1).for_each(|(state, shard)| {
            self.forward_shard(arena, shard, state);
            if head {
                let State { embedded, layers, transformed, .. } = state;
                let x = layers.last().map_or(embedded.output(), |layer| &layer.output);
                transformed.forward(&self.weights(arena).head(), &self.configuration, x, true);
            }
        });
        self.hidden.clear();
        for (state, _) in states.iter().zip(&self.shards) {
            let last = state.layers.last().map_or(state.embedded.output(), |layer| &layer.output);
            self.hidden.extend_from_slice(if head { &state.transformed.hidden } else { last });
        }
        self.states = states;
        Ok(&self.hidden)
    }

    /// The hidden states of the last batch.
    #[must_use]
    pub fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    /// Adds the gradients of all parameters but the decoder's to the arena `gradients`, from that of the last batch's hidden states,
    /// `of_hidden` `[masked, embedding]`. `arena` is what [`Training::forward`] was given.
    ///
    /// # Panics
    /// When `of_hidden` or an arena has another size.
    pub fn backward(&mut self, arena: &[f32], of_hidden: &[f32], gradients: &mut [f32]) {
        assert_eq!(of_hidden.len(), self.hidden.len(), "gradient of the hidden states");
        let mut states = std::mem::take(&mut self.states);
        let active = &mut states[..self.shards.len()];
        self.in_parallel(active, |this, shard, state| this.transformed_backward(arena, of_hidden, shard, state));
        let layout = &self.layout;
        add_vectors(gradients, &layout.head.vectors, active, |state| &state.of_transformed.vectors);
        let inputs = self.configuration.hidden_size;
        let transform: MatrixGradient<'_> = (&layout.transform, inputs, |state| state.of_transformed.transform.both());
        add_matrices(gradients, active, [transform]);
        self.backward_layers(arena, active, gradients);
        self.states = states;
    }

    /// The same after [`Training::encode`]: `of_hidden` is `[masked, hidden]`, and what belongs to the head gets no gradient.
    ///
    /// # Panics
    /// When `of_hidden` or an arena has another size.
    pub fn encode_backward(&mut self, arena: &[f32], of_hidden: &[f32], gradients: &mut [f32]) {
        assert_eq!(of_hidden.len(), self.hidden.len(), "gradient of the hidden states");
        let columns = self.configuration.hidden_size;
        let mut states = std::mem::take(&mut self.states);
        let active = &mut states[..self.shards.len()];
        self.in_parallel(active, |_, shard, state| {
            state.flow.clear();
            state.flow.extend_from_slice(&of_hidden[shard.masked.start * columns..shard.masked.end * columns]);
        });
        self.backward_layers(arena, active, gradients);
        self.states = states;
    }

    /// From the gradients of the last layer's outputs, in `flow`, to those of all parameters before the head.
    fn backward_layers(&mut self, arena: &[f32], active: &mut [State], gradients: &mut [f32]) {
        let (layout, configuration) = (&self.layout, &self.configuration);
        let (hidden, embedding) = (configuration.hidden_size, configuration.embedding_size);
        for number in (0..configuration.layers).rev() {
            self.in_parallel(active, |this, shard, state| this.layer_backward(arena, number, shard, state));
            let slots = &layout.layers[number];
            add_vectors(gradients, &slots.vectors, active, |state| &state.of_layer.vectors);
            let last = number + 1 == configuration.layers;
            let matrices: [MatrixGradient<'_>; 5] = [
                (&slots.query, hidden, |state| state.of_layer.query.both()),
                // Where all rows are asked for, keys and values come from the same input as queries.
                (&slots.key_value, hidden, if last { of_key_value_in_last } else { of_key_value }),
                (&slots.output, hidden, |state| state.of_layer.output.both()),
                (&slots.inner, hidden, |state| state.of_layer.inner.both()),
                (&slots.outer, configuration.intermediate_size, |state| state.of_layer.outer.both()),
            ];
            add_matrices(gradients, active, matrices);
        }
        self.in_parallel(active, |this, shard, state| this.embedded_backward(arena, shard, state));
        add_vectors(gradients, &layout.embedding.vectors, active, |state| &state.of_embedded.vectors);
        let typed = self.batch.is_typed();
        if !typed {
            add_vectors(gradients, &layout.token_type, active, |state| &state.of_embedded.token_type);
        }
        if let Some(projection) = &layout.projection {
            let projection: MatrixGradient<'_> = (projection, embedding, |state| state.of_embedded.projection.both());
            add_matrices(gradients, active, [projection]);
        }
        let of_embedding = &mut self.of_embedding;
        of_embedding.clear();
        active.iter().for_each(|state| of_embedding.extend_from_slice(&state.of_embedded.sum));
        scatter(&self.batch.token_ids, of_embedding, &mut gradients[layout.word.clone()]);
        scatter(&self.positions, of_embedding, &mut gradients[layout.position.clone()]);
        if typed {
            let types: Vec<u32> = self.batch.token_types.iter().map(|token_type| u32::from(*token_type)).collect();
            scatter(&types, of_embedding, &mut gradients[layout.token_types.clone()]);
        }
    }

    fn in_parallel(&self, states: &mut [State], f: impl Fn(&Self, &Shard, &mut State) + Sync) {
        states.par_iter_mut().zip(&self.shards).with_max_len(1).for_each(|(state, shard)| f(self, shard, state));
    }

    fn weights<'a>(&'a self, arena: &'a [f32]) -> Weights<'a> {
        Weights { configuration: &self.configuration, layout: &self.layout, arena, matrices: &self.matrices }
    }

    fn setting<'a>(&'a self, arena: &'a [f32], number: usize) -> Setting<'a> {
        let weights = self.weights(arena).layer(number);
        Setting { number, weights, configuration: &self.configuration, dropout: self.dropout }
    }

    /// A shard, and the rows that layer `number` is asked for.
    fn part<'a>(&'a self, number: usize, shard: &'a Shard) -> Part<'a> {
        let last = number + 1 == self.configuration.layers;
        Part { shard, masked: last.then(|| &self.batch.masked_rows[shard.masked.clone()]) }
    }

    fn forward_shard(&self, arena: &[f32], shard: &Shard, state: &mut State) {
        let (weights, configuration) = (self.weights(arena), &self.configuration);
        let tokens = Tokens::of(&self.batch, &self.positions, shard);
        state.embedded.forward(&weights.embedding(), configuration, tokens, shard, self.dropout, true);
        state.layers.resize_with(configuration.layers, Activations::default);
        for number in 0..configuration.layers {
            let (before, rest) = state.layers.split_at_mut(number);
            let x = before.last().map_or(state.embedded.output(), |layer| &layer.output);
            let setting = self.setting(arena, number);
            layer::forward(&setting, self.part(number, shard), x, true, &mut rest[0], &mut state.scratch);
        }
    }

    fn transformed_backward(&self, arena: &[f32], of_hidden: &[f32], shard: &Shard, state: &mut State) {
        let (columns, head) = (self.configuration.embedding_size, self.weights(arena).head());
        let of_hidden = &of_hidden[shard.masked.start * columns..shard.masked.end * columns];
        let State { embedded, layers, transformed, flow, of_transformed, .. } = state;
        let x = layers.last().map_or(embedded.output(), |layer| &layer.output);
        transformed.backward(&head, &self.configuration, x, of_hidden, flow, of_transformed);
    }

    fn layer_backward(&self, arena: &[f32], number: usize, shard: &Shard, state: &mut State) {
        let State { embedded, layers, flow, of_layer, scratch, .. } = state;
        let (before, rest) = layers.split_at(number);
        let x = before.last().map_or(embedded.output(), |layer| &layer.output);
        let (setting, part) = (self.setting(arena, number), self.part(number, shard));
        layer::backward(&setting, part, x, &rest[0], flow, of_layer, scratch);
    }

    fn embedded_backward(&self, arena: &[f32], shard: &Shard, state: &mut State) {
        let State { embedded, flow, of_embedded, .. } = state;
        let weights = self.weights(arena).embedding();
        let shard = (shard, self.batch.is_typed());
        embedded.backward(&weights, &self.configuration, shard, self.dropout, flow, of_embedded);
    }
}

/// Adds the shards' gradients of neighbouring vectors, in order.
fn add_vectors(gradients: &mut [f32], range: &Range<usize>, states: &[State], of: impl Fn(&State) -> &Vec<f32>) {
    let gradients = &mut gradients[range.clone()];
    for state in states {
        gradients.iter_mut().zip(of(state)).for_each(|(sum, gradient)| *sum += gradient);
    }
}

/// A matrix: its place, its columns (a dense map's inputs), and the two factors of its gradient, by shard.
type MatrixGradient<'a> = (&'a Range<usize>, usize, fn(&State) -> (&[f32], &Packed));

fn of_key_value(state: &State) -> (&[f32], &Packed) {
    (&state.of_layer.key_value.gradient, &state.of_layer.query.input)
}

fn of_key_value_in_last(state: &State) -> (&[f32], &Packed) {
    state.of_layer.key_value.both()
}

/// Adds the gradients of matrices: of the output, transposed, times the input, over all shards in order.
fn add_matrices<const N: usize>(gradients: &mut [f32], states: &[State], matrices: [MatrixGradient<'_>; N]) {
    let parts = disjoint(gradients, matrices.map(|(range, ..)| range));
    let tasks = parts.into_iter().zip(matrices).flat_map(|(part, (_, inputs, factors))| {
        let outputs = part.len() / inputs;
        let pieces = part.chunks_mut(ROWS_PER_TASK * inputs).enumerate();
        pieces.map(move |(task, piece)| (piece, task * ROWS_PER_TASK, outputs, inputs, factors))
    });
    let tasks: Vec<_> = tasks.collect();
    tasks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |near, (piece, first, outputs, inputs, factors)| {
        let count = piece.len() / inputs;
        for state in states {
            let (gradient, input) = factors(state);
            let gradient = columns_near(Matrix::new(gradient, input.depth(), outputs), first, count, near);
            multiply(gradient.transposed(), input.right(), Start::Out, piece, inputs);
        }
    });
}

/// `count` columns of `matrix` from `first` on, copied to where they lie close together: a column of a wide matrix falls into few sets of
/// the caches.
fn columns_near<'a>(matrix: Matrix<'_>, first: usize, count: usize, near: &'a mut Vec<f32>) -> Matrix<'a> {
    let values = sized(near, matrix.rows() * COLUMNS_NEAR);
    for (row, to) in values.chunks_exact_mut(COLUMNS_NEAR).enumerate() {
        to[..count].copy_from_slice(&matrix.row(row)[first..first + count]);
    }
    Matrix::strided(values, matrix.rows(), count, COLUMNS_NEAR)
}
