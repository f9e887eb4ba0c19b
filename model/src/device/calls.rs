//! Kernels and products as functions. What is at an address, and how much, is the callers' word.

use super::batch::DeviceBatch;
use super::{Accelerator, Address, Argument, Buffer, DeviceError, Factor, Launch, Precision, Product};
use crate::fused::dropout::Mask;
use crate::{Activation, Configuration};
use std::sync::Arc;

/// Threads of a block, by kernel: as their source says.
const ROW_THREADS: u32 = 128;
const ROWS_PER_BLOCK: usize = 4;
const ELEMENT_THREADS: u32 = 256;
const ATTENTION_THREADS: u32 = 128;
const SUM_THREADS: u32 = 128;
const SQUARE_THREADS: u32 = 256;
/// Columns of a block that sums rows, and the blocks that share the rows out.
const SUM_COLUMNS: usize = 256;
const SUM_BLOCKS: usize = 128;
/// Queries, or keys, of a block: of attention in tiles, and of the plain one.
const TILE: usize = 64;
const WARPS: usize = 4;
/// Numbers that a thread reads at a time: rows are a multiple of it.
pub(super) const EIGHT: usize = 8;
/// Shared memory that a block gets without asking for more.
const SHARED_BYTES: usize = 48 << 10;
/// Blocks of a kernel that goes over all numbers: enough for the largest accelerators, whose threads then go on.
const BLOCKS: usize = 4096;
/// Sums of squares that are added up on the processor.
pub(super) const SQUARE_BLOCKS: usize = 1024;

/// A place as an argument.
pub(super) fn at(address: Address) -> Argument {
    Argument::Address(address)
}

/// A number as an argument.
pub(super) fn n(number: usize) -> Argument {
    Argument::U32(number as u32)
}

/// A float32 as an argument.
pub(super) fn f(number: f32) -> Argument {
    Argument::F32(number)
}

/// An accelerator, and the numbers that it multiplies.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    pub(super) device: Arc<dyn Accelerator>,
    pub(super) precision: Precision,
}

/// Where a model's parameters are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The arena in `precision`: tables and matrices.
    pub(super) numbers: Address,
    /// Where the arena in float32 begins, or would begin: vectors. They are there; what else is not known.
    pub(super) vectors: Address,
    pub(super) precision: Precision,
}

impl Places {
    /// A place in the arena in `precision`.
    pub(super) fn number(&self, place: usize) -> Address {
        self.numbers + (place * self.precision.bytes()) as u64
    }

    /// A place in the arena of vectors.
    pub(super) fn vector(&self, place: usize) -> Address {
        self.vectors.wrapping_add(4 * place as u64)
    }
}

/// A matrix in `Calls::precision`: its place and numbers from row to row.
pub(super) type Rows = (Address, usize);

/// LayerNorm's weight, bias and epsilon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub(super) weight: Address,
    pub(super) bias: Address,
    pub(super) epsilon: f64,
}

/// Where the backward pass of a LayerNorm finds its normalised rows and their scales.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    pub(super) normalised: Address,
    pub(super) scales: Address,
}

/// What attention reads, and its heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub(super) query: Rows,
    pub(super) key_value: Rows,
    /// `[3 · hidden]`.
    pub(super) bias: Address,
    /// Whether only the masked rows ask.
    pub(super) masked: bool,
    pub(super) heads: usize,
    pub(super) size: usize,
}

/// What the backward pass of attention reads and writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionGradients {
    pub(super) of_context: Address,
    pub(super) log_sum_exp: Address,
    pub(super) dots: Address,
    /// `[rows, hidden]`.
    pub(super) of_query: Address,
    /// `[tokens, 2 · hidden]`.
    pub(super) of_key_value: Address,
}

impl Attention {
    fn arguments(&self, batch: &DeviceBatch, context: Address) -> Vec<Argument> {
        let rows = if self.masked { &batch.row_starts } else { &batch.starts };
        vec![
            at(self.query.0),
            n(self.query.1),
            at(self.key_value.0),
            n(self.key_value.1),
            at(self.bias),
            at(batch.starts.at()),
            at(rows.at()),
            n(self.heads),
            n(self.size),
            f(1.0 / (self.size as f32).sqrt()),
            at(context),
        ]
    }

    /// The most rows that a sequence asks for.
    fn most_rows(&self, batch: &DeviceBatch) -> usize {
        if self.masked { batch.most_masked } else { batch.longest }
    }
}

