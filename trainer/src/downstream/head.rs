//! The heads that transformers puts on an encoder, forward and backward, for hidden states `[rows, hidden]` of the last layer.
//!
//! ```text
//! tokens                      logits = dropout(x)·W + b                                  BertForTokenClassification, ElectraForTokenClassification
//! texts, BERT                 logits = dropout(tanh(x·Wp + bp))·W + b                    BertForSequenceClassification, x at [CLS]
//! texts, ELECTRA              logits = dropout(gelu(dropout(x)·Wd + bd))·W + b           ElectraForSequenceClassification, x at [CLS]
//! spans                       start, end = x·W + b                                       BertForQuestionAnswering, ElectraForQuestionAnswering
//! ```
//!
//! A head is small beside the encoder, and is computed on one thread.

use model::fused::activation;
use model::fused::dropout::{Mask, Site};
use model::product::{Matrix, Packed, Start, multiply};
use model::random::Philox;
use model::{Activation, Architecture, Configuration, Dropout, Encoder, ModelError, Slot};
use std::ops::Range;

/// What a head says of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// One of so many classes for each of a sequence's rows.
    Tokens(usize),
    /// One of so many classes for a sequence, from its first token.
    Texts(usize),
    /// For each row, whether the answer starts there, and whether it ends there.
    Spans,
}

/// A head's shape and place of parameters, in an arena of their own.
#[derive(Clone, Debug)]
pub struct Head {
    kind: HeadKind,
    slots: Vec<Slot>,
    length: usize,
    dense: Option<Dense>,
    output: Dense,
    /// Dropout before the first map, if there are two.
    drops_input: bool,
    dropout: f64,
}

#[derive(Clone, Debug)]
struct Dense {
    weight: Range<usize>,
    bias: Range<usize>,
    inputs: usize,
    outputs: usize,
    kind: Squash,
}

/// What follows a dense map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Squash {
    None,
    Tanh,
    Gelu,
}

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Debug, Default)]
pub struct HeadPass {
    /// `[rows, hidden]`: the first map's input.
    input: Vec<f32>,
    /// `[rows, hidden]`: of the function between the maps, if there are two.
    derivative: Vec<f32>,
    /// `[rows, hidden]`: the last map's input.
    last_input: Vec<f32>,
    /// `[rows, outputs]`.
    pub logits: Vec<f32>,
}

impl Head {
    /// The head of this kind for an encoder of this shape. Its rate of dropout is `classifier_dropout`, where that is absent
    /// `hidden_dropout`; spans have none.
    #[must_use]
    pub fn new(kind: HeadKind, configuration: &Configuration) -> Self {
        let hidden = configuration.hidden_size;
        let electra = configuration.architecture == Architecture::ElectraGenerator;
        let mut head = Self {
            kind,
            slots: Vec::new(),
            length: 0,
            dense: None,
            output: Dense { weight: 0..0, bias: 0..0, inputs: hidden, outputs: 0, kind: Squash::None },
            drops_input: false,
            dropout: match kind {
                HeadKind::Spans => 0.0,
                HeadKind::Tokens(_) | HeadKind::Texts(_) => {
                    configuration.classifier_dropout.unwrap_or(configuration.hidden_dropout)
                }
            },
        };
        let (name, outputs) = match (kind, electra) {
            (HeadKind::Tokens(classes), _) => ("classifier", classes),
            (HeadKind::Texts(classes), false) => {
                head.dense = Some(head.map("bert.pooler.dense", hidden, hidden, Squash::Tanh));
                ("classifier", classes)
            }
            (HeadKind::Texts(classes), true) => {
                head.dense = Some(head.map("classifier.dense", hidden, hidden, Squash::Gelu));
                head.drops_input = true;
                ("classifier.out_proj", classes)
            }
            (HeadKind::Spans, _) => ("qa_outputs", 2),
        };
        head.output = head.map(name, outputs, hidden, Squash::None);
        head
    }

    /// What it says of its rows.
    #[must_use]
    pub fn kind(&self) -> HeadKind {
        self.kind
    }

