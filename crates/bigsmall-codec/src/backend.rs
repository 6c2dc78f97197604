//! Several implementations of one bitstream. A backend never changes a byte.

mod portable;
#[cfg(feature = "reference")]
mod reference;

use bigsmall_format::{Error, Result, Rule};

use crate::head::Head;

/// Lanes of a block: rANS states that share one stream of words.
pub(crate) const LANES: usize = 32;

/// The element of a row of 32 that lane `l` codes: even elements first, so that two vectors of 16 lanes of 32 bits make one vector
/// of 32 elements of 16 bits by a shift and an or.
pub(crate) const fn element(lane: usize) -> usize {
    if lane < 16 { 2 * lane } else { 2 * lane - 31 }
}

/// Which implementation does the work. Every one produces and accepts the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Plain Rust, on every machine.
    Portable,
    /// The crate `constriction`, step by step: slow, independent, for tests (feature `reference`).
    Reference,
}

impl Backend {
    /// Every backend that this program knows, the fastest first.
    pub const ALL: &'static [Backend] = &[Backend::Portable, Backend::Reference];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Portable => "portable",
            Backend::Reference => "reference",
        }
    }

    /// Whether this machine and build have it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Backend::Portable => true,
            Backend::Reference => cfg!(feature = "reference"),
        }
    }

    /// The fastest one that this machine has.
    #[must_use]
    pub fn best() -> Backend {
        Backend::Portable
    }

    /// The backend of that name; `auto` is [`best`](Self::best).
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] for a name that does not exist or a backend that this machine or build lacks.
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
        match self {
            Backend::Portable => Ok(&portable::Portable),
            #[cfg(feature = "reference")]
            Backend::Reference => Ok(&reference::Reference),
            #[cfg(not(feature = "reference"))]
            Backend::Reference => Err(Error::new(Rule::BackendMissing).found("reference")),
        }
    }
}

/// The state of decoding one block.
pub(crate) struct Job<'a> {
    pub(crate) states: [u32; LANES],
    /// The words and whatever follows them in the block.
    pub(crate) words: &'a [u8],
    /// The next word. In a damaged block it may run past the words: the caller finds out.
    position: usize,
    /// The table of every group of the block.
    pub(crate) group_tables: &'a [u8],
    /// The next group.
    group: usize,
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

/// The entropy coder of a backend. Implementations are this crate's own.
pub(crate) trait EntropyBackend: Sync {
    /// Decodes the next groups of every job, as many as fill its slice of `symbols`.
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]);

    /// Decodes whole blocks into their units, with zeros for carried residual bytes, where the backend has a kernel for this head;
    /// returns whether it did.
    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        residuals: &[&[u8]],
        units: &mut [&mut [u8]],
    ) -> bool {
        let _ = (head, jobs, residuals, units);
        false
    }

    /// Encodes `symbols`, last to first, beginning with `states` and leaving the decoder's first states there. Appends
    /// words in the order in which they arise, the reverse of the decoder's.
    fn encode(
        &self,
        head: &Head,
        symbols: &[u8],
        group_tables: &[u8],
        states: &mut [u32; LANES],
        words: &mut Vec<u16>,
    );
}
