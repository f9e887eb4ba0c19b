//! Columns of the copies: tokens, masks and labels.
//!
//! Copies of one teacher lie side by side, because vocabularies differ. Compact precision is [`codec`]'s. With exact precision a gold token that is in the top-k is
//! stored as its rank, and its logit not at all. Logits fall from rank to rank, so the distance between the bit patterns of
//! neighbours is a small number, and exact.

use crate::log::codec::{self, Coded, Compaction, Streams, Tables};
use crate::log::column::{Column, ColumnBytes, Columns, MAX_COLUMN_BYTES};
use crate::log::error::Damage;
use crate::log::wire::{Wire, put_planes, put_varint, take_planes};
use crate::{ComputedIn, Label, MaskedCopy};

/// Numbers that say how long a copy's arrays are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) teacher: u16,
    pub(crate) tokens: usize,
    pub(crate) masked: usize,
    /// k; `None`: no label.
    pub(crate) top_k: Option<usize>,
    /// Of the label, if there is one; the copies table does not say it.
    pub(crate) computed_in: ComputedIn,
}

impl Shape {
    pub(crate) fn of(copy: &MaskedCopy) -> Self {
        Self {
            teacher: copy.teacher,
            tokens: copy.token_ids.len(),
            masked: copy.masked_positions.len(),
            top_k: copy.label.as_ref().map(|label| label.top_k),
            computed_in: copy.label.as_ref().map_or_else(ComputedIn::default, |label| label.computed_in),
        }
    }

    /// Row of the copies table; the last cell is 0 without a label, k + 1 with one.
    pub(crate) fn row(self) -> [u64; 4] {
        let top_k = self.top_k.map_or(0, |k| k as u64 + 1);
        [u64::from(self.teacher), self.tokens as u64, self.masked as u64, top_k]
    }

    pub(crate) fn from_row(row: [u64; 4]) -> Result<Self, Damage> {
        let count = |cell: u64| {
            usize::try_from(cell)
                .ok()
                .filter(|count| *count <= u32::MAX as usize)
                .ok_or_else(|| Damage::new(format!("a copy with {cell} of something")))
        };
        Ok(Self {
            teacher: u16::try_from(row[0]).map_err(|_| Damage::new(format!("teacher {}", row[0])))?,
            tokens: count(row[1])?,
            masked: count(row[2])?,
            top_k: row[3].checked_sub(1).map(count).transpose()?,
            computed_in: ComputedIn::default(),
        })
    }
}

/// The order in which copies are stored: by teacher, then as they come.
pub(crate) fn storage_order(shapes: &[Shape]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..shapes.len()).collect();
    order.sort_by_key(|index| shapes[*index].teacher);
    order
}

/// Writes the tokens of copies, which are in storage order and well-formed; as ranks, if there are tables.
pub(crate) fn encode_tokens(copies: &[&MaskedCopy], tables: Option<&Tables>, columns: &mut Columns) {
    let column = if tables.is_some() { Column::TokenRanks } else { Column::TokenIds };
    let column = columns.get_mut(column);
    for copy in copies {
        match tables.map(|tables| tables.ranks(copy.teacher)) {
            None => copy.token_ids.iter().for_each(|id| put_varint(u64::from(*id), column)),
            Some(ranks) => copy.token_ids.iter().for_each(|id| put_varint(u64::from(ranks.of(*id)), column)),
        }
    }
}

/// Reads the tokens of copies of these shapes, which are ranks if there are tables.
pub(crate) fn decode_tokens(bytes: &[u8], tables: Option<&Tables>, shapes: &[Shape]) -> Result<Vec<Vec<u32>>, Damage> {
    let mut wire = Wire::new(bytes);
    let tokens = shapes.iter().map(|shape| {
        let mut tokens = wire.varints_u32(shape.tokens)?;
        if let Some(tables) = tables {
            let ranks = tables.ranks(shape.teacher);
            tokens.iter_mut().for_each(|token| *token = ranks.id(*token));
        }
        Ok(tokens)
    });
    let tokens = tokens.collect::<Result<_, _>>()?;
    wire.finish()?;
    Ok(tokens)
}

