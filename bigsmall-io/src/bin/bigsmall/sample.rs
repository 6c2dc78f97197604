//! The entropy and the exponents of a tensor's weights, from a sample of them.

use bigsmall_io::{Dtype, TensorSpec};

/// Fewer weights than this say too little about a distribution of some thousand values.
pub(crate) const FEWEST: u64 = 32 << 10;

/// What a sample says about a tensor.
pub(crate) struct Sample {
    /// Bits of entropy a weight.
    pub(crate) entropy: f64,
    /// For floats: how many weights have the binary exponent `first + i`, and how many are zero or
    /// subnormal.
    pub(crate) exponents: Option<Exponents>,
}

/// How often each exponent occurs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Exponents {
    pub(crate) first: i32,
    pub(crate) counts: Vec<f64>,
    pub(crate) zeros: f64,
}

impl Exponents {
    /// Adds those of other weights, `scale` times.
    pub(crate) fn add(&mut self, other: &Exponents, scale: f64) {
        self.zeros += other.zeros * scale;
        if other.counts.is_empty() {
            return;
        }
        if self.counts.is_empty() {
            self.first = other.first;
        }
        while self.first > other.first {
            self.counts.insert(0, 0.0);
            self.first -= 1;
        }
        let from = (other.first - self.first) as usize;
        let len = self.counts.len().max(from + other.counts.len());
        self.counts.resize(len, 0.0);
        self.counts[from..].iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b * scale);
    }
}

/// Bits of the exponent and of the mantissa.
fn float(dtype: Dtype) -> Option<(u32, u32)> {
    match dtype {
        Dtype::BF16 => Some((8, 7)),
        Dtype::F32 => Some((8, 23)),
        Dtype::F64 => Some((11, 52)),
        Dtype::F16 => Some((5, 10)),
        Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => Some((4, 3)),
        Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => Some((5, 2)),
        _ => None,
    }
}

/// The most mantissa bits that are counted together with sign and exponent.
const JOINT: u32 = 7;

/// Measures little-endian weights. The entropy of a float is that of sign, exponent and its upper
/// mantissa bits together, and of each 8 of the bits below; that of other dtypes is the sum over
/// their bytes. Miller and Madow's term corrects what is missing in a sample.
pub(crate) fn measure(spec: &TensorSpec, bytes: &[u8]) -> Sample {
    let (dtype, unit) = (spec.dtype(), spec.dtype().unit_bytes());
    let units = bytes.chunks_exact(unit);
    let weights = (units.len() * unit * 8) as f64 / f64::from(dtype.bits());
    let value = |unit: &[u8]| unit.iter().rev().fold(0u64, |value, &b| value << 8 | u64::from(b));
    let Some((exponent, mantissa)) = float(dtype) else {
        let bits = (0..unit).map(|i| entropy(256, units.clone().map(|unit| u64::from(unit[i]))));
        return Sample { entropy: bits.sum::<f64>() / weights, exponents: None };
    };
    let joint = mantissa.min(JOINT).min(15 - exponent.min(15));
    let low = mantissa - joint;
    let mut bits = entropy(2 << (exponent + joint), units.clone().map(|u| value(u) >> low));
    let mut below = low;
    while below > 0 {
        let n = below.min(8);
        below -= n;
        let mask = (1 << n) - 1;
        bits += entropy(1 << n, units.clone().map(|u| value(u) >> below & mask));
    }
    let mut counts = vec![0.0; 1 << exponent];
    for unit in units {
        counts[(value(unit) >> mantissa) as usize & ((1 << exponent) - 1)] += 1.0;
    }
    let zeros = counts[0];
    let first = counts.iter().skip(1).position(|&n| n > 0.0).map_or(0, |i| i + 1);
    let last = counts.iter().rposition(|&n| n > 0.0).unwrap_or(0);
    let bias = (1 << (exponent - 1)) - 1;
    let exponents = match first {
        0 => Exponents { zeros, ..Exponents::default() },
        _ => Exponents { first: first as i32 - bias, counts: counts[first..=last].to_vec(), zeros },
    };
    Sample { entropy: bits / weights, exponents: Some(exponents) }
}

/// Bits of entropy of all symbols together, each below `n`.
fn entropy(n: usize, symbols: impl Iterator<Item = u64>) -> f64 {
    let mut counts = vec![0u32; n];
    let mut total = 0.0;
    for symbol in symbols {
        counts[symbol as usize] += 1;
        total += 1.0;
    }
    let used = counts.iter().filter(|&&n| n > 0);
    let sum: f64 = used.clone().map(|&n| f64::from(n) * (total / f64::from(n)).log2()).sum();
    let missing = (used.count().saturating_sub(1)) as f64 / (2.0 * std::f64::consts::LN_2);
    sum + missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dtype: Dtype, bytes: &[u8]) -> Sample {
        let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
        measure(&TensorSpec::new("t", dtype, &[n]).unwrap(), bytes)
    }

    #[test]
    fn entropies_are_those_that_are_known() {
        // A generator whose bits are all noise.
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        let noise: Vec<u8> = (0..1 << 20).map(|_| random() as u8).collect();
        for (dtype, bits) in [
            (Dtype::U8, 8.0),
            (Dtype::I64, 64.0),
            (Dtype::F4, 4.0),
            (Dtype::F8_E4M3, 8.0),
            (Dtype::BF16, 16.0),
            (Dtype::F16, 16.0),
            (Dtype::F32, 32.0),
            (Dtype::F64, 64.0),
        ] {
            let found = sample(dtype, &noise).entropy;
            assert!((found - bits).abs() < 0.1, "{dtype}: {found}");
            let constant = sample(dtype, &[0; 1 << 16]).entropy;
            assert!(constant.abs() < 1e-9, "{dtype}: {constant}");
        }
        // Mantissas of noise, one sign, four exponents: 2 and 7 bits. In f32 the rest is zero.
        let narrow: Vec<u8> =
            (0..1 << 19).flat_map(|_| (0x3f00 + (random() as u16 & 0x1ff)).to_le_bytes()).collect();
        let wide: Vec<u8> = narrow.chunks(2).flat_map(|u| [0, 0, u[0], u[1]]).collect();
        for (dtype, bytes) in [(Dtype::BF16, narrow), (Dtype::F32, wide)] {
            let found = sample(dtype, &bytes);
            assert!((found.entropy - 9.0).abs() < 0.01, "{dtype}: {}", found.entropy);
            let exponents = found.exponents.unwrap();
            assert_eq!((exponents.first, exponents.counts.len()), (-1, 4));
        }
    }

    #[test]
    fn exponents_of_several_tensors_are_added() {
        let ones = sample(Dtype::F32, &1f32.to_le_bytes().repeat(3)).exponents.unwrap();
        assert_eq!(ones, Exponents { first: 0, counts: vec![3.0], zeros: 0.0 });
        let quarters = sample(Dtype::BF16, &[0x80, 0x3e, 0, 0]).exponents.unwrap();
        assert_eq!(quarters, Exponents { first: -2, counts: vec![1.0], zeros: 1.0 });
        let mut both = ones.clone();
        both.add(&quarters, 2.0);
        assert_eq!(both, Exponents { first: -2, counts: vec![2.0, 0.0, 3.0], zeros: 2.0 });
        both.add(&Exponents::default(), 1.0);
        assert_eq!(both.counts.len(), 3);
    }
}
