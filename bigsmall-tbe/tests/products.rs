//! Products of encoded matrices: the bits of the plain product, for every backend and number of
//! threads, and close to exact.

#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::LazyLock;

use bigsmall_tbe::{
    Backend, Dtype, EncodedTensor, Form, Matrix, Plain, Raw, Resident, Rule, Tbe, TensorSpec, View,
    Width, encode_tensor, matmul_many,
};
use bigsmall_testing::Random;
use bigsmall_testing::oracle::tbe::{self as oracle, DTYPES};

struct Case {
    spec: TensorSpec,
    values: Vec<u16>,
    bytes: Vec<u8>,
    encoded: EncodedTensor,
    x: Vec<f32>,
    batch: usize,
}

impl Case {
    fn new(dtype: Dtype, m: u64, k: u64, width: Width, permille: u64, batch: usize) -> Case {
        let spec = TensorSpec::new("w", dtype, &[m, k]).unwrap();
        let mut random = Random::new(m * 1_000_003 + k);
        // Weights of moderate size: the exponents of the window end at 1.
        let top = [127u16, 15, 7, 15][DTYPES.iter().position(|&d| d == dtype).unwrap()];
        let base = (top as u8 + 1).saturating_sub(width.window() as u8);
        let mut values =
            oracle::weights(&mut random, dtype, width.bits(), base, permille, (m * k) as usize);
        limit(dtype, top, &mut values);
        let bytes = oracle::bytes(dtype, &values);
        let encoded = oracle::encode(&spec, width.bits(), base, &values);
        let x = (0..k as usize * batch).map(|_| random.signed()).collect();
        Case { spec, values, bytes, encoded, x, batch }
    }

    fn m(&self) -> usize {
        self.spec.shape()[0] as usize
    }

    fn k(&self) -> usize {
        self.spec.shape()[1] as usize
    }

    fn weights(&self) -> Vec<f32> {
        self.values.iter().map(|&v| to_f32(self.spec.dtype(), v)).collect()
    }
}

/// Makes escapes 2^16 at most, neither infinite nor NaN, where `top` is the exponent of 1.
fn limit(dtype: Dtype, top: u16, values: &mut [u16]) {
    let (e_bits, m_bits, _, _) = oracle::fields(dtype);
    for value in values {
        let most = (u32::from(top) + 16).min((1 << e_bits) - 2) as u16;
        if u16::from(oracle::exponent(dtype, *value)) > most {
            *value = *value & !(((1 << e_bits) - 1) << m_bits) | most << m_bits;
        }
    }
}

