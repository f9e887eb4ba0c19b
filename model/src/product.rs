//! Matrix products on slices: out = left · right, plus a bias or what `out` holds.
//!
//! The right factor lies in panels of as many columns as a tile has, so that the kernel reads it in order; the left one is
//! read where it lies, in rows or in columns. A factor that is used often (a weight) is packed once. Every element of the
//! result is one chain of multiply-adds over the depth, in ascending order, beginning with what it starts from. So it is the same
//! bits however the product is cut into rows, columns or stretches of the depth, by whichever number of threads, and with
//! AVX2 as with AVX-512.
//!
//! Nothing here runs in parallel by itself: callers cut rows or tiles, and know how much work one is.
#![allow(unsafe_code)]

use crate::simd::{ARCH, with_arch};
use pulp::{Arch, Simd, WithSimd};

/// Rows of a tile. With four vectors of columns they fill the registers of AVX-512 and of NEON.
const TILE_ROWS: usize = 6;
/// Columns of the widest tile.
const TILE_COLUMNS_MAX: usize = 64;

/// A matrix in a slice: element (i, j) is `values[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `[rows, columns]`, row after row.
    ///
    /// # Panics
    /// When there are fewer values than that.
    #[must_use]
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// `[rows, columns]`, a row every `row_stride` values.
    ///
    /// # Panics
    /// When there are too few values.
    #[must_use]
    pub fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let matrix = Self { values, rows, columns, row_stride, column_stride: 1 };
        assert!(matrix.end() <= values.len(), "{} values are too few for {matrix:?}", values.len());
        matrix
    }

    /// How many rows it has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns it has.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values of row `row`.
    ///
    /// # Panics
    /// When it has no such row, or the values of a row are not neighbours.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && self.column_stride == 1, "row {row} of {self:?}");
        &self.values[row * self.row_stride..][..self.columns]
    }

    /// The same with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `count` of its rows from `first` on.
    ///
    /// # Panics
    /// When it does not have them.
    #[must_use]
    pub fn sub_rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows {first} + {count} of {}", self.rows);
        let offset = (first * self.row_stride).min(self.values.len());
        Self { values: &self.values[offset..], rows: count, ..self }
    }

    /// `count` of its columns from `first` on.
    ///
    /// # Panics
    /// When it does not have them.
    #[must_use]
    pub fn sub_columns(self, first: usize, count: usize) -> Self {
        self.transposed().sub_rows(first, count).transposed()
    }

    /// One beyond the largest index of an element.
    fn end(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// A right factor, packed into panels. The buffer is kept when it is packed anew.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    values: Vec<f32>,
    depth: usize,
    columns: usize,
    width: usize,
}

impl Packed {
    /// Packs `matrix` `[depth, columns]`.
    #[must_use]
    pub fn new(matrix: Matrix<'_>) -> Self {
        let mut packed = Self::default();
        packed.pack(matrix);
        packed
    }

    /// Packs `matrix` `[depth, columns]` in place of what was here.
    pub fn pack(&mut self, matrix: Matrix<'_>) {
        self.pack_for(*ARCH, matrix);
    }

    fn pack_for(&mut self, arch: Arch, matrix: Matrix<'_>) {
        let width = tile_columns(arch);
        self.reshape(matrix, width);
        let panel_values = (self.depth * width).max(1);
        for (panel, first) in self.values.chunks_mut(panel_values).zip((0..self.columns).step_by(width)) {
            let part = matrix.sub_columns(first, width.min(self.columns - first));
            with_arch(arch, || pack_panel(panel, part, width));
        }
    }

    /// Gives the buffer the size for `matrix`; the columns that fill up the last panel are 0.
    fn reshape(&mut self, matrix: Matrix<'_>, width: usize) {
        (self.depth, self.columns, self.width) = (matrix.rows, matrix.columns, width);
        let panels = self.columns.div_ceil(width);
        self.values.resize(panels * self.depth * width, 0.0);
    }

    /// The panels by number, each for a thread to fill by [`PanelMut::pack`], after the buffer took the shape of `matrix`.
    pub(crate) fn panels_mut<'a>(&'a mut self, matrix: Matrix<'a>) -> Vec<PanelMut<'a>> {
        let width = tile_columns(*ARCH);
        self.reshape(matrix, width);
        let (columns, panel_values) = (self.columns, (self.depth * width).max(1));
        let firsts = (0..columns).step_by(width);
        let panels = self.values.chunks_mut(panel_values).zip(firsts);
        panels
            .map(|(values, first)| PanelMut {
                values,
                part: matrix.sub_columns(first, width.min(columns - first)),
                width,
            })
            .collect()
    }

