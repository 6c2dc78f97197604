//! How much effort goes into size.

/// How much effort goes into size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// A smaller sample, longer segments, fewer symbols: encodes faster, heads of one byte (F16,
    /// FP8) by a half, and decodes those by a fifth faster.
    Fast,
    /// Decodes at full speed.
    #[default]
    Default,
    /// Finer symbols and a larger sample: smaller, at a third of the decoding speed.
    Small,
}

impl Level {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Level::Fast => "fast",
            Level::Default => "default",
            Level::Small => "small",
        }
    }
}