/// Writes what labels were computed in, of copies in storage order: nothing if all of them are float32.
pub(crate) fn encode_computed_in(copies: &[&MaskedCopy], column: &mut Vec<u8>) {
    let labels = || copies.iter().filter_map(|copy| copy.label.as_ref());
    if labels().any(|label| label.computed_in != ComputedIn::Float32) {
        column.extend(labels().map(|label| label.computed_in.code()));
    }
}

/// Gives shapes, one record after another, what their labels were computed in.
pub(crate) fn decode_computed_in(column: &[u8], shapes: &mut [Shape]) -> Result<(), Damage> {
    if column.is_empty() {
        return Ok(());
    }
    let labelled: Vec<usize> =
        storage_order(shapes).into_iter().filter(|index| shapes[*index].top_k.is_some()).collect();
    if labelled.len() != column.len() {
        return Err(Damage::new(format!("what {} of {} labels were computed in", column.len(), labelled.len())));
    }
    for (index, code) in labelled.into_iter().zip(column) {
        let known = ComputedIn::from_code(*code);
        shapes[index].computed_in = known.ok_or_else(|| Damage::new(format!("a label computed in {code}")))?;
    }
    Ok(())
}

/// Writes masks and labels with compact precision.
pub(crate) fn encode_compactly(
    copies: &[&MaskedCopy],
    compaction: &mut Compaction,
    columns: &mut Columns,
) -> Result<(), Damage> {
    let Coded { columns: coded, positions, values } = codec::encode(copies, compaction)?;
    let Streams { masked_positions, gold_ranks, gold_ids, top_ids, top_logits, log_sum_exp, gold_logits } = coded;
    for (column, bytes, numbers) in [
        (Column::MaskedPositions, masked_positions, positions),
        (Column::GoldRanks, gold_ranks, positions),
        (Column::GoldIds, gold_ids, positions),
        (Column::TopIds, top_ids, values),
        (Column::TopLogits, top_logits, values),
        (Column::LogSumExp, log_sum_exp, positions),
        (Column::GoldLogits, gold_logits, positions),
    ] {
        columns.set_coded(column, bytes, 4 * numbers);
    }
    Ok(())
}

/// The range-coded columns of copies of these shapes.
pub(crate) fn load_compact<E: From<Damage>>(
    shapes: &[Shape],
    mut column: impl FnMut(Column) -> Result<ColumnBytes, E>,
) -> Result<Streams<Vec<u8>>, E> {
    let sum = |of: &dyn Fn(&Shape) -> u64| shapes.iter().map(of).fold(0_u64, u64::saturating_add).saturating_mul(4);
    let masked = sum(&|shape| shape.masked as u64);
    let values = sum(&|shape| (shape.masked as u64).saturating_mul(shape.top_k.unwrap_or(0) as u64));
    if masked.max(values) > MAX_COLUMN_BYTES as u64 {
        return Err(Damage::new(format!("{masked} bytes of positions, {values} of top-k")).into());
    }
    let mut load = |name: Column, length: u64| Ok::<_, E>(column(name)?.coded(length)?);
    Ok(Streams {
        masked_positions: load(Column::MaskedPositions, masked)?,
        gold_ranks: load(Column::GoldRanks, masked)?,
        gold_ids: load(Column::GoldIds, masked)?,
        top_ids: load(Column::TopIds, values)?,
        top_logits: load(Column::TopLogits, values)?,
        log_sum_exp: load(Column::LogSumExp, masked)?,
        gold_logits: load(Column::GoldLogits, masked)?,
    })
}

/// The copies of these shapes and tokens.
pub(crate) fn decode_compact(
    columns: Streams<Vec<u8>>,
    shapes: &[Shape],
    tokens: Vec<Vec<u32>>,
    tables: &Tables,
) -> Result<Vec<MaskedCopy>, Damage> {
    codec::decode(columns, shapes, tokens, tables)
}