impl Calls {
    /// Refuses shapes that the kernels cannot do. `training`: with a backward pass.
    pub(super) fn check(&self, c: &Configuration, training: bool) -> Result<(), DeviceError> {
        let unusable = |reason: String| Err(DeviceError::Unusable { device: self.device.name().to_owned(), reason });
        let widths = [
            ("hidden_size", c.hidden_size),
            ("embedding_size", c.embedding_size),
            ("intermediate_size", c.intermediate_size),
            ("the size of a head", c.head_size()),
        ];
        for (name, width) in widths {
            if !width.is_multiple_of(EIGHT) {
                return unusable(format!(
                    "{name} is {width}; kernels need a multiple of {EIGHT}: use device = \"cpu\""
                ));
            }
        }
        let attention = match (training, self.in_tiles(c.head_size())) {
            (_, true) => 0,
            (false, false) => c.head_size() + c.max_position_embeddings,
            (true, false) => 2 * c.head_size() + 2 * c.max_position_embeddings,
        };
        let needs =
            [("a row", ROWS_PER_BLOCK * 4 * c.hidden_size.max(c.embedding_size)), ("attention", WARPS * 4 * attention)];
        for (what, bytes) in needs {
            if bytes > SHARED_BYTES {
                return unusable(format!(
                    "{what} needs {bytes} bytes of a block's {SHARED_BYTES}: use device = \"cpu\" for this model"
                ));
            }
        }
        Ok(())
    }

    /// Whether tensor cores do heads of this size.
    fn in_tiles(&self, size: usize) -> bool {
        self.precision != Precision::F32 && [32, 64, 128].contains(&size)
    }

    /// A kernel that has a row a warp.
    pub(super) fn rows(
        &self,
        kernel: &'static str,
        rows: usize,
        columns: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        let blocks = [rows.div_ceil(ROWS_PER_BLOCK) as u32, 1, 1];
        self.launch(kernel, blocks, ROW_THREADS, ROWS_PER_BLOCK * columns * 4, arguments)
    }

    /// A kernel that goes over `count` numbers, eight at a time.
    ///
    /// # Panics
    /// When they are so many that their eights have no 32-bit numbers.
    pub(super) fn elements(
        &self,
        kernel: &'static str,
        count: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        assert!(count / EIGHT <= i32::MAX as usize, "{count} numbers at a time");
        let blocks = count.div_ceil(EIGHT * ELEMENT_THREADS as usize).min(BLOCKS);
        self.launch(kernel, [blocks as u32, 1, 1], ELEMENT_THREADS, 0, arguments)
    }

    /// A kernel that sums groups of rows: a warp has a group and 256 columns.
    pub(super) fn groups(
        &self,
        kernel: &'static str,
        groups: usize,
        columns: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        let blocks = [groups.div_ceil(ROWS_PER_BLOCK) as u32, columns.div_ceil(SUM_COLUMNS) as u32, 1];
        self.launch(kernel, blocks, ROW_THREADS, 0, arguments)
    }

    /// Any kernel; none without blocks.
    pub(super) fn launch(
        &self,
        kernel: &'static str,
        blocks: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        if blocks.contains(&0) {
            return Ok(());
        }
        let precision = self.precision;
        let launch = Launch { kernel, precision, blocks, threads, shared_bytes: shared_bytes as u32, arguments };
        // SAFETY: the arguments are those of the kernels in `kernels/`; callers' buffers were grown to the batch, which was held against the configuration.
        unsafe { self.device.launch(&launch) }
    }

    /// out `[rows, columns]` (+)= left · right, all in `precision`; a factor is transposed where its flag says so.
    pub(super) fn multiply(
        &self,
        [rows, inner, columns]: [usize; 3],
        left: (Address, bool),
        right: (Address, bool),
        out: Address,
        accumulate: bool,
    ) -> Result<(), DeviceError> {
        let out = (out, columns, self.precision);
        self.multiply_strided([rows, inner, columns], (left.0, None, left.1), (right.0, None, right.1), out, accumulate)
    }

    /// The same with numbers from row to row of the factors where they are not their columns, and with another precision of the result.
    pub(super) fn multiply_strided(
        &self,
        [rows, inner, columns]: [usize; 3],
        left: (Address, Option<usize>, bool),
        right: (Address, Option<usize>, bool),
        (out, out_stride, out_precision): (Address, usize, Precision),
        accumulate: bool,
    ) -> Result<(), DeviceError> {
        if rows == 0 || inner == 0 || columns == 0 {
            return Ok(());
        }
        let factor = |(at, stride, transposed): (Address, Option<usize>, bool), rows: usize, columns: usize| Factor {
            at,
            stride: stride.unwrap_or(if transposed { rows } else { columns }),
            transposed,
        };
        let product = Product {
            precision: self.precision,
            rows,
            columns,
            inner,
            left: factor(left, rows, inner),
            right: factor(right, inner, columns),
            out: Factor { at: out, stride: out_stride, transposed: false },
            out_precision,
            accumulate,
        };
        // SAFETY: the callers' word.
        unsafe { self.device.multiply(&product) }
    }

