//! Numbers as bytes: little-endian fields, varints, tables of varints and byte planes.
//!
//! Reading never panics and allocates no more than a small multiple of the bytes at hand.

use crate::log::error::Damage;
use std::collections::HashMap;

/// Reads fields one after another.
pub(crate) struct Wire<'a> {
    bytes: &'a [u8],
}

impl<'a> Wire<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(|| Damage::new("a field ends too early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(|| Damage::new("a field ends too early"))?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Damage> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Damage> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_le_bytes)
    }

    /// LEB128, at most ten bytes.
    pub(crate) fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0_u64;
        for (index, byte) in self.bytes.iter().enumerate().take(10) {
            let part = u64::from(byte & 0x7f);
            let shift = 7 * index as u32;
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[index + 1..];
                return Ok(value);
            }
        }
        Err(Damage::new("a varint that does not end"))
    }

    pub(crate) fn varint_u32(&mut self) -> Result<u32, Damage> {
        u32::try_from(self.varint()?).map_err(|_| Damage::new("a number above 32 bits"))
    }

    /// `count` varints of 32 bits.
    pub(crate) fn varints_u32(&mut self, count: usize) -> Result<Vec<u32>, Damage> {
        self.bound(count)?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            // Most have one byte or two.
            let value = match *self.bytes {
                [low @ ..0x80, ..] => {
                    self.bytes = &self.bytes[1..];
                    u32::from(low)
                }
                [low, high @ ..0x80, ..] => {
                    self.bytes = &self.bytes[2..];
                    u32::from(low & 0x7f) | u32::from(high) << 7
                }
                _ => self.varint_u32()?,
            };
            values.push(value);
        }
        Ok(values)
    }

    /// Refuses a count of things of at least one byte each that cannot all be there.
    pub(crate) fn bound(&self, count: usize) -> Result<(), Damage> {
        if count > self.bytes.len() {
            return Err(Damage::new(format!("{count} values in {} bytes", self.bytes.len())));
        }
        Ok(())
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Damage> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(Damage::new(format!("{left} bytes too many"))),
        }
    }
}

/// Appends `value` as LEB128.
pub(crate) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A difference of two numbers, modulo 2^64, so that small ones of either sign are small.
fn zigzag(value: u64, previous: u64) -> u64 {
    let difference = value.wrapping_sub(previous).cast_signed();
    (difference << 1 ^ difference >> 63).cast_unsigned()
}

fn unzigzag(code: u64, previous: u64) -> u64 {
    previous.wrapping_add(code >> 1 ^ (code & 1).wrapping_neg())
}

/// Appends a table column after column. Column 0, the key, is plain; a cell of another column is the
/// difference to the same column in the previous row with the same key (to 0 if there is none).
pub(crate) fn put_rows<const WIDTH: usize>(rows: &[[u64; WIDTH]], out: &mut Vec<u8>) {
    let mut previous = Predecessors::default();
    let previous: Vec<_> = rows.iter().enumerate().map(|(row, cells)| previous.of(row, cells[0])).collect();
    for cells in rows {
        put_varint(cells[0], out);
    }
    for column in 1..WIDTH {
        for (cells, previous) in rows.iter().zip(&previous) {
            let base = previous.map_or(0, |row| rows[row][column]);
            put_varint(zigzag(cells[column], base), out);
        }
    }
}

/// Reads what [`put_rows`] wrote.
pub(crate) fn take_rows<const WIDTH: usize>(wire: &mut Wire<'_>, count: usize) -> Result<Vec<[u64; WIDTH]>, Damage> {
    wire.bound(count.saturating_mul(WIDTH))?;
    let mut rows = vec![[0; WIDTH]; count];
    let mut predecessors = Predecessors::default();
    let mut previous = Vec::with_capacity(count);
    for (row, cells) in rows.iter_mut().enumerate() {
        cells[0] = wire.varint()?;
        previous.push(predecessors.of(row, cells[0]));
    }
    for column in 1..WIDTH {
        let mut values = Vec::with_capacity(count);
        for (cells, previous) in rows.iter_mut().zip(&previous) {
            let base = previous.map_or(0, |row| values[row]);
            values.push(unzigzag(wire.varint()?, base));
            cells[column] = values[values.len() - 1];
        }
    }
    Ok(rows)
}

/// Finds the previous row with the same key.
#[derive(Default)]
struct Predecessors(HashMap<u64, usize>);

impl Predecessors {
    fn of(&mut self, row: usize, key: u64) -> Option<usize> {
        self.0.insert(key, row)
    }
}

/// Appends 32-bit words as four planes, the most significant bytes first: equal exponents come to lie
/// side by side, where a compressor finds them.
pub(crate) fn put_planes(words: &[u32], out: &mut Vec<u8>) {
    out.reserve(words.len() * 4);
    for shift in [24, 16, 8, 0] {
        out.extend(words.iter().map(|word| (word >> shift) as u8));
    }
}

/// Reads what [`put_planes`] wrote.
pub(crate) fn take_planes(bytes: &[u8]) -> Result<Vec<u32>, Damage> {
    if !bytes.len().is_multiple_of(4) {
        return Err(Damage::new("byte planes of unequal length"));
    }
    let (plane, low) = bytes.split_at(bytes.len() / 2);
    let (a, b) = plane.split_at(bytes.len() / 4);
    let (c, d) = low.split_at(bytes.len() / 4);
    Ok((0..a.len()).map(|at| u32::from_be_bytes([a[at], b[at], c[at], d[at]])).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tables_and_planes_come_back(rows: Vec<[u64; 3]>, words: Vec<u32>) {
            let mut out = Vec::new();
            put_rows(&rows, &mut out);
            let mut wire = Wire::new(&out);
            prop_assert_eq!(take_rows::<3>(&mut wire, rows.len()).unwrap(), rows);
            wire.finish().unwrap();

            let mut out = Vec::new();
            put_planes(&words, &mut out);
            prop_assert_eq!(take_planes(&out).unwrap(), words);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, count: usize) {
            let _ = take_rows::<8>(&mut Wire::new(&bytes), count);
            let _ = Wire::new(&bytes).varints_u32(count);
            let _ = take_planes(&bytes);
        }
    }

    #[test]
    fn varints_above_64_bits_are_refused() {
        assert!(Wire::new(&[0xff; 10]).varint().is_err());
        assert_eq!(Wire::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).varint().unwrap(), u64::MAX);
    }
}