/// Writes masks and labels with exact precision.
pub(crate) fn encode(copies: &[&MaskedCopy], columns: &mut Columns) {
    let mut logits = Vec::new();
    let mut log_sum_exp = Vec::new();
    let mut gold_logits = Vec::new();
    for copy in copies {
        let positions = columns.get_mut(Column::MaskedPositions);
        let mut previous = 0;
        for position in &copy.masked_positions {
            put_varint(u64::from(position - previous), positions);
            previous = *position;
        }
        let Some(label) = &copy.label else {
            let ids = columns.get_mut(Column::GoldIds);
            copy.gold_ids.iter().for_each(|id| put_varint(u64::from(*id), ids));
            continue;
        };
        let top_ids = columns.get_mut(Column::TopIds);
        label.top_ids.iter().for_each(|id| put_varint(u64::from(*id), top_ids));
        put_logits(label, &mut logits);
        log_sum_exp.extend(label.log_sum_exp.iter().map(|value| value.to_bits()));
        put_gold(label, &copy.gold_ids, columns, &mut gold_logits);
    }
    put_planes(&logits, columns.get_mut(Column::TopLogits));
    put_planes(&log_sum_exp, columns.get_mut(Column::LogSumExp));
    put_planes(&gold_logits, columns.get_mut(Column::GoldLogits));
}

fn put_logits(label: &Label, words: &mut Vec<u32>) {
    for row in label.top_logits.chunks(label.top_k.max(1)) {
        let mut previous = None;
        for logit in row {
            let bits = logit.to_bits();
            words.push(previous.map_or(bits, |previous: u32| previous.wrapping_sub(bits)));
            previous = Some(bits);
        }
    }
}

/// A gold token's code: its rank r < k; k: not in the top-k, id and logit apart; k + 1 + r: rank r, but another logit.
fn put_gold(label: &Label, gold_ids: &[u32], columns: &mut Columns, logits: &mut Vec<u32>) {
    let k = label.top_k;
    for (position, (gold, logit)) in gold_ids.iter().zip(&label.gold_logits).enumerate() {
        let top = position * k..(position + 1) * k;
        let rank = label.top_ids[top.clone()].iter().position(|id| id == gold);
        let code = match rank {
            Some(rank) if label.top_logits[top][rank].to_bits() == logit.to_bits() => rank,
            Some(rank) => k + 1 + rank,
            None => k,
        };
        put_varint(code as u64, columns.get_mut(Column::GoldRanks));
        if rank.is_none() {
            put_varint(u64::from(*gold), columns.get_mut(Column::GoldIds));
        }
        if code >= k {
            logits.push(logit.to_bits());
        }
    }
}

/// The stored columns of all copies of a block, with exact precision.
pub(crate) struct CopyColumns {
    masked_positions: Vec<u8>,
    gold_ranks: Vec<u8>,
    gold_ids: Vec<u8>,
    top_ids: Vec<u8>,
    top_logits: Vec<u32>,
    log_sum_exp: Vec<u32>,
    gold_logits: Vec<u32>,
}

impl CopyColumns {
    pub(crate) fn load<E: From<Damage>>(mut column: impl FnMut(Column) -> Result<ColumnBytes, E>) -> Result<Self, E> {
        let mut column = |name: Column| Ok::<_, E>(column(name)?.plain()?);
        Ok(Self {
            masked_positions: column(Column::MaskedPositions)?,
            gold_ranks: column(Column::GoldRanks)?,
            gold_ids: column(Column::GoldIds)?,
            top_ids: column(Column::TopIds)?,
            top_logits: take_planes(&column(Column::TopLogits)?)?,
            log_sum_exp: take_planes(&column(Column::LogSumExp)?)?,
            gold_logits: take_planes(&column(Column::GoldLogits)?)?,
        })
    }

    /// The copies of these shapes and tokens, which are in storage order.
    pub(crate) fn decode(&self, shapes: &[Shape], tokens: Vec<Vec<u32>>) -> Result<Vec<MaskedCopy>, Damage> {
        let mut decoder = Decoder {
            masked_positions: Wire::new(&self.masked_positions),
            gold_ranks: Wire::new(&self.gold_ranks),
            gold_ids: Wire::new(&self.gold_ids),
            top_ids: Wire::new(&self.top_ids),
            top_logits: Words(&self.top_logits),
            log_sum_exp: Words(&self.log_sum_exp),
            gold_logits: Words(&self.gold_logits),
        };
        let copies = shapes.iter().zip(tokens);
        let copies = copies.map(|(shape, tokens)| decoder.copy(*shape, tokens)).collect::<Result<_, _>>()?;
        decoder.finish()?;
        Ok(copies)
    }
}

