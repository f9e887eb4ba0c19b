//! The student: parameters and gradients in arenas, and one micro-batch forward and backward.

use crate::TrainerError;
use crate::evaluate::Predictor;
use crate::loss::{self, Decoder, DecoderGradients, LossSums, PositionLoss, Score, Targets};
use crate::optimiser::{self, AdamW, Update};
use model::{Bert, Configuration, Dropout, Layout, PackedBatch, Parameters, Training};

/// A model in training. Gradients add up over the micro-batches of a step, until an update uses them up.
pub struct Student {
    network: Training,
    /// An arena, as are the gradients.
    parameters: Vec<f32>,
    /// Empty until a batch is trained on.
    gradients: Vec<f32>,
    /// Whether the parameters changed since the network packed its matrices.
    changed: bool,
    /// `[masked, embedding]`.
    of_hidden: Vec<f32>,
    loss: loss::Scratch,
}

/// One parameter with its gradient.
pub struct ParameterView<'a> {
    /// Hugging Face name.
    pub name: &'a str,
    /// Its numbers.
    pub values: &'a [f32],
    /// The gradient accumulated so far, in the same order.
    pub gradient: &'a [f32],
}

impl Student {
    /// Makes `parameters` trainable. Their numbers are copied.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn new(configuration: &Configuration, parameters: &Parameters) -> Result<Self, TrainerError> {
        let network = Training::new(configuration);
        let parameters = network.layout().gather(parameters)?;
        Ok(Self {
            network,
            parameters,
            gradients: Vec::new(),
            changed: true,
            of_hidden: Vec::new(),
            loss: loss::Scratch::default(),
        })
    }

    /// Its shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        self.network.configuration()
    }

    /// Where parameters lie in an arena.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.network.layout()
    }

    /// The arena of the parameters.
    #[must_use]
    pub fn arena(&self) -> &[f32] {
        &self.parameters
    }

    /// Overwrites the parameters; gradients stay.
    pub(crate) fn rewrite<E>(&mut self, write: impl FnOnce(&mut [f32]) -> Result<(), E>) -> Result<(), E> {
        self.changed = true;
        write(&mut self.parameters)
    }

    /// The model as it is now; its numbers are copied.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be made.
    pub fn to_bert(&self) -> Result<Bert, TrainerError> {
        let configuration = self.configuration().clone();
        let parameters = self.layout().scatter(&self.parameters, &configuration)?;
        Ok(Bert { configuration, parameters })
    }

    /// All parameters with their gradients. There are none before a batch was trained on.
    pub fn parameters(&self) -> impl Iterator<Item = ParameterView<'_>> {
        self.layout().slots().iter().map(|slot| ParameterView {
            name: &slot.name,
            values: &self.parameters[slot.range.clone()],
            gradient: self.gradients.get(slot.range.clone()).unwrap_or_default(),
        })
    }

    /// The arena of the gradients accumulated so far; empty before a batch was trained on.
    #[must_use]
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// Forgets all gradients.
    pub fn clear_gradients(&mut self) {
        optimiser::clear(&mut self.gradients);
    }

    /// Forward and backward of one micro-batch: adds its gradients. `lambda` is the weight of distillation; weights of positions are
    /// in `targets`.
    ///
    /// # Errors
    /// When the batch does not fit the model or the targets.
    pub fn accumulate(
        &mut self,
        batch: &PackedBatch,
        targets: &Targets<'_>,
        lambda: f64,
        dropout: Option<Dropout>,
    ) -> Result<LossSums, TrainerError> {
        if batch.masked_rows.is_empty() {
            return Ok(LossSums::default());
        }
        self.prepare();
        self.gradients.resize(self.parameters.len(), 0.0);
        self.network.forward(&self.parameters, batch, dropout)?;
        let hidden = self.network.hidden(); // [masked, embedding]
        self.of_hidden.resize(hidden.len(), 0.0);
        let gradients = decoder_gradients(self.network.layout(), &mut self.gradients);
        let decoder = decoder(&self.network, &self.parameters);
        let (of_hidden, scratch) = (&mut self.of_hidden[..], &mut self.loss);
        let sums = loss::linear_cross_entropy(decoder, hidden, targets, lambda, gradients, of_hidden, scratch)?;
        self.network.backward(&self.parameters, &self.of_hidden, &mut self.gradients);
        Ok(sums)
    }

    /// How the student predicts `gold_ids` `[masked]` at the batch's masked rows, without dropout.
    ///
    /// # Errors
    /// When the batch does not fit the model or the gold ids.
    pub fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError> {
        self.prepare();
        self.network.forward(&self.parameters, batch, None)?;
        loss::score(decoder(&self.network, &self.parameters), self.network.hidden(), gold_ids, &mut self.loss)
    }

    /// The masked positions of the batch that was accumulated last, one by one. `targets` are those that it had.
    ///
    /// # Errors
    /// When they do not fit that batch.
    pub fn explain(&mut self, targets: &Targets<'_>) -> Result<Vec<PositionLoss>, TrainerError> {
        loss::explain(decoder(&self.network, &self.parameters), self.network.hidden(), targets, &mut self.loss)
    }

    /// The Euclidean norm of all gradients together.
    #[must_use]
    pub fn gradient_norm(&self) -> f64 {
        optimiser::sum_of_squares(&self.gradients).sqrt()
    }

    /// Moves the parameters along their gradients, which are 0 afterwards.
    pub fn update(&mut self, optimiser: &mut AdamW, update: &Update) {
        self.gradients.resize(self.parameters.len(), 0.0);
        optimiser.update(&mut self.parameters, &mut self.gradients, self.network.layout().slots(), update);
        self.changed = true;
    }

    fn prepare(&mut self) {
        if self.changed {
            self.network.pack(&self.parameters);
            self.changed = false;
        }
    }
}

impl Predictor for Student {
    fn score(&mut self, batch: &PackedBatch, gold_ids: &[u32]) -> Result<Vec<Score>, TrainerError> {
        self.score(batch, gold_ids)
    }
}

fn decoder<'a>(network: &Training, arena: &'a [f32]) -> Decoder<'a> {
    let (weight, bias) = network.layout().decoder();
    Decoder { weight: &arena[weight], bias: &arena[bias], embedding_size: network.configuration().embedding_size }
}

fn decoder_gradients<'a>(layout: &Layout, gradients: &'a mut [f32]) -> DecoderGradients<'a> {
    let (weight, bias) = layout.decoder();
    match gradients.get_disjoint_mut([weight, bias]) {
        Ok([weight, bias]) => DecoderGradients { weight, bias },
        Err(error) => panic!("a layout's parameters overlap: {error}"),
    }
}
