//! A network in training on an accelerator: what [`crate::Training`], the loss and the optimiser are on the processor.
//!
//! Parameters, gradients and AdamW's moments are arenas in float32, as on the processor; in bfloat16 a second arena has the parameters as they are multiplied. What the forward
//! pass keeps, and gradients on their way, have the network's precision; sums over rows, LayerNorms, softmaxes, the loss and the gradients of parameters are float32 or
//! better. Sums have a fixed order, so the same batch gives the same gradients. Dropout's masks are those of the processor, bit for bit.
//!
//! Where several accelerators train one student ([`Rank`]), each has all parameters and gradients, and the moments of its own part of the arenas.

mod backward;
mod forward;
mod loss;
mod optimiser;
mod room;

pub use loss::{PositionOutcome, RowTargets};
pub use optimiser::AdamwFactors;

use super::batch::DeviceBatch;
use super::calls::{Calls, EIGHT, Norm, Places};
use super::{Address, Buffer, DeviceError, OnDevice, Precision, Rank, Ranks};
use crate::fused::dropout::{Mask, Site};
use crate::layout::NormVectors;
use crate::{Configuration, Dropout, Layout, ModelError, PackedBatch};
use room::Room;
use std::ops::Range;

impl Ranks {
    /// Makes each student's own part of the gradients the sum over all of them.
    ///
    /// # Errors
    /// When an accelerator fails.
    ///
    /// # Panics
    /// When they are not students of one shape, by rank.
    pub fn reduce_gradients(&self, students: &mut [&mut DeviceTraining]) -> Result<(), DeviceError> {
        let (part, gradients) = self.arenas(students, |student| &student.gradients);
        // SAFETY: each arena has room for a part of each rank.
        unsafe { self.exchange().reduce_scatter(&gradients, part) }
    }

    /// Gives all students the parameters that each has in its own part.
    ///
    /// # Errors
    /// When an accelerator fails.
    ///
    /// # Panics
    /// As [`Ranks::reduce_gradients`].
    pub fn share_parameters(&self, students: &mut [&mut DeviceTraining]) -> Result<(), DeviceError> {
        let (part, parameters) = self.arenas(students, |student| &student.parameters);
        // SAFETY: as above.
        unsafe { self.exchange().all_gather(&parameters, part)? };
        students.iter().try_for_each(|student| student.narrow_all())
    }

    /// Numbers of a part, and the places of the arenas.
    fn arenas(
        &self,
        students: &[&mut DeviceTraining],
        arena: impl Fn(&DeviceTraining) -> &Buffer<f32>,
    ) -> (usize, Vec<Address>) {
        let of = self.devices().len();
        let lengths: Vec<usize> = students.iter().map(|student| student.layout.length()).collect();
        let ranks = students.iter().enumerate().all(|(number, student)| student.rank == Rank { number, of });
        assert!(ranks && lengths == vec![lengths[0]; of], "a student for each rank, of one shape");
        let places = students.iter().map(|student| arena(student).at()).collect();
        (students[0].rank.part(lengths[0], EIGHT), places)
    }
}

/// A model's parameters with their gradients and moments on an accelerator, and the passes over them.
#[derive(Debug)]
pub struct DeviceTraining {
    calls: Calls,
    configuration: Configuration,
    layout: Layout,
    rank: Rank,
    /// `[ranks · part]`, of which the layout has the first.
    parameters: Buffer<f32>,
    gradients: Buffer<f32>,
    /// Of the own part.
    first: Buffer<f32>,
    second: Buffer<f32>,
    /// The parameters in bfloat16, unless they are multiplied as they are.
    narrow: Option<Buffer<u8>>,
    batch: DeviceBatch,
    dropout: Option<Dropout>,
    room: Room,
    /// Whether the batch is one that has a loss, so that [`DeviceTraining::backward`] has something to begin with.
    differentiated: bool,
}

impl DeviceTraining {
    /// A model whose arenas are 0, on the accelerator of `rank`.
    ///
    /// # Errors
    /// When the accelerator has no room, or its kernels cannot do this shape.
    pub fn new(on: &OnDevice, configuration: &Configuration, rank: Rank) -> Result<Self, ModelError> {
        let OnDevice { device, precision } = on;
        if !Precision::OF_TRAINING.contains(precision) {
            let reason = format!("a student is not trained in {}", precision.name());
            return Err(DeviceError::Unusable { device: device.name().to_owned(), reason }.into());
        }
        let calls = Calls { device: device.clone(), precision: *precision };
        calls.check(configuration, true)?;
        let layout = Layout::of(configuration);
        let length = rank.of * rank.part(layout.length(), EIGHT);
        let arena = || Buffer::new(device, length);
        let moments = || Buffer::new(device, rank.own(layout.length(), EIGHT).len());
        let narrow = match precision {
            Precision::F32 => None,
            Precision::Bf16 | Precision::F16 => Some(Buffer::new(device, length * precision.bytes())?),
        };
        let training = Self {
            parameters: arena()?,
            gradients: arena()?,
            first: moments()?,
            second: moments()?,
            rank,
            narrow,
            batch: DeviceBatch::new(device)?,
            dropout: None,
            room: Room::new(device, configuration)?,
            differentiated: false,
            configuration: configuration.clone(),
            layout,
            calls,
        };
        for arena in [&training.parameters, &training.gradients, &training.first, &training.second] {
            training.calls.clear(arena.at(), 4 * arena.len())?;
        }
        Ok(training)
    }