/// By the definition of the formats, through f64.
fn to_f32(dtype: Dtype, value: u16) -> f32 {
    let (e_bits, m_bits, _, _) = oracle::fields(dtype);
    let bias = (1i32 << (e_bits - 1)) - 1;
    let e = i32::from(oracle::exponent(dtype, value));
    let mantissa = f64::from(value & ((1 << m_bits) - 1)) / f64::from(1u32 << m_bits);
    let sign = if value >> (e_bits + m_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let magnitude = if e == 0 {
        mantissa * f64::from(1 - bias).exp2()
    } else {
        (1.0 + mantissa) * f64::from(e - bias).exp2()
    };
    (sign * magnitude) as f32
}

/// The order of the additions, written down once more: 64 chains by k mod 64, summed over the bits
/// 3, 0, 5, 4, 2, 1 of that number after each 4096 weights, then those sums as a tree of
/// neighbours. Zeros follow up to a multiple of 64 weights.
fn reference(backend: Backend, w: &[f32], x: &[f32]) -> f32 {
    let [w, x] = [w, x].map(|values| {
        let mut values = values.to_vec();
        values.resize(values.len().next_multiple_of(64), 0.0);
        values
    });
    let mut sums: Vec<f32> = w
        .chunks(4096)
        .zip(x.chunks(4096))
        .map(|(w, x)| {
            let mut chains = [0f32; 64];
            for (i, (&w, &x)) in w.iter().zip(x).enumerate() {
                let chain = &mut chains[i % 64];
                *chain = if backend == Backend::Portable {
                    w * x + *chain
                } else {
                    w.mul_add(x, *chain)
                };
            }
            for bit in [3, 0, 5, 4, 2, 1] {
                for i in 0..64 {
                    if i >> bit & 1 == 0 {
                        chains[i] += chains[i | 1 << bit];
                    }
                }
            }
            chains[0]
        })
        .collect();
    while sums.len() > 1 {
        // Neighbours pair up; one without a neighbour waits for the next round.
        sums =
            sums.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
    }
    sums.first().copied().unwrap_or(0.0)
}

/// Pools of 1, 2, 3 and 7 threads.
static POOLS: LazyLock<[rayon::ThreadPool; 4]> = LazyLock::new(|| {
    [1, 2, 3, 7].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap())
});

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// Encoded, plain and reference agree on every backend and in every pool; the error keeps the
/// bound.
fn check(case: &Case) {
    let Case { spec, bytes, x, batch, .. } = case;
    let (m, k) = (case.m(), case.k());
    let view = View::new(&case.encoded).unwrap();
    let weights = case.weights();
    let forms = Form::ALL.iter().filter(|f| f.takes(spec.dtype()));
    let residents: Vec<Resident> = forms
        .map(|f| Resident::with_form(&case.encoded, &Tbe::default(), *f).unwrap())
        .inspect(|resident| check_original(resident, bytes))
        .collect();
    for backend in bigsmall_tbe::backends() {
        let mut expected = vec![0.0; m * batch];
        for b in 0..*batch {
            for row in 0..m {
                let (w, x) = (&weights[row * k..][..k], &x[b * k..][..k]);
                expected[b * m + row] = reference(backend, w, x);
            }
        }
        let plain = Plain::new(spec, bytes).unwrap().with_backend(backend).unwrap();
        let view = view.with_backend(backend).unwrap();
        for pool in &*POOLS {
            let mut y = vec![f32::NAN; m * batch];
            pool.install(|| plain.matmul(x, *batch, &mut y)).unwrap();
            assert_eq!(bits(&y), bits(&expected), "plain {backend} {spec:?} {batch}");
            y.fill(f32::NAN);
            pool.install(|| view.matmul(x, *batch, &mut y)).unwrap();
            assert_eq!(bits(&y), bits(&expected), "encoded {backend} {spec:?} {batch}");
            for resident in &residents {
                let resident = resident.clone().with_backend(backend).unwrap();
                y.fill(f32::NAN);
                pool.install(|| resident.matmul(x, *batch, &mut y)).unwrap();
                assert_eq!(bits(&y), bits(&expected), "{backend} {resident:?} {batch}");
            }
        }
        check_rows(&view, &plain, &residents, x, *batch, &expected);
        check_bound(&expected, &weights, x, m, k);
    }
}

/// The original bytes come back, whole and by rows.
fn check_original(resident: &Resident, bytes: &[u8]) {
    let m = resident.rows();
    let row = bytes.len() / m.max(1);
    for rows in [0..m, 0..m / 2, m / 3..m] {
        let mut original = vec![1; rows.len() * row];
        resident.decode_rows(rows.clone(), &mut original).unwrap();
        assert!(original == bytes[rows.start * row..rows.end * row], "{resident:?} {rows:?}");
    }
}

/// Ranges of rows have the bits of the whole product, and so have several matrices at once.
fn check_rows(
    view: &View<'_>,
    plain: &Plain<'_>,
    residents: &[Resident],
    x: &[f32],
    batch: usize,
    expected: &[f32],
) {
    let m = expected.len() / batch;
    for rows in [0..0, 0..m, 0..m / 3, m / 3..m - m / 5, m.saturating_sub(1)..m] {
        let of_rows = (0..batch).flat_map(|b| &expected[b * m..][..m][rows.clone()]);
        let of_rows: Vec<u32> = of_rows.map(|y| y.to_bits()).collect();
        let mut y = vec![f32::NAN; rows.len() * batch];
        view.matmul_rows(rows.clone(), x, batch, &mut y).unwrap();
        assert_eq!(bits(&y), of_rows, "encoded {view:?} {rows:?}");
        y.fill(f32::NAN);
        plain.matmul_rows(rows.clone(), x, batch, &mut y).unwrap();
        assert_eq!(bits(&y), of_rows, "plain {plain:?} {rows:?}");
        for resident in residents {
            // Their kernels are the best ones, and only the portable ones differ in bits.
            if format!("{plain:?}").contains("Portable") {
                continue;
            }
            y.fill(f32::NAN);
            resident.matmul_rows(rows.clone(), x, batch, &mut y).unwrap();
            assert_eq!(bits(&y), of_rows, "{resident:?} {rows:?}");
        }
    }
    let (mut first, mut second) = (vec![f32::NAN; m * batch], vec![f32::NAN; m * batch]);
    matmul_many(&[*view, *view], x, batch, &mut [&mut first, &mut second]).unwrap();
    assert_eq!(bits(&first), bits(expected), "first of two {view:?}");
    assert_eq!(bits(&second), bits(expected), "second of two {view:?}");
}

