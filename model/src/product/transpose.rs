//! Transposition, by square blocks that are turned in registers.

use super::Matrix;
use pulp::Arch;

/// `to[j · to_stride + i]` becomes element (i, j) of `from`, whose rows are contiguous.
///
/// # Panics
/// When they are not, or `to` is too short.
pub(crate) fn transpose(arch: Arch, from: Matrix<'_>, to: &mut [f32], to_stride: usize) {
    assert_eq!(from.column_stride, 1, "rows of {from:?}");
    match arch {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => simd.vectorize(
            #[inline(always)]
            || blocks(from, to, to_stride, |rows| x86::turn_16(simd, rows)),
        ),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(simd) => simd.vectorize(
            #[inline(always)]
            || blocks(from, to, to_stride, |rows| x86::turn_8(simd, rows)),
        ),
        _ => blocks::<4>(from, to, to_stride, |rows| std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))),
    }
}

/// By blocks of SIDE × SIDE; what is left at the sides goes value by value.
#[inline(always)]
fn blocks<const SIDE: usize>(
    from: Matrix<'_>,
    to: &mut [f32],
    to_stride: usize,
    turn: impl Fn([[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE],
) {
    let whole = |count: usize| count / SIDE * SIDE;
    let (rows, columns) = (whole(from.rows), whole(from.columns));
    for column in (0..columns).step_by(SIDE) {
        for row in (0..rows).step_by(SIDE) {
            let mut block = [[0.0; SIDE]; SIDE];
            for (i, line) in block.iter_mut().enumerate() {
                line.copy_from_slice(&from.values[(row + i) * from.row_stride + column..][..SIDE]);
            }
            for (j, line) in turn(block).iter().enumerate() {
                to[(column + j) * to_stride + row..][..SIDE].copy_from_slice(line);
            }
        }
    }
    let sides = [(0..rows, columns..from.columns), (rows..from.rows, 0..from.columns)];
    for (i, columns) in sides.into_iter().flat_map(|(rows, columns)| rows.map(move |row| (row, columns.clone()))) {
        for j in columns {
            to[j * to_stride + i] = from.values[i * from.row_stride + j];
        }
    }
}

/// A stage pairs rows and exchanges pieces twice as long as the stage before.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use pulp::x86::{V3, V4};
    use std::arch::x86_64::{__m256, __m512};
    use std::array::from_fn;

    #[inline(always)]
    pub(super) fn turn_16(simd: V4, rows: [[f32; 16]; 16]) -> [[f32; 16]; 16] {
        let f = simd.avx512f;
        let rows: [__m512; 16] = from_fn(|i| pulp::cast(rows[i]));
        let pairs: [__m512; 16] = from_fn(|i| match i % 2 {
            0 => f._mm512_unpacklo_ps(rows[i], rows[i + 1]),
            _ => f._mm512_unpackhi_ps(rows[i - 1], rows[i]),
        });
        // Of four rows from 4g on: number 4g + c has, in each quarter q, their column 4q + c.
        let fours: [__m512; 16] = from_fn(|i| {
            let first = i / 4 * 4 + i % 4 / 2;
            let (a, b) = (f._mm512_castps_pd(pairs[first]), f._mm512_castps_pd(pairs[first + 2]));
            f._mm512_castpd_ps(if i % 2 == 0 { f._mm512_unpacklo_pd(a, b) } else { f._mm512_unpackhi_pd(a, b) })
        });
        // Of eight rows from 8g on: number 8g + c has quarters 0 and 2, number 8g + 4 + c quarters 1 and 3.
        let eights: [__m512; 16] = from_fn(|i| {
            let first = i / 8 * 8 + i % 4;
            match i / 4 % 2 {
                0 => f._mm512_shuffle_f32x4::<0x88>(fours[first], fours[first + 4]),
                _ => f._mm512_shuffle_f32x4::<0xdd>(fours[first], fours[first + 4]),
            }
        });
        from_fn(|j| {
            let (quarter, c) = (j / 4, j % 4);
            let first = quarter % 2 * 4 + c;
            pulp::cast(match quarter / 2 {
                0 => f._mm512_shuffle_f32x4::<0x88>(eights[first], eights[first + 8]),
                _ => f._mm512_shuffle_f32x4::<0xdd>(eights[first], eights[first + 8]),
            })
        })
    }

    #[inline(always)]
    pub(super) fn turn_8(simd: V3, rows: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        let f = simd.avx;
        let rows: [__m256; 8] = from_fn(|i| pulp::cast(rows[i]));
        let pairs: [__m256; 8] = from_fn(|i| match i % 2 {
            0 => f._mm256_unpacklo_ps(rows[i], rows[i + 1]),
            _ => f._mm256_unpackhi_ps(rows[i - 1], rows[i]),
        });
        // Of four rows from 4g on: number 4g + c has, in each half h, their column 4h + c.
        let fours: [__m256; 8] = from_fn(|i| {
            let first = i / 4 * 4 + i % 4 / 2;
            match i % 2 {
                0 => f._mm256_shuffle_ps::<0x44>(pairs[first], pairs[first + 2]),
                _ => f._mm256_shuffle_ps::<0xee>(pairs[first], pairs[first + 2]),
            }
        });
        from_fn(|j| {
            let c = j % 4;
            pulp::cast(match j / 4 {
                0 => f._mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]),
                _ => f._mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::archs;

    #[test]
    fn every_element_changes_places_with_all_instructions() {
        for (rows, columns) in [(16, 16), (8, 24), (1, 1), (0, 5), (5, 0), (33, 47), (64, 256), (7, 65)] {
            let values: Vec<f32> = (0..(rows * (columns + 3)) as u32).map(|i| i as f32).collect();
            let from = Matrix::strided(&values, rows, columns, columns + 3);
            for arch in archs() {
                let mut to = vec![-1.0; columns * (rows + 2)];
                transpose(arch, from, &mut to, rows + 2);
                for (j, line) in to.chunks(rows + 2).enumerate() {
                    let expected = (0..rows).map(|i| from.row(i)[j]).chain([-1.0, -1.0]);
                    assert!(expected.eq(line.iter().copied()), "column {j} of {rows} × {columns} with {arch:?}");
                }
            }
        }
    }
}
