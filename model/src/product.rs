//! Matrix products on slices: out = left · right, plus a bias or what `out` holds.
//!
//! The right factor lies in panels of as many columns as a tile has, so that the kernel reads it in order; the left one is
//! read where it lies, in rows or in columns. A factor that is used often (a weight) is packed once. Every element of the
//! result is one chain of multiply-adds over the depth, in ascending order, beginning with what it starts from. So it is the same
//! bits however the product is cut into rows, columns or stretches of the depth, by whichever number of threads, and with
//! AVX2 as with AVX-512.
//!
//! Nothing here runs in parallel by itself: callers cut rows or tiles, and know how much work one is.

mod kernel;
mod transpose;

use crate::simd::ARCH;
pub(crate) use kernel::TILE_ROWS;
use kernel::{Product, tile_columns};
use pulp::Arch;
use std::fmt;
pub(crate) use transpose::transpose;

/// A matrix in a slice: element (i, j) is `values[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy)]
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
        assert!(matrix.end() <= values.len(), "too few values: {matrix:?}");
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
        assert!(extent(first, count) <= self.rows, "rows {first} + {count} of {}", self.rows);
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
        end((self.rows, self.row_stride), (self.columns, self.column_stride))
    }
}

impl fmt::Debug for Matrix<'_> {
    /// Without the values, which may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        write!(f, "[{rows}, {columns}] by {row_stride} and {column_stride} in {} values", values.len())
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
            pack_panel(arch, panel, part, width);
        }
    }

    /// Gives the buffer the size for `matrix`; the columns that fill up the last panel are 0.
    fn reshape(&mut self, matrix: Matrix<'_>, width: usize) {
        (self.depth, self.columns, self.width) = (matrix.rows, matrix.columns, width);
        let panels = self.columns.div_ceil(width);
        let values = panels.checked_mul(self.depth).and_then(|rows| rows.checked_mul(width));
        self.values.resize(values.unwrap_or_else(|| panic!("a matrix beyond all memory")), 0.0);
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
        assert!(
            first.is_multiple_of(self.width.max(1)) && extent(first, count) <= self.columns,
            "columns {first} + {count}"
        );
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
        pack_panel(*ARCH, self.values, self.part, self.width);
    }
}

/// Columns of a panel on this machine.
#[must_use]
pub fn panel_columns() -> usize {
    tile_columns(*ARCH)
}

/// Writes `part` `[depth, ≤ width]` as `[depth, width]`, with zeros behind it.
fn pack_panel(arch: Arch, panel: &mut [f32], part: Matrix<'_>, width: usize) {
    if part.columns < width {
        panel.chunks_exact_mut(width).for_each(|row| row[part.columns..].fill(0.0));
    }
    if part.column_stride == 1 {
        for (row, to) in panel.chunks_exact_mut(width).enumerate() {
            to[..part.columns].copy_from_slice(part.row(row));
        }
    } else {
        transpose(arch, part.transposed(), panel, width);
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
    /// `matrix` where it lies, if its rows are contiguous and there are values enough behind them to read whole panels; or else
    /// packed into `scratch`.
    #[must_use]
    pub fn of(matrix: Matrix<'a>, scratch: &'a mut Packed) -> Self {
        let width = tile_columns(*ARCH);
        let Matrix { values, rows: depth, columns, row_stride, column_stride } = matrix;
        let here = Self { values, depth, columns, panel_stride: width, row_stride };
        if column_stride == 1 && here.end(width) <= values.len() {
            return here;
        }
        scratch.pack(matrix);
        scratch.right()
    }

    /// One beyond the largest index that the kernel reads.
    fn end(&self, width: usize) -> usize {
        let panels = self.columns.div_ceil(width);
        let last_panel = end((panels, self.panel_stride), (1, 1));
        let within = end((self.depth, self.row_stride), (width, 1));
        if last_panel == 0 || within == 0 { 0 } else { extent(last_panel - 1, within) }
    }
}

/// One beyond the largest index of an element of two dimensions, each (count, stride).
///
/// # Panics
/// When that is no number: the kernel's safety rests on it, and no slice is so long.
fn end(outer: (usize, usize), inner: (usize, usize)) -> usize {
    if outer.0 == 0 || inner.0 == 0 {
        return 0;
    }
    let last = |(count, stride): (usize, usize)| (count - 1).checked_mul(stride);
    match (last(outer), last(inner)) {
        (Some(outer), Some(inner)) => extent(extent(outer, inner), 1),
        _ => panic!("a matrix beyond all memory"),
    }
}

fn extent(a: usize, b: usize) -> usize {
    a.checked_add(b).unwrap_or_else(|| panic!("a matrix beyond all memory"))
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
    // The kernel's safety rests on these.
    assert_eq!(left.columns, right.depth, "depth of left and right");
    assert!(left.end() <= left.values.len(), "left is too short");
    assert!(right.end(tile_columns(arch)) <= right.values.len(), "right is too short");
    assert!(rows < 2 || out_stride >= columns, "rows of out overlap");
    assert!(end((rows, out_stride), (columns, 1)) <= out.len(), "out is too short");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), columns, "a bias per column");
    }
    if rows > 0 && columns > 0 {
        arch.dispatch(Product { left, right, start, out, out_stride });
    }
}

#[cfg(test)]
mod tests;
