//! The choice among several ways to compute the same product.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::layout::Resident;

/// How to multiply with compressed weights. All variants add in the same order, so their results
/// have the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variant {
    /// Decode while multiplying.
    #[default]
    Fused,
    /// Decode the matrix to the plain form first, then multiply: for large batches. The device
    /// keeps the buffer for the decoded matrix. It is as large as the largest matrix that was
    /// multiplied this way.
    DecodeFirst,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Variant::Fused => "fused",
            Variant::DecodeFirst => "decode-first",
        }
    }
}

/// The properties of a product on which the choice depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    form: &'static str,
    rows: usize,
    cols: usize,
    /// The batch, rounded up to a power of two.
    batch: usize,
}

/// The choices that [`Wgpu::tune`](crate::Wgpu::tune) has made on a device. A program can save them
/// as text and set them again in a later run. A product without an entry uses [`Variant::Fused`].
/// No choice changes a result.
///
/// ```
/// use bigsmall_gpu::Tuning;
/// let text = "dense3 14336 4096 128 decode-first\n";
/// let tuning: Tuning = text.parse()?;
/// assert_eq!(tuning.to_string(), text);
/// # Ok::<(), bigsmall_gpu::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning(BTreeMap<Key, Variant>);

fn key(form: Resident, rows: usize, cols: usize, batch: usize) -> Key {
    let batch = batch.checked_next_power_of_two().unwrap_or(usize::MAX);
    Key { form: form.name(), rows, cols, batch }
}

impl Tuning {
    /// The choice for a matrix and a batch.
    #[must_use]
    pub fn get(&self, form: Resident, rows: usize, cols: usize, batch: usize) -> Variant {
        self.0.get(&key(form, rows, cols, batch)).copied().unwrap_or_default()
    }

    /// Sets the choice for a matrix and a batch. Batches that round up to the same power of two
    /// share one choice.
    pub fn set(
        &mut self,
        form: Resident,
        rows: usize,
        cols: usize,
        batch: usize,
        variant: Variant,
    ) {
        self.0.insert(key(form, rows, cols, batch), variant);
    }
}

/// One line per choice: form, rows, columns, batch, variant.
impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (key, variant) in &self.0 {
            let Key { form, rows, cols, batch } = key;
            f.write_str(form)?;
            writeln!(f, " {rows} {cols} {batch} {}", variant.name())?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Tuning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut tuning = Tuning::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let wrong = || {
                Error::new(ErrorKind::Argument)
                    .expected("form, rows, columns, batch and variant")
                    .found(format!("{line:?} in a tuning table"))
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[form, rows, cols, batch, variant] = &words[..] else { return Err(wrong()) };
            let form = Resident::ALL.into_iter().find(|f| f.name() == form).ok_or_else(wrong)?;
            let variant = [Variant::Fused, Variant::DecodeFirst]
                .into_iter()
                .find(|v| v.name() == variant)
                .ok_or_else(wrong)?;
            let number = |word: &str| word.parse::<usize>().map_err(|_| wrong());
            tuning.set(form, number(rows)?, number(cols)?, number(batch)?, variant);
        }
        Ok(tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_back_and_nonsense_is_refused() {
        let mut tuning = Tuning::default();
        tuning.set(Resident::Dense3, 10, 20, 100, Variant::DecodeFirst);
        tuning.set(Resident::Dense4, 10, 20, 1, Variant::Fused);
        assert_eq!(tuning.get(Resident::Dense3, 10, 20, 65), Variant::DecodeFirst);
        assert_eq!(tuning.get(Resident::Dense3, 10, 20, 64), Variant::Fused);
        assert_eq!(tuning.to_string().parse::<Tuning>().unwrap(), tuning);
        for text in [
            "dense3",
            "dense5 1 1 1 fused",
            "dense3 1 1 -1 fused",
            "dense3 1 1 1 slow",
            "plain 1 1 1 fused x",
        ] {
            assert_eq!(text.parse::<Tuning>().unwrap_err().kind(), ErrorKind::Argument, "{text}");
        }
    }
}