    /// Rows of the matrix that was packed.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// For [`multiply`].
    #[must_use]
    pub fn right(&self) -> Right<'_> {
        Right {
            values: &self.values,
            depth: self.depth,
            columns: self.columns,
            panel_stride: self.depth * self.width,
            row_stride: self.width,
        }
    }

    /// `count` of its columns from `first` on, which begins a panel: a multiple of [`panel_columns`].
    ///
    /// # Panics
    /// When it does not have them, or they begin inside a panel.
    #[must_use]
    pub fn columns(&self, first: usize, count: usize) -> Right<'_> {
        assert!(first.is_multiple_of(self.width.max(1)) && first + count <= self.columns, "columns {first} + {count}");
        let offset = first / self.width.max(1) * self.depth * self.width;
        Right { values: &self.values[offset.min(self.values.len())..], columns: count, ..self.right() }
    }
}

/// A panel to be filled.
pub(crate) struct PanelMut<'a> {
    values: &'a mut [f32],
    part: Matrix<'a>,
    width: usize,
}

impl PanelMut<'_> {
    pub(crate) fn pack(self) {
        with_arch(*ARCH, || pack_panel(self.values, self.part, self.width));
    }
}

/// Columns of a panel on this machine.
#[must_use]
pub fn panel_columns() -> usize {
    tile_columns(*ARCH)
}

/// Writes `part` `[depth, ≤ width]` as `[depth, width]`, with zeros behind it.
#[inline(always)]
fn pack_panel(panel: &mut [f32], part: Matrix<'_>, width: usize) {
    if part.column_stride == 1 {
        for (row, to) in panel.chunks_exact_mut(width).enumerate() {
            let from = &part.values[row * part.row_stride..][..part.columns];
            to[..part.columns].copy_from_slice(from);
            to[part.columns..].fill(0.0);
        }
        return;
    }
    if part.columns < width {
        panel.fill(0.0);
    }
    // A few columns at a time, so that what is written stays in the nearest cache.
    const DEPTH: usize = 64;
    for first in (0..part.rows).step_by(DEPTH) {
        let count = DEPTH.min(part.rows - first);
        let to = &mut panel[first * width..(first + count) * width];
        for column in 0..part.columns {
            let from = &part.values[column * part.column_stride + first * part.row_stride..];
            let values = from.iter().step_by(part.row_stride.max(1)).take(count);
            for (to, from) in to[column..].iter_mut().step_by(width).zip(values) {
                *to = *from;
            }
        }
    }
}

/// The right factor of a product: `[depth, columns]` in panels.
#[derive(Clone, Copy, Debug)]
pub struct Right<'a> {
    values: &'a [f32],
    depth: usize,
    columns: usize,
    panel_stride: usize,
    row_stride: usize,
}

impl<'a> Right<'a> {
    /// `matrix` where it lies, if its rows are contiguous and its columns fill whole panels; or else packed into `scratch`.
    #[must_use]
    pub fn of(matrix: Matrix<'a>, scratch: &'a mut Packed) -> Self {
        let width = tile_columns(*ARCH);
        if matrix.column_stride == 1 && matrix.columns.is_multiple_of(width) {
            return Self {
                values: matrix.values,
                depth: matrix.rows,
                columns: matrix.columns,
                panel_stride: width,
                row_stride: matrix.row_stride,
            };
        }
        scratch.pack(matrix);
        scratch.right()
    }

