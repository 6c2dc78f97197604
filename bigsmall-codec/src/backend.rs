//! Several implementations of one bitstream. A backend never changes a byte.

pub(crate) mod portable;
#[cfg(feature = "reference")]
mod reference;

use bigsmall_format::{Ahead, Error, Result, Rule};

#[cfg(target_arch = "aarch64")]
use crate::arch::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{avx2::Avx2, avx512::Avx512};
use crate::head::Head;
use crate::planes::GROUP;
use crate::units::{self, CostTable, StandIns};

/// Lanes of a block: rANS states that share one stream of words. Of a row of 32 the first half of
/// the lanes codes the even elements, so that two vectors of 16 lanes of 32 bits make one vector of
/// 32 elements of 16 bits by a shift and an or.
pub(crate) const LANES: usize = 32;

/// Which implementation does the work. Every one produces and accepts the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// AVX-512 with VBMI2 (x86-64).
    Avx512,
    /// AVX2 (x86-64).
    Avx2,
    /// NEON (64-bit ARM).
    Neon,
    /// Plain Rust, on every machine.
    Portable,
    /// The crate `constriction`, step by step: slow, independent, for tests (feature `reference`).
    Reference,
}

impl Backend {
    /// Every backend that this program knows, the fastest first.
    pub const ALL: &'static [Backend] =
        &[Backend::Avx512, Backend::Avx2, Backend::Neon, Backend::Portable, Backend::Reference];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Avx512 => "avx512",
            Backend::Avx2 => "avx2",
            Backend::Neon => "neon",
            Backend::Portable => "portable",
            Backend::Reference => "reference",
        }
    }

    /// Whether this machine and build have it.
    #[must_use]
    pub fn is_available(self) -> bool {
        self.implementation().is_ok()
    }

    /// The fastest one that this machine has.
    #[must_use]
    pub fn best() -> Backend {
        Backend::ALL.iter().copied().find(|b| b.is_available()).unwrap_or(Backend::Portable)
    }

    /// The backend of that name; `auto` is [`best`](Self::best).
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] for a name that does not exist or a backend that this machine or
    /// build lacks.
    ///
    /// ```
    /// use bigsmall_codec::Backend;
    /// assert_eq!(Backend::from_name("portable")?, Backend::Portable);
    /// # Ok::<(), bigsmall_codec::Error>(())
    /// ```
    pub fn from_name(name: &str) -> Result<Backend> {
        if name == "auto" {
            return Ok(Backend::best());
        }
        let found = Backend::ALL.iter().copied().find(|b| b.name() == name && b.is_available());
        found.ok_or_else(|| {
            let have: Vec<_> =
                Backend::ALL.iter().filter(|b| b.is_available()).map(|b| b.name()).collect();
            Error::new(Rule::BackendMissing).expected(have.join(", ")).found(name)
        })
    }

    pub(crate) fn implementation(self) -> Result<&'static dyn EntropyBackend> {
        let found: Option<&'static dyn EntropyBackend> = match self {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => Avx512::new().map(|b| b as _),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => Avx2::new().map(|b| b as _),
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => Some(&Neon),
            Backend::Portable => Some(&portable::Portable),
            #[cfg(feature = "reference")]
            Backend::Reference => Some(&reference::Reference),
            #[allow(unreachable_patterns)] // where every backend is built in
            _ => None,
        };
        found.ok_or_else(|| Error::new(Rule::BackendMissing).found(self.name()))
    }
}

/// The state of decoding one block.
pub(crate) struct Job<'a> {
    pub(crate) states: [u32; LANES],
    /// The words and whatever follows them in the block.
    pub(crate) words: &'a [u8],
    /// The next word. In a damaged block it may run past the words: the caller finds out.
    pub(crate) position: usize,
    /// The table of every group of the block.
    pub(crate) group_tables: &'a [u8],
    /// The next group.
    pub(crate) group: usize,
}

impl<'a> Job<'a> {
    pub(crate) fn new(states: [u32; LANES], words: &'a [u8], group_tables: &'a [u8]) -> Self {
        Job { states, words, position: 0, group_tables, group: 0 }
    }

    /// Words used so far.
    pub(crate) fn position(&self) -> usize {
        self.position
    }
}

/// One block to encode, last symbol to first.
pub(crate) struct EncodeJob<'a> {
    /// Whole groups of symbols; each has a frequency in its group's table.
    pub(crate) symbols: &'a [u8],
    /// The table of every group.
    pub(crate) group_tables: &'a [u8],
    /// The decoder's end states to begin with; afterwards its first states.
    pub(crate) states: &'a mut [u32; LANES],
    /// Room for one word a symbol and [`ROOM`] more. The words end at its end, in the decoder's
    /// order.
    pub(crate) words: &'a mut [u16],
    /// Where they begin.
    pub(crate) begin: &'a mut usize,
    /// The units of a block that comes later, to be fetched meanwhile: taking them apart waits for
    /// memory and nothing else.
    pub(crate) ahead: Ahead<'a>,
}

/// A backend may write so many words before the first that it keeps.
pub(crate) const ROOM: usize = 32;

/// The entropy coder of a backend. Implementations are this crate's own.
pub(crate) trait EntropyBackend: Sync {
    /// Decodes the next groups of every job, as many as fill its slice of `symbols`.
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]);

    /// [`units::split_symbols`].
    fn split_symbols(&self, head: &Head, units: &[u8], symbols: &mut [u8]) {
        units::split_symbols(head, units, symbols);
    }

    /// [`units::split_residual`].
    fn split_residual(&self, head: &Head, units: &[u8], residual: &mut [u8]) {
        units::split_residual(head, units, residual);
    }

    /// [`units::choose_tables`].
    fn choose_tables(&self, head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
        units::choose_tables(head, costs, symbols, ids);
    }

    /// [`units::replace_exceptions`].
    fn replace_exceptions(
        &self,
        head: &Head,
        stand_ins: &StandIns,
        table_ids: &[u8],
        units: &[u8],
        symbols: &mut [u8],
        exceptions: &mut Vec<(u32, u16)>,
    ) -> Result<bool> {
        units::replace_exceptions(head, stand_ins, table_ids, units, symbols, exceptions)
    }

    /// [`units::join`].
    fn join(
        &self,
        head: &Head,
        symbols: &[[u8; GROUP]],
        residual: &[u8],
        lows: &[u8],
        widths: &[u8],
        units: &mut [u8],
    ) -> usize {
        units::join(head, symbols, residual, lows, widths, units)
    }

    /// Decodes the first groups of every job straight into its units, where the backend has a
    /// kernel for this head: as many as the residuals are complete for. Returns their number,
    /// the same for all jobs. Has `ahead` fetched meanwhile.
    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        residuals: &[&[u8]],
        units: &mut [&mut [u8]],
        ahead: Ahead<'_>,
    ) -> usize {
        let _ = (head, jobs, residuals, units, ahead);
        0
    }

    /// Encodes every job.
    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]);
}
