//! What a network computes, held against the plain composition: wrong labels must not go unnoticed on a machine that nobody has tried yet.

use crate::random::Philox;
use crate::{Bert, Configuration, ModelError, PackedBatch};

/// Hidden states that are not those of the plain composition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Difference {
    /// The largest difference.
    pub(crate) apart: f32,
    /// The largest value.
    pub(crate) size: f32,
    /// Whether all of the network's are finite.
    pub(crate) finite: bool,
}

/// A few sequences of odd lengths.
fn batch(configuration: &Configuration) -> PackedBatch {
    let stream = Philox::new(0, "trial", &[]);
    let lengths: Vec<usize> =
        [200, 21, 5, 1].into_iter().map(|length: usize| length.min(configuration.max_position_embeddings)).collect();
    let tokens = lengths.iter().sum::<usize>() as u64;
    let id = |token| stream.below(configuration.vocabulary_size as u64, token, 0) as u32;
    PackedBatch {
        token_ids: (0..tokens).map(id).collect(),
        lengths,
        masked_rows: (0..tokens as u32).filter(|row| row % 3 == 0).collect(),
        ..PackedBatch::default()
    }
}

/// Asks `hidden` and the plain composition for the same hidden states `[masked, embedding]`. `None`: they are no further apart than `tolerance` times the largest.
pub(crate) fn difference(
    bert: &Bert,
    tolerance: f32,
    hidden: impl FnOnce(&PackedBatch) -> Result<Vec<f32>, ModelError>,
) -> Result<Option<Difference>, ModelError> {
    let batch = batch(&bert.configuration);
    let expected: Vec<f32> = bert.transform_masked(&batch, None)?.flatten_all()?.to_vec1()?;
    let found = hidden(&batch)?;
    let size = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let tolerance = tolerance * size.max(1.0);
    // Written so that a NaN of the network is found. One of the composition is the teacher's fault, and found when it labels.
    let agrees = |(found, expected): (&f32, &f32)| (found - expected).abs() <= tolerance;
    let sound = expected.iter().all(|value| value.is_finite());
    if !sound || (found.len() == expected.len() && found.iter().zip(&expected).all(agrees)) {
        return Ok(None);
    }
    let finite = found.iter().all(|value| value.is_finite());
    let apart = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs());
    Ok(Some(Difference { apart: apart.fold(0.0, f32::max), size, finite }))
}
