//! How to save.

use crate::{CompressOptions, Encoding};

/// How to save tensors.
///
/// ```
/// use bigsmall_io::{Encoding, Level, SaveOptions};
/// let options = SaveOptions::default().encoding(Encoding::Ans(Level::Small)).replace(false);
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// The encoding to try. A tensor is stored raw if the encoding does not support it or does not
    /// make it smaller.
    pub encoding: Encoding,
    /// Whether to replace an existing file. It stays until the new one is complete. Without this,
    /// an existing file is an error.
    pub replace: bool,
}

impl Default for SaveOptions {
    fn default() -> Self {
        SaveOptions { encoding: Encoding::default(), replace: true }
    }
}

impl SaveOptions {
    /// The default encoding; an existing file is replaced.
    #[must_use]
    pub fn new() -> Self {
        SaveOptions::default()
    }

    /// Sets [`encoding`](Self#structfield.encoding).
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        self
    }

    /// Sets [`replace`](Self#structfield.replace).
    #[must_use]
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    pub(crate) fn compress(self) -> CompressOptions {
        CompressOptions::new().encoding(self.encoding).replace(self.replace)
    }
}
