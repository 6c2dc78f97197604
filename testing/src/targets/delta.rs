//! Blocks of encoding 3.

use std::sync::OnceLock;

use bigsmall_codec::Delta;
use bigsmall_format::{Class, Dtype, Rule, TensorEncoding, encode_tensor_with_base};

use super::{Input, backends, edit, spec};
use crate::Random;
use crate::golden_deltas::changed;
use crate::oracle::ans::delta;

const DTYPES: [Dtype; 6] =
    [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8_E5M2, Dtype::U8];

/// For each dtype a head as the encoder writes it, the base's units, and those of a tensor that
/// differs from it by as much as `most`.
struct Sample {
    dtype: Dtype,
    head: Vec<u8>,
    base: Vec<u8>,
    new: Vec<u8>,
}

/// Units of the samples.
const N: usize = 1500;

fn samples() -> &'static [Sample] {
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let mut samples = Vec::new();
        for dtype in DTYPES {
            for (one_in, most) in [(1, 9), (30, 3), (1, u64::MAX >> 3)] {
                let mut random = Random::new(most);
                let width = dtype.unit_bytes();
                let mut base = random.bytes(N * width);
                // Exponents near each other, as those of weights.
                base.chunks_mut(width)
                    .for_each(|unit| unit[width - 1] = unit[width - 1] & 0x83 | 0x3c);
                let new = changed(&base, width, one_in, most, &mut random);
                let spec = spec(dtype, N);
                let delta = Delta::default();
                let plan = delta.plan_with_base(&spec, &new, &base).unwrap();
                samples.push(Sample { dtype, head: plan.head().to_vec(), base, new });
            }
        }
        samples
    })
}

/// A delta block and its head: any bytes, or a valid block with edits. Every backend must agree
/// with the oracle.
pub fn delta_block(data: &[u8]) {
    let mut input = Input(data);
    let samples = samples();
    let sample = &samples[usize::from(input.u8()) % samples.len()];
    let dtype = sample.dtype;
    let n = usize::from(input.u16()) % N + 1;
    let len = n * dtype.unit_bytes();
    let spec = spec(dtype, n);
    let choices = input.u8();
    let mut head = sample.head.clone();
    let base = match choices >> 4 & 1 {
        0 => sample.base[..len].to_vec(),
        _ => input.fill(len),
    };
    let mut block = if choices & 1 == 0 {
        input.0.to_vec()
    } else {
        let new = sample.new[..len].to_vec();
        let encoded = encode_tensor_with_base(&Delta::default(), &spec, &new, &base).unwrap();
        head = encoded.head().to_vec();
        encoded.block(0).to_vec()
    };
    if choices & 1 == 1 {
        if choices & 2 != 0 && !head.is_empty() {
            edit(&mut input, &mut head);
        }
        for _ in 0..choices >> 2 & 3 {
            edit(&mut input, &mut block);
        }
    }
    let oracle = delta::Head::read(dtype, &head);
    let oracle = oracle.and_then(|head| delta::decode(&head, &block, &base));
    for backend in backends() {
        let encoding = Delta::default().with_backend(backend).unwrap();
        let mut dst = base.clone();
        let found = encoding.open(&spec, &head).and_then(|decoder| {
            decoder.decode_blocks(&[&block], &mut dst)?;
            Ok(dst)
        });
        if let Err(error) = &found {
            assert_eq!(error.class(), Class::Corrupt, "{error:?}");
        }
        let found: Result<Vec<u8>, Rule> = found.map_err(|e| e.rule());
        assert!(
            found.as_ref().ok() == oracle.as_ref().ok(),
            "{backend:?}: {:?}, the oracle: {:?}",
            found.err(),
            oracle.as_ref().err()
        );
    }
}
