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
fn factors_that_do_not_fit_are_refused() {
    let a = [0.0; 12];
    let right = Packed::new(Matrix::new(&[0.0; 6], 3, 2));
    let left = Matrix::new(&a, 4, 3);
    let short = Matrix { values: &a[..10], ..left };
    let wrapping = Matrix { row_stride: 1 << 62, ..left };
    let beyond = Right { panel_stride: 0, row_stride: 1 << 62, ..right.right() };
    let product = |left: Matrix<'_>, right: Right<'_>, out: usize, stride: usize| {
        multiply(left, right, Start::Zero, &mut vec![0.0; out], stride);
    };
    let refused: [&dyn Fn(); 8] = [
        &|| product(short, right.right(), 8, 2),
        &|| product(wrapping, right.right(), 8, 2),
        &|| product(left, beyond, 8, 2),
        &|| product(left, right.right(), 7, 2),
        &|| product(left, right.right(), 8, 1),
        &|| product(left, right.right(), 8, 1 << 62),
        &|| product(left.sub_columns(0, 2), right.right(), 8, 2),
        &|| assert_eq!(Matrix::strided(&a, 2, 1, usize::MAX).rows(), 2),
    ];
    product(left, right.right(), 8, 2);
    for (case, refused) in refused.iter().enumerate() {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(refused));
        assert!(outcome.is_err(), "case {case}");
    }
}