/// The bound is (n + ceil(log2 L) + 2) 2^-24 sum |w x| for |y - y64|, with chains of n = 64 and
/// L = 64 ceil(k / 4096) partial sums.
fn check_bound(y: &[f32], w: &[f32], x: &[f32], m: usize, k: usize) {
    let partial_sums = 64 * k.div_ceil(4096).max(1) as u64;
    let ulps = 64.0 + f64::from(partial_sums.next_power_of_two().ilog2()) + 2.0;
    for (i, &y) in y.iter().enumerate() {
        let (w, x) = (&w[i % m * k..][..k], &x[i / m * k..][..k]);
        let products = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
        let exact: f64 = products.clone().sum();
        let bound = ulps * (-24f64).exp2() * products.map(f64::abs).sum::<f64>();
        assert!((f64::from(y) - exact).abs() <= bound, "{y} is not {exact} within {bound}");
    }
}

/// Random shapes, batches and shares of escapes.
#[test]
fn random_matrices() {
    let mut random = Random::new(7);
    for _ in 0..60 {
        let m = 1 + random.below(30);
        let most = [300, 300, 300, 9000][random.below(4) as usize];
        let k = 1 + random.below(most);
        let batch = 1 + random.below(20) as usize * random.below(2) as usize;
        let permille = [0, 1, 30, 300][random.below(4) as usize];
        let width = Width::ALL[random.below(2) as usize];
        check(&Case::new(Dtype::BF16, m, k, width, permille, batch));
    }
}

/// Any bits at all, with infinities, NaNs, zeros and subnormals: the bytes come back, and weights
/// that fill up a tile do not meet them.
#[test]
fn any_bits() {
    let mut random = Random::new(9);
    for dtype in DTYPES {
        for (m, k) in [(3, 70), (2, 64), (1, 1), (5, 4100)] {
            let spec = TensorSpec::new("w", dtype, &[m, k]).unwrap();
            let (e_bits, m_bits, _, _) = oracle::fields(dtype);
            let mut values: Vec<u16> = (0..m * k).map(|_| random.bits() as u16).collect();
            // A row of infinities and NaNs.
            values[..k as usize].iter_mut().for_each(|v| *v |= ((1 << e_bits) - 1) << m_bits);
            let bytes = oracle::bytes(dtype, &values);
            let raw = encode_tensor(&Raw, &spec, &bytes).unwrap();
            let x = vec![1.0; k as usize];
            let forms = Form::ALL.iter().filter(|f| f.takes(dtype));
            for form in forms {
                let resident = Resident::with_form(&raw, &Raw, *form).unwrap();
                check_original(&resident, &bytes);
                for backend in bigsmall_tbe::backends() {
                    let plain = Plain::new(&spec, &bytes).unwrap().with_backend(backend).unwrap();
                    let resident = resident.clone().with_backend(backend).unwrap();
                    let [mut y, mut expected] = [0; 2].map(|_| vec![0.0; m as usize]);
                    plain.matmul(&x, 1, &mut expected).unwrap();
                    resident.matmul(&x, 1, &mut y).unwrap();
                    let mut pairs = y.iter().zip(&expected);
                    let same = pairs.all(|(y, e)| y == e || y.is_nan() && e.is_nan());
                    assert!(same, "{resident:?} {backend}: {y:?}, {expected:?}");
                }
            }
        }
    }
}

/// All pairs of the 16 high bytes that have numbers and of four that have none come back, in rows
/// that end at several places of a cell.
#[test]
fn every_pair_of_high_bytes() {
    const N: usize = 20;
    // The high byte n is more frequent than n + 1.
    let high = |n: usize| 0x30 + n as u16;
    let (mut first, mut second): (Vec<u16>, Vec<u16>) =
        (0..N * N).map(|i| (high(i / N), high(i % N))).unzip();
    for n in 0..N {
        for list in [&mut first, &mut second] {
            list.extend(vec![high(n); 8 * (N - n)]);
        }
    }
    let cells = first.chunks(64).zip(second.chunks(64));
    let row: Vec<u16> = cells.flat_map(|(a, b)| [a, b].concat()).map(|h| h << 8 | 0x5a).collect();
    for k in [row.len(), row.len() - 1, row.len() - 65, row.len() / 128 * 128, 1000] {
        let spec = TensorSpec::new("w", Dtype::BF16, &[2, k as u64]).unwrap();
        let bytes = oracle::bytes(Dtype::BF16, &[&row[..k], &row[row.len() - k..]].concat());
        let raw = encode_tensor(&Raw, &spec, &bytes).unwrap();
        let x = vec![0.25; k];
        for form in [Form::Nibbles, Form::Pairs] {
            let resident = Resident::with_form(&raw, &Raw, form).unwrap();
            for backend in bigsmall_tbe::backends() {
                let resident = resident.clone().with_backend(backend).unwrap();
                check_original(&resident, &bytes);
                let plain = Plain::new(&spec, &bytes).unwrap().with_backend(backend).unwrap();
                let (mut y, mut expected) = ([0.0; 2], [1.0; 2]);
                plain.matmul(&x, 1, &mut expected).unwrap();
                resident.matmul(&x, 1, &mut y).unwrap();
                assert_eq!(bits(&y), bits(&expected), "{form} {backend} {k}");
            }
        }
    }
}

