//! A batch on an accelerator.

use super::{Accelerator, Address, Buffer, DeviceError};
use crate::PackedBatch;
use std::sync::Arc;

/// A batch's lists, in buffers that grow to those of the largest so far.
#[derive(Debug)]
pub(super) struct DeviceBatch {
    pub(super) ids: Buffer<u32>,
    pub(super) positions: Buffer<u32>,
    types: Buffer<u8>,
    pub(super) masked: Buffer<u32>,
    /// Of tokens and of masked rows, by sequence.
    pub(super) starts: Buffer<u32>,
    pub(super) row_starts: Buffer<u32>,
    typed: bool,
    pub(super) tokens: usize,
    pub(super) rows: usize,
    pub(super) sequences: usize,
    /// Tokens of the longest sequence, and the most masked rows of one.
    pub(super) longest: usize,
    pub(super) most_masked: usize,
}

impl DeviceBatch {
    pub(super) fn new(device: &Arc<dyn Accelerator>) -> Result<Self, DeviceError> {
        let places = || Buffer::new(device, 0);
        Ok(Self {
            ids: places()?,
            positions: places()?,
            types: Buffer::new(device, 0)?,
            masked: places()?,
            starts: places()?,
            row_starts: places()?,
            typed: false,
            tokens: 0,
            rows: 0,
            sequences: 0,
            longest: 0,
            most_masked: 0,
        })
    }

    /// Copies a valid batch over.
    pub(super) fn take(&mut self, batch: &PackedBatch) -> Result<(), DeviceError> {
        let (mut starts, mut row_starts, mut end) = (vec![0], vec![0], 0);
        for length in &batch.lengths {
            end += *length as u32;
            starts.push(end);
            row_starts.push(batch.masked_rows.partition_point(|row| *row < end) as u32);
        }
        (self.tokens, self.rows, self.sequences) = (batch.tokens(), batch.masked_rows.len(), batch.lengths.len());
        self.longest = batch.lengths.iter().copied().max().unwrap_or_default();
        self.most_masked = row_starts.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or_default();
        self.typed = batch.is_typed();
        self.ids.fill(&batch.token_ids)?;
        self.positions.fill(&batch.positions())?;
        self.types.fill(&batch.token_types)?;
        self.masked.fill(&batch.masked_rows)?;
        self.starts.fill(&starts)?;
        self.row_starts.fill(&row_starts)
    }

    /// Its tokens' types; 0: all have type 0.
    pub(super) fn types(&self) -> Address {
        if self.typed { self.types.at() } else { 0 }
    }

    /// All tokens, or the masked rows.
    pub(super) fn rows_of(&self, masked: bool) -> usize {
        if masked { self.rows } else { self.tokens }
    }

    /// The numbers of the rows that are asked for; 0: their own.
    pub(super) fn numbers_of(&self, masked: bool) -> Address {
        if masked { self.masked.at() } else { 0 }
    }
}