    /// One beyond the largest index that the kernel reads.
    fn end(&self, width: usize) -> usize {
        if self.depth == 0 || self.columns == 0 {
            return 0;
        }
        (self.columns.div_ceil(width) - 1) * self.panel_stride + (self.depth - 1) * self.row_stride + width
    }
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// `[columns]`, to every row.
    Bias(&'a [f32]),
    /// What `out` holds.
    Out,
}

/// out = left · right + start. `left` is `[rows, depth]`, `right` `[depth, columns]`; `out` takes `[rows, columns]`, a row every
/// `out_stride` values, and nothing between the rows is touched.
///
/// # Panics
/// When the shapes do not agree.
pub fn multiply(left: Matrix<'_>, right: Right<'_>, start: Start<'_>, out: &mut [f32], out_stride: usize) {
    multiply_for(*ARCH, left, right, start, out, out_stride);
}

fn multiply_for(arch: Arch, left: Matrix<'_>, right: Right<'_>, start: Start<'_>, out: &mut [f32], out_stride: usize) {
    let (rows, columns) = (left.rows, right.columns);
    if rows == 0 || columns == 0 {
        return;
    }
    // The kernel's safety rests on these.
    assert_eq!(left.columns, right.depth, "depth of left and right");
    assert!(left.end() <= left.values.len(), "left is too short");
    assert!(right.end(tile_columns(arch)) <= right.values.len(), "right is too short");
    assert!(out_stride >= columns && (rows - 1) * out_stride + columns <= out.len(), "out is too short");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), columns, "a bias per column");
    }
    arch.dispatch(Product { left, right, start, out, out_stride });
}

/// Columns of a tile: as many vectors as leave registers for the factors.
const fn tile_vectors(lanes: usize) -> usize {
    if lanes == 8 { 2 } else { 4 }
}

fn tile_columns(arch: Arch) -> usize {
    struct Columns;
    impl WithSimd for Columns {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES * tile_vectors(S::F32_LANES)
        }
    }
    arch.dispatch(Columns)
}

struct Product<'a> {
    left: Matrix<'a>,
    right: Right<'a>,
    start: Start<'a>,
    out: &'a mut [f32],
    out_stride: usize,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if tile_vectors(S::F32_LANES) == 2 { self.tiles::<S, 2>(simd) } else { self.tiles::<S, 4>(simd) }
    }
}

impl Product<'_> {
    /// Tile by tile: all rows of a panel, then the next panel.
    #[inline(always)]
    fn tiles<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        for (panel, column) in (0..self.right.columns).step_by(width).enumerate() {
            let columns = width.min(self.right.columns - column);
            let mut row = 0;
            while row < self.left.rows {
                let rows = TILE_ROWS.min(self.left.rows - row);
                self.fetch_ahead(row + TILE_ROWS, column, width);
                if columns == width {
                    let start = match self.start {
                        Start::Zero => TileStart::Zero,
                        Start::Bias(bias) => TileStart::Row(bias[column..][..width].as_ptr()),
                        Start::Out => TileStart::Out,
                    };
                    let out = self.out[row * self.out_stride + column..].as_mut_ptr();
                    let tile = self.tile(row, panel, out, self.out_stride, start);
                    // SAFETY: `multiply_for` has checked that the factors hold what a tile reads, and that `out` holds
                    // these rows and columns; the bias was cut to `width`.
                    unsafe { tile.compute_rows::<S, VECTORS>(simd, rows) };
                } else {
                    self.narrow_tile::<S, VECTORS>(simd, (row, rows), panel, (column, columns));
                }
                row += rows;
            }
        }
    }

    /// Asks for the tile of `out` at `row` and `column`, if it is to be read: it may be far from the core, where gradients of
    /// large matrices add up.
    #[inline(always)]
    fn fetch_ahead(&self, row: usize, column: usize, width: usize) {
        const LINE: usize = 16; // values
        if matches!(self.start, Start::Out) {
            for row in row..(row + TILE_ROWS).min(self.left.rows) {
                for column in (column..(column + width).min(self.right.columns)).step_by(LINE) {
                    prefetch(self.out.as_ptr().wrapping_add(row * self.out_stride + column));
                }
            }
        }
    }

    /// A tile of the last panel, which has fewer columns: by way of a buffer.
    #[inline(always)]
    fn narrow_tile<S: Simd, const VECTORS: usize>(
        &mut self,
        simd: S,
        (row, rows): (usize, usize),
        panel: usize,
        (column, columns): (usize, usize),
    ) {
        let mut buffer = [0.0_f32; TILE_ROWS * TILE_COLUMNS_MAX];
        let stride = self.out_stride;
        let lines = buffer.chunks_exact_mut(TILE_COLUMNS_MAX).take(rows).enumerate();
        for (i, line) in lines {
            match self.start {
                Start::Zero => {}
                Start::Bias(bias) => line[..columns].copy_from_slice(&bias[column..][..columns]),
                Start::Out => line[..columns].copy_from_slice(&self.out[(row + i) * stride + column..][..columns]),
            }
        }
        let tile = self.tile(row, panel, buffer.as_mut_ptr(), TILE_COLUMNS_MAX, TileStart::Out);
        // SAFETY: as above for the factors; the buffer has `TILE_ROWS` rows of the widest tile. Fewer vectors read less.
        unsafe {
            match columns.div_ceil(S::F32_LANES) {
                1 => tile.compute_rows::<S, 1>(simd, rows),
                2 => tile.compute_rows::<S, 2>(simd, rows),
                3 if VECTORS > 3 => tile.compute_rows::<S, 3>(simd, rows),
                _ => tile.compute_rows::<S, VECTORS>(simd, rows),
            }
        }
        for (i, line) in buffer.chunks_exact(TILE_COLUMNS_MAX).take(rows).enumerate() {
            self.out[(row + i) * stride + column..][..columns].copy_from_slice(&line[..columns]);
        }
    }

    #[inline(always)]
    fn tile(&self, row: usize, panel: usize, out: *mut f32, out_stride: usize, start: TileStart) -> Tile {
        Tile {
            depth: self.right.depth,
            left: self.left.values.as_ptr().wrapping_add(row * self.left.row_stride),
            left_row_stride: self.left.row_stride,
            left_column_stride: self.left.column_stride,
            right: self.right.values.as_ptr().wrapping_add(panel * self.right.panel_stride),
            right_stride: self.right.row_stride,
            out,
            out_stride,
            start,
        }
    }
}