/// Products that vanish leave the same zero in every form and batch, also if all weights are
/// negative.
#[test]
fn the_sign_of_zero() {
    for k in [64, 65, 128, 129, 200] {
        let spec = TensorSpec::new("w", Dtype::BF16, &[1, k]).unwrap();
        // Sixteen high bytes, all negative.
        let values: Vec<u16> = (0..k as u16).map(|i| 0x8080 | (i % 16) << 8).collect();
        let raw = encode_tensor(&Raw, &spec, &oracle::bytes(Dtype::BF16, &values)).unwrap();
        let x = vec![(-60f32).exp2(); 2 * k as usize];
        let weights: Vec<f32> = values.iter().map(|&v| to_f32(Dtype::BF16, v)).collect();
        for backend in bigsmall_tbe::backends() {
            let expected = reference(backend, &weights, &x[..k as usize]).to_bits();
            for form in Form::ALL {
                let resident = Resident::with_form(&raw, &Raw, *form).unwrap();
                let resident = resident.with_backend(backend).unwrap();
                let (mut one, mut two) = ([1.0], [1.0; 2]);
                resident.matmul(&x[..k as usize], 1, &mut one).unwrap();
                resident.matmul(&x, 2, &mut two).unwrap();
                let found = [one[0], two[0], two[1]].map(f32::to_bits);
                assert_eq!(found, [expected; 3], "{form} {backend} {k}");
            }
        }
    }
}