    /// x `[rows, inner]` times the transpose of the matrix `[columns, inner]`: a dense map without its bias.
    pub(super) fn map(
        &self,
        (x, rows, inner): (Address, usize, usize),
        weight: Address,
        columns: usize,
        out: Address,
    ) -> Result<(), DeviceError> {
        self.multiply([rows, inner, columns], (x, false), (weight, true), out, false)
    }

    /// LayerNorm(dropout(dense + dense_bias) + residual), of the residual's rows in the list `of` unless that is 0.
    pub(super) fn add_norm(
        &self,
        (dense, dense_bias): (Address, Address),
        (residual, of): (Address, Address),
        norm: Norm,
        [rows, columns]: [usize; 2],
        out: Address,
        saving: Option<(Saved, Option<Mask>, Address)>,
    ) -> Result<(), DeviceError> {
        let mut arguments = vec![
            at(dense),
            at(dense_bias),
            at(residual),
            at(of),
            at(norm.weight),
            at(norm.bias),
            f(norm.epsilon as f32),
            n(rows),
            n(columns),
            at(out),
        ];
        let Some((saved, mask, numbers)) = saving else { return self.rows("add_norm", rows, columns, &arguments) };
        arguments.extend([at(saved.normalised), at(saved.scales)]);
        arguments.extend(mask_arguments(mask, numbers));
        self.rows("add_norm_saving", rows, columns, &arguments)
    }

    /// x + bias, or act(x + bias), in x's place.
    pub(super) fn add_bias(
        &self,
        (x, bias): (Address, Address),
        activation: Option<Activation>,
        [rows, columns]: [usize; 2],
    ) -> Result<(), DeviceError> {
        let kind = n(activation.map_or(NO_ACTIVATION, kind));
        self.elements("add_bias", rows * columns, &[at(x), at(bias), kind, n(rows), n(columns)])
    }

    /// The rows of x in a list.
    pub(super) fn gather(
        &self,
        (x, of): (Address, Address),
        [rows, columns]: [usize; 2],
        out: Address,
    ) -> Result<(), DeviceError> {
        self.elements("gather", rows * columns, &[at(x), at(of), n(rows), n(columns), at(out)])
    }

    /// Zeros, over so many bytes, rounded up to 16.
    pub(super) fn clear(&self, place: Address, bytes: usize) -> Result<(), DeviceError> {
        let count = bytes.div_ceil(16);
        self.elements("clear", count * EIGHT, &[at(place), Argument::U64(count as u64)])
    }

    /// The context `[rows, hidden]`; with `training`, after dropout, and the log-sum-exp of each row and head besides.
    pub(super) fn attend(
        &self,
        batch: &DeviceBatch,
        attention: &Attention,
        context: Address,
        training: Option<(Address, Option<Mask>)>,
    ) -> Result<(), DeviceError> {
        let in_tiles = self.in_tiles(attention.size);
        let kernel = match (in_tiles, attention.size, training.is_some()) {
            (false, _, false) => "attend",
            (false, _, true) => "attend_training",
            (true, 32, false) => "attend_32",
            (true, 64, false) => "attend_64",
            (true, _, false) => "attend_128",
            (true, 32, true) => "attend_32_training",
            (true, 64, true) => "attend_64_training",
            (true, _, true) => "attend_128_training",
        };
        let mut arguments = attention.arguments(batch, context);
        let shared = match in_tiles {
            true => 0,
            false => {
                arguments.push(n(batch.longest));
                WARPS * 4 * (attention.size + batch.longest)
            }
        };
        if let Some((log_sum_exp, mask)) = training {
            arguments.push(at(log_sum_exp));
            arguments.extend(mask_arguments(mask, batch.numbers_of(attention.masked)));
        }
        let queries = attention.most_rows(batch).div_ceil(if in_tiles { TILE } else { WARPS });
        // Of the three directions the first has the most room.
        let blocks = [batch.sequences as u32, attention.heads as u32, queries as u32];
        self.launch(kernel, blocks, ATTENTION_THREADS, shared, &arguments)
    }