    /// Its shape.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Where parameters lie in its arenas.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Takes the parameters over.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Panics
    /// When `arena` is not one of the layout.
    pub fn set_parameters(&mut self, arena: &[f32]) -> Result<(), DeviceError> {
        assert_eq!(arena.len(), self.layout.length(), "an arena of the layout");
        self.parameters.write(arena)?;
        self.narrow_all()
    }

    /// Takes its part of AdamW's running means over.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Panics
    /// When they are not arenas of the layout.
    pub fn set_moments(&mut self, first: &[f32], second: &[f32]) -> Result<(), DeviceError> {
        assert_eq!([first.len(), second.len()], [self.layout.length(); 2], "arenas of the layout");
        let own = self.own();
        self.first.write(&first[own.clone()])?;
        self.second.write(&second[own])
    }

    /// Copies the parameters into `arena`.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn read_parameters(&self, arena: &mut [f32]) -> Result<(), DeviceError> {
        self.parameters.read(arena)
    }

    /// Copies its part of AdamW's running means into arenas.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn read_moments(&self, first: &mut [f32], second: &mut [f32]) -> Result<(), DeviceError> {
        let own = self.own();
        self.first.read(&mut first[own.clone()])?;
        self.second.read(&mut second[own])
    }

    /// Copies the gradients that have added up so far into `arena`.
    ///
    /// # Errors
    /// When the accelerator fails.
    pub fn read_gradients(&self, arena: &mut [f32]) -> Result<(), DeviceError> {
        self.gradients.read(arena)
    }

    /// The part of the arenas that it updates.
    fn own(&self) -> Range<usize> {
        self.rank.own(self.layout.length(), EIGHT)
    }

    /// Makes room for a batch with at most `entries` of the teacher's tokens in all, and copies it over. No other call asks for more, so that none fails half-way
    /// for want of room.
    fn take(&mut self, batch: &PackedBatch, entries: usize) -> Result<(), ModelError> {
        batch.validate(&self.configuration)?;
        self.room.grow(batch, &self.configuration, self.calls.precision, entries)?;
        self.batch.take(batch)?;
        self.differentiated = false;
        Ok(())
    }

    fn places(&self) -> Places {
        let numbers = self.narrow.as_ref().map_or(self.parameters.at(), Buffer::at);
        Places { numbers, vectors: self.parameters.at(), precision: self.calls.precision }
    }

    /// The place of a parameter's gradient.
    fn gradient(&self, place: usize) -> u64 {
        self.gradients.at() + 4 * place as u64
    }

    fn norm(&self, first: usize, vectors: &NormVectors) -> Norm {
        let vector = |place: usize| self.places().vector(first + place);
        let (weight, bias) = (vector(vectors.weight.start), vector(vectors.bias.start));
        Norm { weight, bias, epsilon: self.configuration.layer_norm_eps }
    }

    fn hidden_mask(&self, site: Site) -> Option<Mask> {
        Mask::new(self.dropout, site, self.configuration.hidden_dropout)
    }

    fn probabilities_mask(&self, layer: usize) -> Option<Mask> {
        Mask::new(self.dropout, Site::Probabilities(layer), self.configuration.attention_dropout)
    }

    /// Whether layer `number` is asked for the masked rows alone.
    fn is_last(&self, number: usize) -> bool {
        number + 1 == self.configuration.layers
    }

    /// Rounds all parameters to what is multiplied.
    fn narrow_all(&self) -> Result<(), DeviceError> {
        let Some(narrow) = &self.narrow else { return Ok(()) };
        let length = self.layout.length();
        let arguments = [
            super::calls::at(self.parameters.at()),
            super::Argument::U64(length as u64),
            super::calls::at(narrow.at()),
        ];
        self.calls.elements("narrow", length, &arguments)
    }

    /// Parts of the own part that decay, and those that do not, in order; each begins and ends at a multiple of eight.
    fn stretches(&self) -> Vec<(Range<usize>, bool)> {
        let own = self.own();
        let of_own = |range: Range<usize>| range.start.max(own.start)..range.end.min(own.end);
        let all = self.all_stretches().into_iter().map(|(range, decays)| (of_own(range), decays));
        all.filter(|(range, _)| !range.is_empty()).collect()
    }

    fn all_stretches(&self) -> Vec<(Range<usize>, bool)> {
        let mut stretches: Vec<(Range<usize>, bool)> = Vec::new();
        for slot in self.layout.slots() {
            match stretches.last_mut() {
                Some((range, decays)) if *decays == slot.decays() => range.end = slot.range.end,
                Some((range, _)) => {
                    range.end = slot.range.start;
                    stretches.push((slot.range.clone(), slot.decays()));
                }
                None => stretches.push((0..slot.range.end, slot.decays())),
            }
        }
        if let Some((range, _)) = stretches.last_mut() {
            range.end = self.layout.length();
        }
        debug_assert!(stretches.iter().all(|(range, _)| range.start % EIGHT == 0 && range.end % EIGHT == 0));
        stretches
    }
}