/// What the form costs, and what does not suit nibbles gets another form.
#[test]
fn forms_by_size() {
    let mut random = Random::new(11);
    let spec = TensorSpec::new("w", Dtype::BF16, &[64, 4096]).unwrap();
    let weights = oracle::weights(&mut random, Dtype::BF16, 3, 115, 1, 64 * 4096);
    let normal = encode_tensor(&Raw, &spec, &oracle::bytes(Dtype::BF16, &weights)).unwrap();
    for (form, bits) in [
        (Form::Plain, 16.0),
        (Form::Nibbles, 12.1),
        (Form::Pairs, 11.7),
        (Form::Bitmaps(Width::Three), 11.2),
        (Form::Bitmaps(Width::Four), 12.1),
    ] {
        let resident = Resident::with_form(&normal, &Raw, form).unwrap();
        assert_eq!(resident.form(), form);
        let found = resident.byte_len() as f64 * 8.0 / spec.n_elements() as f64;
        assert!((bits - 0.2..=bits).contains(&found), "{form}: {found} bits");
    }
    let best = Form::best(Dtype::BF16, bigsmall_tbe::backends().next().unwrap());
    assert_eq!(Resident::new(&normal, &Raw).unwrap().form(), best);

    // One escape in 200 weights, and one in 33.
    let three = Form::Bitmaps(Width::Three);
    for (permille, pairs, nibbles) in [(5, Form::Pairs, three), (30, three, three)] {
        let weights = oracle::weights(&mut random, Dtype::BF16, 3, 115, permille, 64 * 4096);
        let some = encode_tensor(&Raw, &spec, &oracle::bytes(Dtype::BF16, &weights)).unwrap();
        for backend in bigsmall_tbe::backends() {
            let expected = match Form::best(Dtype::BF16, backend) {
                Form::Pairs => pairs,
                Form::Nibbles => nibbles,
                best => best,
            };
            let found = Resident::for_backend(&some, &Raw, backend).unwrap().form();
            assert_eq!(found, expected, "{backend}, {permille} escapes in 1000 weights");
        }
    }
    // Pairs of tiles would be half empty.
    for (cols, form) in [(320, Form::Nibbles), (384, Form::Pairs)] {
        let spec = TensorSpec::new("w", Dtype::BF16, &[64, cols]).unwrap();
        let ones = encode_tensor(&Raw, &spec, &[0x80, 0x3f].repeat(64 * cols as usize)).unwrap();
        let found = Resident::new(&ones, &Raw).unwrap().form();
        assert_eq!(found, if best == Form::Pairs { form } else { best });
    }

    let bytes: Vec<u8> = (0..spec.byte_len()).map(|_| random.below(256) as u8).collect();
    let noise = encode_tensor(&Raw, &spec, &bytes).unwrap();
    assert_eq!(Resident::new(&noise, &Raw).unwrap().form(), Form::Plain);

    // Plain weights of the other dtypes are faster than bitmaps, which are smaller.
    for (dtype, bits) in [(Dtype::F16, 14.2), (Dtype::F8_E4M3, 7.2), (Dtype::F8_E5M2, 6.2)] {
        let spec = TensorSpec::new("w", dtype, &[64, 4096]).unwrap();
        let weights = oracle::weights(&mut random, dtype, 3, 3, 1, 64 * 4096);
        let raw = encode_tensor(&Raw, &spec, &oracle::bytes(dtype, &weights)).unwrap();
        let resident = Resident::new(&raw, &Raw).unwrap();
        assert_eq!((resident.form(), resident.byte_len()), (Form::Plain, spec.byte_len()));
        let form = Form::Bitmaps(Width::Three);
        let resident = Resident::with_form(&raw, &Raw, form).unwrap();
        let found = resident.byte_len() as f64 * 8.0 / spec.n_elements() as f64;
        assert!((bits - 0.2..=bits).contains(&found), "{dtype}: {found} bits");
    }

    let spec = TensorSpec::new("w", Dtype::F16, &[64, 64]).unwrap();
    let f16 = encode_tensor(&Raw, &spec, &vec![0; 8192]).unwrap();
    for form in [Form::Nibbles, Form::Pairs] {
        let error = Resident::with_form(&f16, &Raw, form).unwrap_err();
        assert_eq!(error.rule(), Rule::EncodingRefuses);
    }
    // An escape has 24 bits for its place.
    let spec = TensorSpec::new("w", Dtype::BF16, &[(1 << 24) + 1]).unwrap();
    let long = encode_tensor(&Raw, &spec, &vec![0; spec.byte_len() as usize]).unwrap();
    let error = Resident::with_form(&long, &Raw, Form::Pairs).unwrap_err();
    assert_eq!(error.rule(), Rule::EncodingRefuses);
    assert!(error.to_string().contains("rows of 16777217"), "{error}");
    let spec = TensorSpec::new("w", Dtype::F32, &[64, 64]).unwrap();
    let f32 = encode_tensor(&Raw, &spec, &vec![0; 16384]).unwrap();
    for form in Form::ALL {
        let error = Resident::with_form(&f32, &Raw, *form).unwrap_err();
        assert_eq!(error.rule(), Rule::EncodingRefuses);
    }
    assert_eq!(Resident::new(&f32, &Raw).unwrap_err().rule(), Rule::EncodingRefuses);
}

const SHAPES: [(u64, u64); 19] = [
    (1, 1),
    (1, 63),
    (63, 1),
    (1, 64),
    (7, 9),
    (64, 64),
    (5, 65),
    (17, 1000),
    (3, 4096),
    (3, 4097),
    // Columns that are multiplied a chunk at a time, by blocks of rows.
    (12, 6144),
    (13, 6145),
    (25, 12_352),
    (2, 8191),
    // Rows that cross blocks, at the end of a tile and within one.
    (33, 4000),
    (40, 4096),
    (3, 70_000),
    (140, 1001),
    // Blocks of many short rows.
    (1100, 64),
];

#[test]
fn every_shape_width_and_share_of_escapes() {
    for (m, k) in SHAPES {
        for &width in Width::ALL {
            for permille in [0, 30, 1000] {
                check(&Case::new(Dtype::BF16, m, k, width, permille, 1));
            }
        }
    }
}