    /// The reverse: from `of_context`, with what the forward pass read and made.
    pub(super) fn attend_backward(
        &self,
        batch: &DeviceBatch,
        attention: &Attention,
        context: Address,
        of: AttentionGradients,
        mask: Option<Mask>,
    ) -> Result<(), DeviceError> {
        let (heads, size) = (attention.heads, attention.size);
        let rows = batch.rows_of(attention.masked);
        let dots = [at(of.of_context), at(context), n(rows), n(heads), n(size), at(of.dots)];
        self.elements("attention_dots", rows * heads * EIGHT, &dots)?;
        let in_tiles = self.in_tiles(size);
        let most_rows = attention.most_rows(batch);
        let (queries, keys) = match (in_tiles, size) {
            (false, _) => ("attend_queries", "attend_keys"),
            (true, 32) => ("attend_32_queries", "attend_32_keys"),
            (true, 64) => ("attend_64_queries", "attend_64_keys"),
            (true, _) => ("attend_128_queries", "attend_128_keys"),
        };
        let per_block = if in_tiles { TILE } else { WARPS };
        for (kernel, places, longest, numbers) in
            [(queries, most_rows, batch.longest, 1), (keys, batch.longest, most_rows, 2)]
        {
            let mut arguments = attention.arguments(batch, context);
            let shared = match in_tiles {
                true => 0,
                false => {
                    arguments.push(n(longest));
                    WARPS * 4 * (2 * size + numbers * longest)
                }
            };
            let AttentionGradients { of_context, log_sum_exp, dots, of_query, of_key_value } = of;
            arguments.extend([of_context, log_sum_exp, dots, of_query, of_key_value].map(at));
            arguments.extend(mask_arguments(mask, batch.numbers_of(attention.masked)));
            let blocks = [batch.sequences as u32, heads as u32, places.div_ceil(per_block) as u32];
            self.launch(kernel, blocks, ATTENTION_THREADS, shared, &arguments)?;
        }
        Ok(())
    }

    /// sum\[column\] += Σ over rows of a (· b, unless that is 0), for the first `count` columns; `typed`: of the rows that have this type alone. `partial` holds
    /// [`Calls::partials`] numbers.
    pub(super) fn sum_rows(
        &self,
        (a, b): (Address, Address),
        typed: Option<(Address, usize)>,
        [rows, columns, count]: [usize; 3],
        partial: Address,
        sum: Address,
    ) -> Result<(), DeviceError> {
        let per_block = rows_per_block(rows);
        let blocks = rows.div_ceil(per_block);
        let (types, of_type) = typed.unwrap_or_default();
        let arguments = [at(a), at(b), at(types), n(of_type), n(rows), n(columns), n(per_block), at(partial)];
        let grid = [columns.div_ceil(SUM_COLUMNS) as u32, blocks as u32, 1];
        self.launch("sum_rows", grid, SUM_THREADS, 0, &arguments)?;
        if blocks == 0 {
            return Ok(());
        }
        let grid = [count.div_ceil(ELEMENT_THREADS as usize) as u32, 1, 1];
        let arguments = [at(partial), n(blocks), n(columns), n(count), at(sum)];
        self.launch("add_partials", grid, ELEMENT_THREADS, 0, &arguments)
    }

    /// Numbers that [`Calls::sum_rows`] needs for so many rows, or fewer, and columns.
    pub(super) fn partials(rows: usize, columns: usize) -> usize {
        // As many blocks at most: more rows may make fewer of them.
        rows.div_ceil(WARPS * EIGHT).min(SUM_BLOCKS) * columns
    }

    /// Σ x² over `count` numbers; `partial` is grown to what that takes.
    pub(super) fn sum_of_squares(
        &self,
        x: Address,
        count: usize,
        partial: &mut Buffer<f64>,
    ) -> Result<f64, DeviceError> {
        partial.grow(SQUARE_BLOCKS)?;
        let arguments = [at(x), Argument::U64(count as u64), at(partial.at())];
        self.launch("sum_squares", [SQUARE_BLOCKS as u32, 1, 1], SQUARE_THREADS, 0, &arguments)?;
        let mut sums = vec![0.0; SQUARE_BLOCKS];
        partial.read(&mut sums)?;
        Ok(sums.iter().sum())
    }
}

/// Rows that one of the blocks sums which share them out.
fn rows_per_block(rows: usize) -> usize {
    rows.div_ceil(SUM_BLOCKS).max(WARPS * EIGHT)
}

/// The arguments of a mask; `numbers`: those of its rows, or 0.
pub(super) fn mask_arguments(mask: Option<Mask>, numbers: Address) -> [Argument; 7] {
    let words = mask.map(|mask| mask.words()).unwrap_or_default();
    let [key0, key1, step, last, row_offset, threshold] = words.map(Argument::U32);
    [key0, key1, step, last, row_offset, threshold, at(numbers)]
}

const NO_ACTIVATION: usize = 4;

/// As the kernels number them.
pub(super) fn kind(activation: Activation) -> usize {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_sums_is_enough_for_fewer_rows_too() {
        let blocks = |rows: usize| rows.div_ceil(rows_per_block(rows));
        let mut most = 0;
        for rows in 0..20_000 {
            most = most.max(blocks(rows));
            assert!(most <= Calls::partials(rows, 1), "{rows} rows");
        }
    }
}
