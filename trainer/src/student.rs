//! The student: its parameters, and one micro-batch forward and backward into gradient buffers.

use crate::loss::{self, LossSums, Targets};
use crate::{TrainerError, slices};
use candle_core::{Device, Tensor, Var};
use model::{Bert, Configuration, Dropout, PackedBatch, Parameters};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Gradient entries whose squares are summed at a time; a constant, so that the norm does not depend on threads.
const PIECE: usize = 1 << 14;

/// A model in training: parameters are candle variables, and each has a buffer in which gradients add up over the
/// micro-batches of a step.
pub struct Student {
    bert: Bert,
    /// In the order of their names.
    parameters: Vec<Trained>,
    decoder_weight: usize,
    decoder_bias: usize,
}

struct Trained {
    name: String,
    variable: Var,
    /// As many numbers as the variable has.
    gradient: Vec<f32>,
}

/// One parameter as the optimiser sees it.
pub struct ParameterView<'a> {
    /// Hugging Face name.
    pub name: &'a str,
    /// Its value; [`Student::for_each_value`] gives its numbers for writing.
    pub value: &'a Tensor,
    /// The gradient accumulated so far, in the value's order.
    pub gradient: &'a [f32],
}

impl Student {
    /// Makes `parameters` trainable. Their numbers are copied.
    ///
    /// # Errors
    /// When they do not fit `configuration`.
    pub fn new(configuration: Configuration, parameters: &Parameters) -> Result<Self, TrainerError> {
        let mut trained = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, value) in parameters.iter() {
            let numbers = value.flatten_all()?.to_vec1::<f32>()?;
            let gradient = vec![0.0; numbers.len()];
            let variable = Var::from_vec(numbers, value.dims(), &Device::Cpu)?;
            tensors.insert(name.to_owned(), variable.as_tensor().clone());
            trained.push(Trained { name: name.to_owned(), variable, gradient });
        }
        let parameters = Parameters::from_map(tensors, &configuration)?;
        let (weight, bias) = parameters.decoder();
        let place = |tensor: &Tensor| {
            let found = trained.iter().position(|trained| trained.variable.id() == tensor.id());
            found.ok_or_else(|| TrainerError::Configuration("the student's decoder is not a parameter".to_owned()))
        };
        let (decoder_weight, decoder_bias) = (place(weight)?, place(bias)?);
        Ok(Self { bert: Bert { configuration, parameters }, parameters: trained, decoder_weight, decoder_bias })
    }

    /// The model, for inference, with the weights as they are now.
    #[must_use]
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    /// Its shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.bert.configuration
    }

    /// Forgets all gradients: the start of a step.
    pub fn clear_gradients(&mut self) {
        for trained in &mut self.parameters {
            trained.gradient.par_chunks_mut(PIECE).for_each(|piece| piece.fill(0.0));
        }
    }

    /// Forward and backward of one micro-batch: adds its gradients to the buffers. `lambda` is the weight of
    /// distillation; weights of positions are in `targets`.
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
        let hidden = self.bert.transform_masked(batch, dropout)?; // [masked, embedding]
        let (hidden_gradient, sums) = self.decoder_backward(&hidden, targets, lambda)?;
        // Its gradient with respect to `hidden` is `hidden_gradient`, so autograd takes over from there.
        let surrogate = (&hidden * &hidden_gradient)?.sum_all()?;
        let gradients = surrogate.backward()?;
        for trained in &mut self.parameters {
            if let Some(gradient) = gradients.get(trained.variable.as_tensor()) {
                slices::read(&gradient.contiguous()?, |gradient| loss::add_assign(&mut trained.gradient, gradient))?;
            }
        }
        Ok(sums)
    }

    /// The Euclidean norm of all gradients together.
    #[must_use]
    pub fn gradient_norm(&self) -> f64 {
        let squares = self.parameters.iter().map(|trained| sum_of_squares(&trained.gradient));
        squares.sum::<f64>().sqrt()
    }

    /// All parameters with their gradients, in the order of their names.
    pub fn parameters(&self) -> impl Iterator<Item = ParameterView<'_>> {
        self.parameters.iter().map(|trained| ParameterView {
            name: &trained.name,
            value: trained.variable.as_tensor(),
            gradient: &trained.gradient,
        })
    }

    /// Calls `update` with each parameter, in the order of their names, and its numbers for writing.
    ///
    /// # Errors
    /// What candle says of a tensor that cannot be written.
    pub fn for_each_value(
        &mut self,
        mut update: impl FnMut(ParameterView<'_>, &mut [f32]),
    ) -> Result<(), TrainerError> {
        for trained in &self.parameters {
            let value = trained.variable.as_tensor();
            let view = ParameterView { name: &trained.name, value, gradient: &trained.gradient };
            slices::write(value, |numbers| update(view, numbers))?;
        }
        Ok(())
    }

    /// Decoder and loss: adds the gradients of the decoder's weight (the word embedding, when tied) and bias, and
    /// returns that of `hidden`.
    fn decoder_backward(
        &mut self,
        hidden: &Tensor,
        targets: &Targets<'_>,
        lambda: f64,
    ) -> Result<(Tensor, LossSums), TrainerError> {
        let mut weight_gradient = std::mem::take(&mut self.parameters[self.decoder_weight].gradient);
        let mut bias_gradient = std::mem::take(&mut self.parameters[self.decoder_bias].gradient);
        let (weight, bias) = self.bert.decoder();
        let result =
            loss::linear_cross_entropy(hidden, weight, bias, targets, lambda, &mut weight_gradient, &mut bias_gradient);
        self.parameters[self.decoder_weight].gradient = weight_gradient;
        self.parameters[self.decoder_bias].gradient = bias_gradient;
        Ok(result?)
    }
}

fn sum_of_squares(numbers: &[f32]) -> f64 {
    let pieces: Vec<f64> =
        numbers.par_chunks(PIECE).map(|piece| piece.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect();
    pieces.iter().sum()
}
