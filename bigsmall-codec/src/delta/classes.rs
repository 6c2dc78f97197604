//! The classes of units by the exponents of their bases (FORMAT.md section 10.3).

use bigsmall_format::Dtype;

/// Parts of a block whose units are moved in turn: the next place of a class depends on the last
/// one, and so a part alone would wait.
pub(crate) const PARTS: usize = 4;
/// For each part and class where its next value is.
pub(crate) type Starts = [[usize; 8]; PARTS];

/// Where the exponent of a unit lies. Dtypes without one have an empty mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) shift: u32,
    pub(crate) mask: u32,
}

impl Field {
    /// The exponent field of `dtype`.
    pub(crate) fn of(dtype: Dtype) -> Field {
        let (bits, shift) = match dtype {
            Dtype::BF16 => (8, 7),
            Dtype::F16 => (5, 10),
            Dtype::F32 => (8, 23),
            Dtype::F64 => (11, 52),
            Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => (4, 3),
            Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => (5, 2),
            _ => (0, 0),
        };
        Field { shift, mask: (1 << bits) - 1 }
    }

    /// Whether the dtype is a float with a sign.
    pub(crate) fn is_float(self) -> bool {
        self.mask != 0
    }
}

/// The division of units into classes by the exponent of the base's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Classes {
    /// How many there are.
    pub(crate) n: u32,
    /// The exponent of the highest class, which larger ones belong to as well.
    pub(crate) top: u32,
}

impl Classes {
    /// The class of a unit whose base has that exponent.
    #[inline(always)]
    pub(crate) fn of(self, exponent: u16) -> u8 {
        let last = self.n as u16 - 1;
        (exponent + last).saturating_sub(self.top as u16).min(last) as u8
    }

    /// `[less, more, last]`: the class of an exponent of 8 bits is the smaller one of `last` and
    /// `exponent - less + more`, where the subtraction stops at 0 and the addition at 255.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn steps(self) -> [u8; 3] {
        let last = self.n - 1;
        [self.top.saturating_sub(last), last.saturating_sub(self.top), last].map(|n| n as u8)
    }

    /// Where the values of each class begin, in the order of classes.
    pub(crate) fn starts(classes: &[u8]) -> Starts {
        let mut starts = [[0; 8]; PARTS];
        let len = classes.len() / PARTS;
        for (counts, classes) in starts.iter_mut().zip(classes.chunks_exact(len.max(1))) {
            // Two histograms, so that equal neighbours do not wait for each other.
            let mut other = [0; 8];
            for pair in classes.chunks(2) {
                counts[usize::from(pair[0] & 7)] += 1;
                if let Some(&class) = pair.get(1) {
                    other[usize::from(class & 7)] += 1;
                }
            }
            counts.iter_mut().zip(other).for_each(|(n, more)| *n += more);
        }
        let mut sum = 0;
        for class in 0..8 {
            for counts in &mut starts {
                let n = counts[class];
                counts[class] = sum;
                sum += n;
            }
        }
        starts
    }
}
