//! How much effort goes into size.

/// How much effort goes into size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// Encodes faster than the default and compresses a little less: it plans with a smaller
    /// sample, longer segments and fewer symbols. F16 and FP8 are encoded 50 % faster and decoded
    /// 20 % faster.
    Fast,
    /// Decodes at full speed.
    #[default]
    Default,
    /// Finer symbols and a larger sample: smaller, at a third of the decoding speed. No tensor is
    /// larger than at the default level: before a tensor is encoded, it is read once more, and all
    /// of it is encoded in both ways. So encoding takes five times as long as by default.
    ///
    /// Zeros are coded apart wherever that is smaller by 1 %, by default only where it is by an
    /// eighth.
    ///
    /// Where the columns of a matrix of floats differ in scale, units of alike columns are coded
    /// together: eight classes of columns, 3 bits for each column. That is done where it makes the
    /// tensor smaller by 0.2 % or more. Such a tensor is decoded at about six tenths of the rate
    /// (`cargo bench --bench columns`).
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