#[test]
fn a_large_matrix() {
    let (m, k) = (4096, 11008);
    let spec = TensorSpec::new("w", Dtype::BF16, &[m as u64, k as u64]).unwrap();
    let mut random = Random::new(5);
    let mut values = oracle::weights(&mut random, Dtype::BF16, 3, 115, 30, m * k);
    limit(Dtype::BF16, 127, &mut values);
    let bytes = oracle::bytes(Dtype::BF16, &values);
    let x: Vec<f32> = (0..k).map(|_| random.signed()).collect();
    for &width in Width::ALL {
        let encoded = encode_tensor(&Tbe::new(width), &spec, &bytes).unwrap();
        let view = View::new(&encoded).unwrap();
        for backend in bigsmall_tbe::backends() {
            let (mut y, mut plain) = (vec![f32::NAN; m], vec![f32::NAN; m]);
            view.with_backend(backend).unwrap().matmul(&x, 1, &mut y).unwrap();
            let matrix = Plain::new(&spec, &bytes).unwrap().with_backend(backend).unwrap();
            matrix.matmul(&x, 1, &mut plain).unwrap();
            assert!(bits(&y) == bits(&plain), "{backend}");
            for row in [0, 1, 2000, 4095] {
                let of_row = values[row * k..][..k].iter().map(|&v| to_f32(Dtype::BF16, v));
                let expected = reference(backend, &of_row.collect::<Vec<_>>(), &x);
                assert_eq!(y[row].to_bits(), expected.to_bits(), "{backend}, row {row}");
            }
        }
    }
}

#[test]
fn every_batch_up_to_nine_and_64() {
    for batch in (2..=9).chain([64]) {
        for (m, k) in [(1, 1), (7, 9), (3, 200), (9, 8000)] {
            check(&Case::new(Dtype::BF16, m, k, Width::Three, 30, batch));
            check(&Case::new(Dtype::BF16, m, k, Width::Four, 5, batch));
        }
    }
}

#[test]
fn the_other_dtypes() {
    for dtype in [Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2] {
        for (m, k) in [(1, 1), (7, 9), (5, 300), (9, 8000), (3, 70_000)] {
            for (batch, permille) in [(1, 30), (3, 30), (1, 0), (1, 1000)] {
                check(&Case::new(dtype, m, k, Width::Three, permille, batch));
                check(&Case::new(dtype, m, k, Width::Four, permille, batch));
            }
        }
        for batch in [2, 5, 64, 130] {
            // More rows than become f32 together, and a last tile that is not whole.
            check(&Case::new(dtype, 15, 90, Width::Three, 30, batch));
            check(&Case::new(dtype, 2, 4200, Width::Four, 30, batch));
        }
    }
}

#[test]
fn a_column_is_the_same_in_every_batch() {
    for dtype in DTYPES {
        let case = Case::new(dtype, 20, 5000, Width::Three, 30, 13);
        let view = View::new(&case.encoded).unwrap();
        for backend in bigsmall_tbe::backends() {
            let view = view.with_backend(backend).unwrap();
            let mut together = vec![0.0; 20 * 13];
            view.matmul(&case.x, 13, &mut together).unwrap();
            for b in 0..13 {
                let mut alone = vec![0.0; 20];
                view.matmul(&case.x[b * 5000..][..5000], 1, &mut alone).unwrap();
                assert_eq!(bits(&alone), bits(&together[b * 20..][..20]), "{dtype} {backend}");
            }
        }
    }
}

/// Constant and all-positive rows: one long chain of f32 additions would err by hundreds of units
/// in the last place.
#[test]
fn rows_without_cancellation() {
    let k = 50_000usize;
    let spec = TensorSpec::new("w", Dtype::BF16, &[3, k as u64]).unwrap();
    let mut random = Random::new(1);
    let mut values = vec![0x3f81; 2 * k];
    values.extend((0..k).map(|_| 0x3d00 + random.below(0x280) as u16));
    values[k..2 * k].fill(0x3eab);
    let bytes = oracle::bytes(Dtype::BF16, &values);
    let encoded = encode_tensor(&Tbe::default(), &spec, &bytes).unwrap();
    let weights: Vec<f32> = values.iter().map(|&v| to_f32(Dtype::BF16, v)).collect();
    let constant = vec![0.1f32; k];
    let positive: Vec<f32> = (0..k).map(|_| random.signed().abs()).collect();
    for x in [constant, positive] {
        for backend in bigsmall_tbe::backends() {
            let mut y = [0.0; 3];
            let view = View::new(&encoded).unwrap().with_backend(backend).unwrap();
            view.matmul(&x, 1, &mut y).unwrap();
            check_bound(&y, &weights, &x, 3, k);
            // Far inside: the chains are short.
            for (row, &y) in y.iter().enumerate() {
                let exact: f64 = weights[row * k..][..k]
                    .iter()
                    .zip(&x)
                    .map(|(&w, &x)| f64::from(w) * f64::from(x))
                    .sum();
                assert!((f64::from(y) / exact - 1.0).abs() <= 32.0 * (-24f64).exp2());
            }
        }
    }
}

