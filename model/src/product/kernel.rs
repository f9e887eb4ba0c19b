//! The inner loops of a product: tiles of the result that stay in registers over the whole depth.
#![allow(unsafe_code)]

use super::{Matrix, Right, Start};
use crate::simd::prefetch;
use pulp::{Arch, Simd, WithSimd};

/// Rows of a tile. With four vectors of columns they fill the registers of AVX-512 and of NEON.
pub(crate) const TILE_ROWS: usize = 6;
/// Columns of the widest tile.
const TILE_COLUMNS_MAX: usize = 64;

/// Vectors of columns in a tile: as many as leave registers for the factors.
const fn tile_vectors(lanes: usize) -> usize {
    if lanes == 8 { 2 } else { 4 }
}

/// Columns of a tile.
pub(super) fn tile_columns(arch: Arch) -> usize {
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

/// out = left · right + start, for factors and an `out` whose extents were checked.
pub(super) struct Product<'a> {
    pub(super) left: Matrix<'a>,
    pub(super) right: Right<'a>,
    pub(super) start: Start<'a>,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
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
        const { assert!(VECTORS * S::F32_LANES <= TILE_COLUMNS_MAX) };
        let width = VECTORS * S::F32_LANES;
        for (panel, column) in (0..self.right.columns).step_by(width).enumerate() {
            let columns = width.min(self.right.columns - column);
            let mut row = 0;
            while row < self.left.rows {
                let rows = TILE_ROWS.min(self.left.rows - row);
                self.fetch_ahead(row + TILE_ROWS, column, width);
                if columns.is_multiple_of(S::F32_LANES) {
                    let start = match self.start {
                        Start::Zero => TileStart::Zero,
                        Start::Bias(bias) => TileStart::Row(bias[column..][..columns].as_ptr()),
                        Start::Out => TileStart::Out,
                    };
                    let out = self.out[row * self.out_stride + column..].as_mut_ptr();
                    let tile = self.tile(row, panel, out, self.out_stride, start);
                    // SAFETY: `multiply_for` has checked that the factors hold what a tile reads, and that `out` holds
                    // these rows and columns; the bias was cut to `columns`.
                    unsafe { tile.compute_columns::<S, VECTORS>(simd, rows, columns) };
                } else {
                    self.narrow_tile::<S, VECTORS>(simd, (row, rows), panel, (column, columns));
                }
                row += rows;
            }
        }
    }

    /// Asks for the tile of `out` at `row` and `column`: it may be far from the core, where logits are written or gradients of large
    /// matrices add up.
    #[inline(always)]
    fn fetch_ahead(&self, row: usize, column: usize, width: usize) {
        const LINE: usize = 16; // values
        for row in row..(row + TILE_ROWS).min(self.left.rows) {
            for column in (column..(column + width).min(self.right.columns)).step_by(LINE) {
                prefetch(self.out.as_ptr().wrapping_add(row * self.out_stride + column));
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
        unsafe { tile.compute_columns::<S, VECTORS>(simd, rows, columns) };
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
    /// The vectors that `columns` need.
    ///
    /// # Safety
    /// With `rows` in 1..=6 and `columns` in 1..=VECTORS · lanes: see [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_columns<S: Simd, const VECTORS: usize>(self, simd: S, rows: usize, columns: usize) {
        // SAFETY: passed on.
        unsafe {
            match columns.div_ceil(S::F32_LANES) {
                1 => self.compute_rows::<S, 1>(simd, rows),
                2 => self.compute_rows::<S, 2>(simd, rows),
                3 if VECTORS > 3 => self.compute_rows::<S, 3>(simd, rows),
                _ => self.compute_rows::<S, VECTORS>(simd, rows),
            }
        }
    }

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

/// # Safety
/// A vector's values must be readable at `from`.
#[inline(always)]
unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller's; no alignment is needed.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}
