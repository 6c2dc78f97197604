//! x86-64.

/// The plain loops, compiled for the instructions `$features`. Functions, not closures: the
/// compiler knows that arguments do not overlap, and loses that for what a closure captures; `join`
/// took half as long again.
macro_rules! plain_loops {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn split_symbols(head: &Head, units: &[u8], symbols: &mut [u8]) {
            units::split_symbols(head, units, symbols);
        }

        #[target_feature(enable = $features)]
        fn split_residual(head: &Head, units: &[u8], residual: &mut [u8]) {
            units::split_residual(head, units, residual);
        }

        #[target_feature(enable = $features)]
        fn replace_exceptions(
            head: &Head,
            stand_ins: &StandIns,
            table_ids: &[u8],
            units: &[u8],
            symbols: &mut [u8],
            exceptions: &mut Vec<(u32, u16)>,
        ) -> Result<bool> {
            units::replace_exceptions(head, stand_ins, table_ids, units, symbols, exceptions)
        }

        #[target_feature(enable = $features)]
        fn join(
            head: &Head,
            symbols: &[[u8; GROUP]],
            residual: &[u8],
            lows: &[u8],
            widths: &[u8],
            units: &mut [u8],
        ) -> usize {
            units::join(head, symbols, residual, lows, widths, units)
        }
    };
}

pub(crate) mod avx2;
pub(crate) mod avx512;