/// Zero-mean rows of the size that layers have: at most 16 units of the sum of magnitudes.
#[test]
fn rows_with_cancellation() {
    let case = Case::new(Dtype::BF16, 16, 11008, Width::Four, 0, 1);
    let weights = case.weights();
    for backend in bigsmall_tbe::backends() {
        let mut y = vec![0.0; 16];
        let view = View::new(&case.encoded).unwrap().with_backend(backend).unwrap();
        view.matmul(&case.x, 1, &mut y).unwrap();
        for (row, &y) in y.iter().enumerate() {
            let products = weights[row * 11008..][..11008]
                .iter()
                .zip(&case.x)
                .map(|(&w, &x)| f64::from(w) * f64::from(x));
            let exact: f64 = products.clone().sum();
            let magnitudes: f64 = products.map(f64::abs).sum();
            assert!((f64::from(y) - exact).abs() <= 16.0 * (-24f64).exp2() * magnitudes);
        }
    }
}

#[test]
fn nothing_to_multiply() {
    for backend in bigsmall_tbe::backends() {
        for (m, k, batch) in [(0, 5, 2), (5, 0, 2), (5, 5, 0), (0, 0, 1), (0, 0, 0)] {
            let case = Case::new(Dtype::BF16, m, k, Width::Three, 30, batch);
            let mut y = vec![f32::NAN; m as usize * batch];
            let plain = Plain::new(&case.spec, &case.bytes).unwrap().with_backend(backend).unwrap();
            plain.matmul(&case.x, batch, &mut y).unwrap();
            assert!(y.iter().all(|&y| y == 0.0));
            y.fill(f32::NAN);
            let view = View::new(&case.encoded).unwrap().with_backend(backend).unwrap();
            view.matmul(&case.x, batch, &mut y).unwrap();
            assert!(y.iter().all(|&y| y == 0.0));
        }
    }
}

#[test]
fn mistakes_are_errors() {
    let case = Case::new(Dtype::BF16, 6, 10, Width::Three, 30, 2);
    let matrix = Matrix::new(case.encoded.clone()).unwrap();
    let plain = Plain::new(&case.spec, &case.bytes).unwrap();
    let mut y = vec![0.0; 12];
    matrix.matmul(&case.x, 2, &mut y).unwrap();
    for (x, batch, m) in
        [(19, 2, 12), (21, 2, 12), (20, 2, 11), (20, 2, 13), (20, 3, 12), (20, usize::MAX, 12)]
    {
        let (x, mut y) = (vec![0.0; x], vec![0.0; m]);
        let error = matrix.matmul(&x, batch, &mut y).unwrap_err();
        assert_eq!((error.rule(), error.tensor()), (Rule::BufferLength, Some("w")));
        let error = plain.matmul(&x, batch, &mut y).unwrap_err();
        assert_eq!(error.rule(), Rule::BufferLength);
        let error = matmul_many(&[matrix.view()], &x, batch, &mut [&mut y]).unwrap_err();
        assert_eq!(error.rule(), Rule::BufferLength);
    }
    for rows in [0..7, 7..7, 6..9, Range { start: 3, end: 2 }] {
        let mut y = vec![0.0; 2 * rows.len()];
        let error = matrix.matmul_rows(rows.clone(), &case.x, 2, &mut y).unwrap_err();
        assert_eq!((error.rule(), error.tensor()), (Rule::RangeOutOfBounds, Some("w")));
        let error = plain.matmul_rows(rows, &case.x, 2, &mut y).unwrap_err();
        assert_eq!(error.rule(), Rule::RangeOutOfBounds);
    }
    let error = matrix.matmul_rows(0..3, &case.x, 2, &mut y).unwrap_err();
    assert_eq!(error.rule(), Rule::BufferLength);
    let error = Plain::new(&case.spec, &case.bytes[2..]).unwrap_err();
    assert_eq!(error.rule(), Rule::BufferLength);

    // Several matrices: one y each, and all of one width.
    let other = Case::new(Dtype::BF16, 6, 11, Width::Three, 30, 2);
    let other = Matrix::new(other.encoded).unwrap();
    let mut z = vec![0.0; 12];
    let views = [matrix.view(), other.view()];
    let error = matmul_many(&views, &case.x, 2, &mut [&mut y, &mut z]).unwrap_err();
    assert_eq!(error.rule(), Rule::BufferLength);
    let error = matmul_many(&views, &case.x, 2, &mut [&mut y]).unwrap_err();
    assert_eq!(error.rule(), Rule::BufferLength);
    matmul_many::<View<'_>>(&[], &case.x, 2, &mut []).unwrap();

    let ints = TensorSpec::new("i", Dtype::I16, &[1, 10]).unwrap();
    let error = Plain::new(&ints, &[0; 20]).unwrap_err();
    assert_eq!(error.rule(), Rule::EncodingRefuses);
}