    /// Columns of the logits.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.output.outputs
    }

    /// Its parameters, under transformers' names, and their places in an arena of [`Head::length`] numbers.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Numbers in its arena.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Fresh parameters: weights normal with `initializer_range` as standard deviation, biases 0; a function of seed and
    /// name alone. BERT's pooler is the encoder's where it has one.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be read.
    pub fn initialise(&self, encoder: &Encoder, seed: u64) -> Result<Vec<f32>, ModelError> {
        let mut arena = vec![0.0; self.length];
        let scale = encoder.configuration.initializer_range;
        for slot in self.slots.iter().filter(|slot| slot.shape.len() > 1) {
            let stream = Philox::new(seed, "initialise head", &[slot.name.as_bytes()]);
            for (value, index) in arena[slot.range.clone()].iter_mut().zip(0..) {
                *value = (stream.normal(index, 0) * scale) as f32;
            }
        }
        if let (Some(dense), Some((weight, bias))) = (&self.dense, &encoder.pooler) {
            arena[dense.weight.clone()].copy_from_slice(&weight.flatten_all()?.to_vec1::<f32>()?);
            arena[dense.bias.clone()].copy_from_slice(&bias.to_vec1::<f32>()?);
        }
        Ok(arena)
    }

    /// Logits `[rows, outputs]` for `x` `[rows, hidden]`. `rows` are the rows' numbers for dropout.
    pub fn forward(&self, arena: &[f32], x: &[f32], rows: &[u32], dropout: Option<Dropout>, pass: &mut HeadPass) {
        let HeadPass { input, derivative, last_input, logits } = pass;
        match &self.dense {
            None => copy(x, last_input),
            Some(dense) => {
                copy(x, input);
                if self.drops_input {
                    self.drop(0, input, rows, dropout);
                }
                dense.forward(arena, input, derivative);
                dense.kind.forward(derivative, last_input);
            }
        }
        self.drop(1, last_input, rows, dropout);
        self.output.forward(arena, last_input, logits);
    }

    /// From the gradient of the logits `[rows, outputs]` of a pass to that of `x`; adds those of the parameters to `gradients`.
    #[must_use]
    pub fn backward(
        &self,
        arena: &[f32],
        of_logits: &[f32],
        rows: &[u32],
        dropout: Option<Dropout>,
        pass: &HeadPass,
        gradients: &mut [f32],
    ) -> Vec<f32> {
        let mut flow = self.output.backward(arena, of_logits, &pass.last_input, gradients);
        self.drop(1, &mut flow, rows, dropout);
        if let Some(dense) = &self.dense {
            flow.iter_mut().zip(&pass.derivative).for_each(|(gradient, derivative)| *gradient *= derivative);
            flow = dense.backward(arena, &flow, &pass.input, gradients);
            if self.drops_input {
                self.drop(0, &mut flow, rows, dropout);
            }
        }
        flow
    }

    fn map(&mut self, name: &str, outputs: usize, inputs: usize, kind: Squash) -> Dense {
        let mut add = |name: String, shape: Vec<usize>| {
            let range = self.length..self.length + shape.iter().product::<usize>();
            self.length = range.end;
            self.slots.push(Slot { name, shape, range: range.clone() });
            range
        };
        let weight = add(format!("{name}.weight"), vec![outputs, inputs]);
        let bias = add(format!("{name}.bias"), vec![outputs]);
        Dense { weight, bias, inputs, outputs, kind }
    }

    fn drop(&self, map: usize, values: &mut [f32], rows: &[u32], dropout: Option<Dropout>) {
        if let Some(mask) = Mask::new(dropout, Site::Task(map), self.dropout) {
            let columns = self.output.inputs;
            values.chunks_exact_mut(columns).zip(rows).for_each(|(values, row)| mask.apply(values, *row, 0));
        }
    }
}

impl Dense {
    fn matrix<'a>(&self, arena: &'a [f32]) -> Matrix<'a> {
        Matrix::new(&arena[self.weight.clone()], self.outputs, self.inputs)
    }

    fn forward(&self, arena: &[f32], x: &[f32], out: &mut Vec<f32>) {
        let rows = x.len() / self.inputs;
        out.clear();
        out.resize(rows * self.outputs, 0.0);
        let weight = Packed::new(self.matrix(arena).transposed());
        let bias = Start::Bias(&arena[self.bias.clone()]);
        multiply(Matrix::new(x, rows, self.inputs), weight.right(), bias, out, self.outputs);
    }

    fn backward(&self, arena: &[f32], of_out: &[f32], x: &[f32], gradients: &mut [f32]) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        let of_out_matrix = Matrix::new(of_out, rows, self.outputs);
        let input = Packed::new(Matrix::new(x, rows, self.inputs));
        let of_weight = &mut gradients[self.weight.clone()];
        multiply(of_out_matrix.transposed(), input.right(), Start::Out, of_weight, self.inputs);
        activation::add_column_sums(of_out, &mut gradients[self.bias.clone()]);
        let mut of_x = vec![0.0; x.len()];
        multiply(of_out_matrix, Packed::new(self.matrix(arena)).right(), Start::Zero, &mut of_x, self.inputs);
        of_x
    }
}

impl Squash {
    /// `out` from `values`, which become the derivative.
    fn forward(self, values: &mut [f32], out: &mut Vec<f32>) {
        copy(values, out);
        match self {
            Self::None => values.fill(1.0),
            Self::Tanh => {
                for (value, out) in values.iter_mut().zip(out) {
                    *out = libm::tanhf(*value);
                    *value = 1.0 - *out * *out;
                }
            }
            Self::Gelu => activation::forward_saving(Activation::Gelu, values, out),
        }
    }
}

fn copy(from: &[f32], to: &mut Vec<f32>) {
    to.clear();
    to.extend_from_slice(from);
}