#[derive(Clone, Copy)]
enum TileStart {
    Zero,
    /// The same values for every row.
    Row(*const f32),
    Out,
}

/// Some rows of one panel.
#[derive(Clone, Copy)]
struct Tile {
    depth: usize,
    left: *const f32,
    left_row_stride: usize,
    left_column_stride: usize,
    right: *const f32,
    right_stride: usize,
    out: *mut f32,
    out_stride: usize,
    start: TileStart,
}

impl Tile {
    /// # Safety
    /// With `rows` in 1..=6: see [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_rows<S: Simd, const VECTORS: usize>(self, simd: S, rows: usize) {
        // SAFETY: passed on.
        unsafe {
            match rows {
                1 => self.compute::<S, 1, VECTORS>(simd),
                2 => self.compute::<S, 2, VECTORS>(simd),
                3 => self.compute::<S, 3, VECTORS>(simd),
                4 => self.compute::<S, 4, VECTORS>(simd),
                5 => self.compute::<S, 5, VECTORS>(simd),
                _ => self.compute::<S, TILE_ROWS, VECTORS>(simd),
            }
        }
    }

    /// # Safety
    /// `left` must be readable at i · `left_row_stride` + k · `left_column_stride` for i < ROWS, k < `depth`; `right` at
    /// k · `right_stride` + j for j < VECTORS · lanes; `out` readable and writable at i · `out_stride` + j; a start row at j.
    #[inline(always)]
    unsafe fn compute<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = match self.start {
                        TileStart::Zero => *sum,
                        TileStart::Row(row) => load::<S>(row.add(j * S::F32_LANES)),
                        TileStart::Out => load::<S>(self.out.add(i * self.out_stride + j * S::F32_LANES)),
                    };
                }
            }
            let (mut left, mut right) = (self.left, self.right);
            for _ in 0..self.depth {
                let mut columns = [simd.splat_f32s(0.0); VECTORS];
                for (j, column) in columns.iter_mut().enumerate() {
                    *column = load::<S>(right.add(j * S::F32_LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = simd.splat_f32s(*left.add(i * self.left_row_stride));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = simd.mul_add_e_f32s(value, column, *sum);
                    }
                }
                // May point beyond the end after the last step, where it is not read.
                left = left.wrapping_add(self.left_column_stride);
                right = right.wrapping_add(self.right_stride);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    let to = self.out.add(i * self.out_stride + j * S::F32_LANES).cast::<S::f32s>();
                    to.write_unaligned(sum);
                }
            }
        }
    }
}