/// The first dimension is the rows, the others are the columns; one dimension, or none, is a row.
#[test]
fn tensors_that_are_no_matrices() {
    let case = Case::new(Dtype::BF16, 6, 60, Width::Three, 30, 2);
    let mut expected = vec![0.0; 12];
    Plain::new(&case.spec, &case.bytes).unwrap().matmul(&case.x, 2, &mut expected).unwrap();
    for (m, shape) in [
        (6, &[6, 60][..]),
        (6, &[6, 3, 20]),
        (6, &[6, 1, 60, 1]),
        (1, &[60]),
        (1, &[1, 1, 60]),
        (60, &[60, 1, 1]),
        (1, &[]),
        (0, &[0, 6, 10]),
        (6, &[6, 0, 10]),
        (6, &[6, 10, 0]),
    ] {
        let spec = TensorSpec::new("w", Dtype::BF16, shape).unwrap();
        let bytes = case.bytes[..spec.byte_len() as usize].to_vec();
        let k =
            shape.iter().skip(usize::from(shape.len() > 1)).fold(1u64, |k, n| k.wrapping_mul(*n));
        let (matrix, x) = (TensorSpec::new("w", Dtype::BF16, &[m, k]).unwrap(), &case.x);
        let x = &x[..2 * k as usize];
        let [mut plain, mut encoded, mut expected] = [0; 3].map(|_| vec![1.0; 2 * m as usize]);
        Plain::new(&matrix, &bytes).unwrap().matmul(x, 2, &mut expected).unwrap();
        Plain::new(&spec, &bytes).unwrap().matmul(x, 2, &mut plain).unwrap();
        let tensor = encode_tensor(&Tbe::new(Width::Three), &spec, &bytes).unwrap();
        Matrix::new(tensor).unwrap().matmul(x, 2, &mut encoded).unwrap();
        assert_eq!((&plain, &encoded), (&expected, &expected), "{shape:?}");
    }
    // Their rows are those of the matrix.
    let spec = TensorSpec::new("w", Dtype::BF16, &[6, 3, 20]).unwrap();
    let tensor = encode_tensor(&Tbe::new(Width::Three), &spec, &case.bytes).unwrap();
    let mut rows = [0.0; 2];
    View::new(&tensor).unwrap().matmul_rows(3..5, &case.x[..60], 1, &mut rows).unwrap();
    assert_eq!(rows, expected[3..5]);
}

/// Different matrices, one of them without rows, in pieces that hold rows of two of them.
#[test]
fn several_matrices() {
    for batch in [1, 3] {
        let k = 3000;
        let cases: Vec<Case> = [(100, Dtype::BF16), (0, Dtype::BF16), (33, Dtype::F16)]
            .map(|(m, dtype)| Case::new(dtype, m, k, Width::Three, 30, batch))
            .into();
        let x = &cases[0].x;
        for backend in bigsmall_tbe::backends() {
            let views = cases.iter().map(|case| View::new(&case.encoded).unwrap());
            let views: Vec<_> = views.map(|view| view.with_backend(backend).unwrap()).collect();
            let mut alone: Vec<_> =
                cases.iter().map(|case| vec![f32::NAN; case.m() * batch]).collect();
            for (view, y) in views.iter().zip(&mut alone) {
                view.matmul(x, batch, y).unwrap();
            }
            for pool in &*POOLS {
                let mut y: Vec<_> = alone.iter().map(|y| vec![f32::NAN; y.len()]).collect();
                let mut slices: Vec<&mut [f32]> = y.iter_mut().map(|y| &mut y[..]).collect();
                pool.install(|| matmul_many(&views, x, batch, &mut slices)).unwrap();
                for (y, alone) in y.iter().zip(&alone) {
                    assert_eq!(bits(y), bits(alone), "{views:?}");
                }
            }
        }
    }
}

#[test]
fn a_backend_of_another_machine_is_refused() {
    let available: Vec<_> = bigsmall_tbe::backends().collect();
    assert_eq!(available.last(), Some(&Backend::Portable));
    for &backend in Backend::ALL {
        let spec = TensorSpec::new("w", Dtype::BF16, &[0, 0]).unwrap();
        let plain = Plain::new(&spec, &[]).unwrap().with_backend(backend);
        assert_eq!(plain.is_ok(), available.contains(&backend));
        let tbe = Tbe::default().with_backend(backend);
        assert_eq!(tbe.is_ok(), available.contains(&backend));
        if let Err(e) = tbe {
            assert_eq!(e.rule(), Rule::BackendMissing);
        }
    }
}