struct Words<'a>(&'a [u32]);

impl<'a> Words<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u32], Damage> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| Damage::new("too few float32 values"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<u32, Damage> {
        let (word, rest) = self.0.split_first().ok_or_else(|| Damage::new("too few float32 values"))?;
        self.0 = rest;
        Ok(*word)
    }
}

struct Decoder<'a> {
    masked_positions: Wire<'a>,
    gold_ranks: Wire<'a>,
    gold_ids: Wire<'a>,
    top_ids: Wire<'a>,
    top_logits: Words<'a>,
    log_sum_exp: Words<'a>,
    gold_logits: Words<'a>,
}

impl Decoder<'_> {
    fn copy(&mut self, shape: Shape, token_ids: Vec<u32>) -> Result<MaskedCopy, Damage> {
        let masked_positions = self.positions(shape)?;
        let (gold_ids, label) = match shape.top_k {
            None => (self.gold_ids.varints_u32(shape.masked)?, None),
            Some(top_k) => self.label(shape, top_k).map(|(ids, label)| (ids, Some(label)))?,
        };
        Ok(MaskedCopy { teacher: shape.teacher, token_ids, masked_positions, gold_ids, label })
    }

    fn positions(&mut self, shape: Shape) -> Result<Vec<u32>, Damage> {
        let mut positions = self.masked_positions.varints_u32(shape.masked)?;
        let mut next_free = 0_u64;
        let mut previous = 0;
        for position in &mut positions {
            let absolute = previous + u64::from(*position);
            if absolute < next_free || absolute >= shape.tokens as u64 {
                return Err(Damage::new(format!("masked position {absolute} of {} tokens", shape.tokens)));
            }
            (previous, next_free) = (absolute, absolute + 1);
            *position = absolute as u32; // below `tokens`, which fits
        }
        Ok(positions)
    }

    fn label(&mut self, shape: Shape, top_k: usize) -> Result<(Vec<u32>, Label), Damage> {
        let Shape { masked, computed_in, .. } = shape;
        let values =
            masked.checked_mul(top_k).ok_or_else(|| Damage::new(format!("{masked} positions of top-{top_k}")))?;
        let top_ids = self.top_ids.varints_u32(values)?;
        let mut top_logits = Vec::with_capacity(values);
        for row in self.top_logits.take(values)?.chunks(top_k.max(1)) {
            let mut previous = None;
            for word in row {
                let bits = previous.map_or(*word, |previous: u32| previous.wrapping_sub(*word));
                top_logits.push(f32::from_bits(bits));
                previous = Some(bits);
            }
        }
        let log_sum_exp = self.log_sum_exp.take(masked)?.iter().map(|bits| f32::from_bits(*bits)).collect();
        let gold_logits = Vec::with_capacity(masked);
        let mut label = Label { top_k, top_ids, top_logits, log_sum_exp, gold_logits, computed_in };
        let mut gold_ids = Vec::with_capacity(masked);
        for position in 0..masked {
            let (id, logit) = self.gold(&label, position)?;
            gold_ids.push(id);
            label.gold_logits.push(logit);
        }
        Ok((gold_ids, label))
    }

    fn gold(&mut self, label: &Label, position: usize) -> Result<(u32, f32), Damage> {
        let k = label.top_k as u64;
        let first = position * label.top_k;
        let code = self.gold_ranks.varint()?;
        if code > 2 * k {
            return Err(Damage::new(format!("rank {code} in a top-{k}")));
        }
        if code < k {
            let at = first + code as usize;
            return Ok((label.top_ids[at], label.top_logits[at]));
        }
        let id = if code == k { self.gold_ids.varint_u32()? } else { label.top_ids[first + (code - k - 1) as usize] };
        Ok((id, f32::from_bits(self.gold_logits.next()?)))
    }

    fn finish(self) -> Result<(), Damage> {
        let wires = [self.masked_positions, self.gold_ranks, self.gold_ids, self.top_ids];
        wires.into_iter().try_for_each(Wire::finish)?;
        if [self.top_logits, self.log_sum_exp, self.gold_logits].iter().any(|words| !words.0.is_empty()) {
            return Err(Damage::new("more float32 values than positions"));
        }
        Ok(())
    }
}