/// Asks for the cache line at `from`, which may be anywhere: nothing is read that the program sees.
#[inline(always)]
fn prefetch(from: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    // Elsewhere there is no stable way; the machine's own prefetching has to do.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// # Safety
/// A vector's values must be readable at `from`.
#[inline(always)]
unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller's; no alignment is needed.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::archs;

    fn values(count: usize, seed: u64) -> Vec<f32> {
        let stream = crate::random::Philox::new(seed, "test", &[]);
        (0..count as u64).map(|i| stream.normal(i, 0) as f32).collect()
    }

    /// In double precision, straight from the definition.
    fn reference(left: Matrix<'_>, right: Matrix<'_>, start: impl Fn(usize, usize) -> f32) -> Vec<f64> {
        let at = |m: Matrix<'_>, i: usize, j: usize| f64::from(m.values[i * m.row_stride + j * m.column_stride]);
        let mut out = Vec::new();
        for i in 0..left.rows {
            for j in 0..right.columns {
                let sum: f64 = (0..left.columns).map(|k| at(left, i, k) * at(right, k, j)).sum();
                out.push(sum + f64::from(start(i, j)));
            }
        }
        out
    }

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (5, 3, 2),
        (6, 64, 17),
        (7, 65, 64),
        (13, 128, 100),
        (12, 200, 33),
        (3, 16, 0),
        (0, 5, 4),
        (37, 31, 65),
    ];

    #[test]
    fn agrees_with_the_definition_in_every_layout_and_with_all_instructions() {
        for (rows, columns, depth) in SHAPES {
            let (a, b) = (values(rows * depth, 1), values(depth * columns, 2));
            let (bias, old) = (values(columns, 3), values(rows * (columns + 3), 4));
            let lefts = [Matrix::new(&a, rows, depth), Matrix::new(&a, depth, rows).transposed()];
            let rights = [Matrix::new(&b, depth, columns), Matrix::new(&b, columns, depth).transposed()];
            for (left, right) in lefts.into_iter().flat_map(|left| rights.map(|right| (left, right))) {
                for start in [Start::Zero, Start::Bias(&bias), Start::Out] {
                    let expected = reference(left, right, |i, j| match start {
                        Start::Zero => 0.0,
                        Start::Bias(bias) => bias[j],
                        Start::Out => old[i * (columns + 3) + j],
                    });
                    let mut bits: Option<Vec<f32>> = None;
                    for arch in archs() {
                        let mut packed = Packed::default();
                        packed.pack_for(arch, right);
                        let mut out = old.clone();
                        multiply_for(arch, left, packed.right(), start, &mut out, columns + 3);
                        for (i, row) in out.chunks(columns + 3).enumerate() {
                            assert_eq!(row[columns..], old[i * (columns + 3)..][columns..columns + 3]);
                            for (got, want) in row.iter().zip(&expected[i * columns..(i + 1) * columns]) {
                                assert!((f64::from(*got) - want).abs() < 2e-5, "{got} for {want}");
                            }
                        }
                        if crate::simd::fuses(arch) {
                            assert_eq!(*bits.get_or_insert_with(|| out.clone()), out);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn cuts_change_no_bit() {
        let (rows, columns, depth) = (29, 192, 75);
        let (a, b) = (values(rows * depth, 1), values(depth * columns, 2));
        let (left, right) = (Matrix::new(&a, rows, depth), Matrix::new(&b, depth, columns));
        let mut whole = vec![0.0; rows * columns];
        multiply(left, Packed::new(right).right(), Start::Zero, &mut whole, columns);
        let mut scratch = Packed::default();
        let mut in_place = vec![0.0; rows * columns];
        multiply(left, Right::of(right, &mut scratch), Start::Zero, &mut in_place, columns);
        assert_eq!(in_place, whole);
        let mut pieces = vec![0.0; rows * columns];
        for (first, count) in [(0, 11), (11, 18)] {
            for (start, length) in [(0, 40), (40, 35)] {
                let left = left.sub_rows(first, count).sub_columns(start, length);
                let right = Packed::new(right.sub_rows(start, length));
                multiply(left, right.right(), Start::Out, &mut pieces[first * columns..], columns);
            }
        }
        assert_eq!(pieces, whole);
        let mut part = vec![0.0; rows * 64];
        multiply(left, Packed::new(right).columns(128, 64), Start::Zero, &mut part, 64);
        assert!(part.chunks(64).zip(whole.chunks(columns)).all(|(part, whole)| *part == whole[128..]));
    }

    #[test]
    #[should_panic(expected = "left is too short")]
    fn a_factor_that_is_too_short_is_refused() {
        let a = [0.0; 10];
        let left = Matrix { values: &a, rows: 4, columns: 3, row_stride: 3, column_stride: 1 };
        let right = Packed::new(Matrix::new(&[0.0; 6], 3, 2));
        multiply(left, right.right(), Start::Zero, &mut [0.0; 8], 2);
    }
}
