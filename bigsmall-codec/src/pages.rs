//! Many small buffers of one kind, coded with tables that they share (FORMAT.md section 7.7).
#![warn(clippy::unwrap_used)]

use std::fmt;

use bigsmall_format::internal::{Ahead, reserve, xxh3};
use bigsmall_format::{
    Backend, Dtype, EncodedTensor, EncodedView, EncodingId, Error, Result, Rule, TensorSpec,
};

use crate::backend::{self, kernels};
use crate::block;
use crate::head::Head;
use crate::kernels::Kernels;
use crate::layout::Layout;
use crate::level::Level;
use crate::plan;
use crate::planes::GROUP;
use crate::scratch::{Pool, with_scratch};
use crate::table::FrequencyTable;

/// Checksum, number of original bytes, number of the tables.
const HEADER: usize = 16;
/// Bytes of the header that the checksum does not cover: itself.
const CHECKSUM: usize = 8;
/// Units of a page, at most.
const MAX_UNITS: usize = 1 << 24;
/// Groups from which on a page is cut into blocks.
const SPLIT_GROUPS: usize = 16;
/// Units of a page for each pair of blocks, at most.
const PAIR_UNITS: usize = 1 << 17;
/// Blocks that are decoded at once.
const PAIR: usize = 2;
/// Bytes of the head of a raw block.
const RAW_HEADER: usize = 8;

/// Codes many small buffers of one kind: pages of a KV cache, activations, gradients. Tables are
/// trained once on samples and shared by all pages; a page holds no tables of its own.
///
/// Whatever the tables were trained on, every page comes back bit by bit: values that the tables do
/// not know take more bytes. A page that does not shrink is stored as it is, so
/// [`max_encoded_len`](Self::max_encoded_len) bounds every page.
///
/// Bytes are those of the values, little-endian. A page is coded on the thread that calls; many
/// threads can use one `Pages` at once. Memory: tables take about 100 KB; a thread that encodes
/// needs about 3 bytes and two units for each unit of a page, which the process keeps for the next
/// page. Decoding needs none.
///
/// ```
/// use bigsmall_codec::{Dtype, Pages};
/// let wave = |from: u32| -> Vec<u8> {
///     let values = (from..from + 8192).map(|i| half::bf16::from_f32((i as f32).sin()));
///     values.flat_map(|v| v.to_le_bytes()).collect()
/// };
/// let pages = Pages::train(Dtype::BF16, &[&wave(0), &wave(10_000)])?;
///
/// let page = wave(20_000);
/// let mut slot = vec![0; pages.max_encoded_len(page.len())];
/// let n = pages.encode_page(&page, &mut slot)?;
/// assert!(n < page.len() * 3 / 4);
/// let mut back = vec![0; page.len()];
/// pages.decode_page(&slot[..n], &mut back)?;
/// assert_eq!(back, page);
///
/// // The tables can be stored, for pages that outlive the program.
/// let again = Pages::from_bytes(&pages.to_bytes())?;
/// again.decode_page(&slot[..n], &mut back)?;
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
pub struct Pages {
    dtype: Dtype,
    head_bytes: Vec<u8>,
    /// Decoding and encoding each need the head in their own form.
    head: Head,
    encoder: block::Encoder,
    kernels: &'static dyn Kernels,
    backend: Backend,
    /// What a page names its tables by.
    id: u32,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pages { dtype, backend, id, .. } = self;
        f.debug_struct("Pages")
            .field("dtype", dtype)
            .field("backend", backend)
            .field("id", id)
            .finish_non_exhaustive()
    }
}

/// Memory that encoding keeps from page to page.
#[derive(Default)]
struct Scratch {
    blocks: block::Scratch,
    encoded: Vec<u8>,
    lens: Vec<u32>,
}

static SCRATCH: Pool<Scratch> = Pool::new(Vec::new());

/// How a page is cut: its number of blocks, and the units of the first and of every other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    n_blocks: usize,
    first: usize,
    other: usize,
}

impl Cut {
    fn of(n_units: usize) -> Cut {
        let groups = n_units / GROUP;
        let n_blocks = match n_units {
            0 => 0,
            _ if groups < SPLIT_GROUPS => 1,
            // An even number: two blocks are decoded at once.
            _ => PAIR * n_units.div_ceil(PAIR_UNITS),
        };
        let other = groups / n_blocks.max(1) * GROUP;
        Cut { n_blocks, first: n_units - other * n_blocks.saturating_sub(1), other }
    }
}

impl Pages {
    /// Trains tables for pages of `dtype` on `samples`, at [`Level::Default`].
    ///
    /// Samples are little-endian bytes of values, such as some pages of every layer. Of their units
    /// a quarter is looked at, at least 65,536 and at most 131,072. Pages that differ from all
    /// samples are coded exactly, in more bytes. Memory: the samples once more.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] if a sample does not consist of whole units, or if all of them hold
    /// less than 256 units; [`Rule::Memory`].
    pub fn train(dtype: Dtype, samples: &[&[u8]]) -> Result<Pages> {
        Pages::train_with(dtype, samples, Level::Default)
    }

    /// Trains tables with the effort `level`. For floats, [`Level::Small`] looks at up to 1,048,576
    /// units; pages become a little smaller, and are decoded at a third of the speed.
    ///
    /// # Errors
    /// Those of [`train`](Self::train).
    pub fn train_with(dtype: Dtype, samples: &[&[u8]], level: Level) -> Result<Pages> {
        let unit_bytes = dtype.unit_bytes();
        let mut all = Vec::new();
        reserve(&mut all, samples.iter().map(|sample| sample.len()).sum())?;
        for sample in samples {
            if !sample.len().is_multiple_of(unit_bytes) {
                return Err(Error::new(Rule::BufferLength)
                    .expected(format!("units of {unit_bytes} bytes, for {dtype}"))
                    .found(sample.len()));
            }
            all.extend_from_slice(sample);
        }
        // Whole groups are whole elements, also of dtypes below 8 bits.
        all.truncate(all.len() - all.len() % (GROUP * unit_bytes));
        if all.is_empty() {
            return Err(Error::new(Rule::BufferLength)
                .expected(format!("samples of {} bytes or more", GROUP * unit_bytes))
                .found(samples.iter().map(|sample| sample.len()).sum::<usize>()));
        }
        let n_elements = all.len() as u64 * 8 / u64::from(dtype.bits());
        let spec = TensorSpec::new("", dtype, &[n_elements])?;
        let mut head = plan::plan(kernels(backend::best())?, &spec, &all, level)?;
        // A page that is not full yet ends in zeros, whatever the samples hold.
        head.mask = head.mask.or_else(mask_head);
        Pages::new(dtype, head.write())
    }

    fn new(dtype: Dtype, head_bytes: Vec<u8>) -> Result<Pages> {
        let backend = backend::best();
        let kernels = kernels(backend)?;
        let head = Head::read(dtype, &head_bytes)?;
        let encoder = block::Encoder::new(Head::read(dtype, &head_bytes)?, kernels);
        let id = xxh3(&head_bytes) as u32;
        Ok(Pages { dtype, head_bytes, head, encoder, kernels, backend, id })
    }

    /// The same tables with the kernels of `backend`; the bytes do not change.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] if this machine or build lacks it.
    pub fn with_backend(self, backend: Backend) -> Result<Pages> {
        let kernels = kernels(backend)?;
        let encoder = block::Encoder::new(Head::read(self.dtype, &self.head_bytes)?, kernels);
        Ok(Pages { encoder, kernels, backend, ..self })
    }

    /// The dtype of the pages.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The tables as bytes: a frame of the encoding ANS and the shape `[0]`, whose head they are.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut payload = self.head_bytes.clone();
        payload.resize(payload.len().next_multiple_of(8), 0);
        let head_len = self.head_bytes.len() as u32;
        let frame = TensorSpec::new("", self.dtype, &[0]).and_then(|spec| {
            EncodedTensor::new(spec, EncodingId::Ans, head_len, Vec::new(), payload)
        });
        frame.expect("a head alone is a payload").to_bytes()
    }

    /// Reads tables that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`Rule::PageTables`] for the frame of anything else; every error of a damaged frame, and of
    /// a damaged head.
    pub fn from_bytes(bytes: &[u8]) -> Result<Pages> {
        let frame = EncodedView::parse(bytes)?;
        let (spec, encoding) = (frame.spec(), frame.encoding());
        if encoding != EncodingId::Ans || spec.shape() != [0] || !spec.name().is_empty() {
            return Err(Error::new(Rule::PageTables)
                .expected("a frame of encoding ans, shape [0] and no name")
                .found(format!("{encoding}, {:?} and {:?}", spec.shape(), spec.name())));
        }
        frame.check()?;
        Pages::new(spec.dtype(), frame.head().to_vec())
    }

    /// The most bytes that a page of `byte_len` bytes can take: those of the page, 16 and 12 for
    /// each of its blocks, and padding.
    #[must_use]
    pub fn max_encoded_len(&self, byte_len: usize) -> usize {
        let Cut { n_blocks, .. } = Cut::of(byte_len.div_ceil(self.dtype.unit_bytes()));
        HEADER
            .saturating_add((4 * n_blocks).next_multiple_of(8))
            .saturating_add(RAW_HEADER * n_blocks)
            .saturating_add(byte_len.checked_next_multiple_of(8).unwrap_or(usize::MAX))
    }

    /// Encodes a page to the front of `out` and returns the number of bytes written. The bytes
    /// depend on the page and the tables alone.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] if the page does not consist of whole units, or has more than
    /// 2^24, or if `out` is too short; [`max_encoded_len`](Self::max_encoded_len) always suffices.
    /// [`Rule::Memory`].
    pub fn encode_page(&self, page: &[u8], out: &mut [u8]) -> Result<usize> {
        let unit_bytes = self.dtype.unit_bytes();
        let n_units = whole_units(self.dtype, page.len())?;
        let cut = Cut::of(n_units);
        // The first block may be longer than the others.
        let pair = (cut.first + cut.other * usize::from(cut.n_blocks > 1)) * unit_bytes;
        with_scratch(&SCRATCH, |Scratch { blocks, encoded, lens }| {
            encoded.clear();
            lens.clear();
            for (units, block_units) in [(&page[..pair], cut.first), (&page[pair..], cut.other)] {
                if !units.is_empty() {
                    self.encoder.encode(units, block_units * unit_bytes, blocks, encoded, lens)?;
                }
            }
            self.write(page.len(), lens, encoded, out)
        })
    }

    fn write(&self, byte_len: usize, lens: &[u32], blocks: &[u8], out: &mut [u8]) -> Result<usize> {
        let begin = HEADER + (4 * lens.len()).next_multiple_of(8);
        let len = begin + blocks.len();
        let found = out.len();
        let Some(out) = out.get_mut(..len) else {
            return Err(Error::new(Rule::BufferLength)
                .expected(format!("{len} bytes or more for the encoded page"))
                .found(found));
        };
        let (header, rest) = out.split_at_mut(HEADER);
        header[CHECKSUM..12].copy_from_slice(&(byte_len as u32).to_le_bytes());
        header[12..].copy_from_slice(&self.id.to_le_bytes());
        let (table, body) = rest.split_at_mut(begin - HEADER);
        table.fill(0);
        for (entry, len) in table.as_chunks_mut().0.iter_mut().zip(lens) {
            *entry = len.to_le_bytes();
        }
        body.copy_from_slice(blocks);
        let checksum = xxh3(&out[CHECKSUM..]);
        out[..CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        Ok(len)
    }

    /// The number of original bytes of an encoded page. Only its header is looked at.
    ///
    /// # Errors
    /// [`Rule::PageLength`] if there is no whole header, or if no page is so long.
    pub fn page_len(&self, encoded: &[u8]) -> Result<usize> {
        let Some((header, _)) = encoded.split_first_chunk::<HEADER>() else {
            return Err(Error::new(Rule::PageLength).expected("16 bytes").found(encoded.len()));
        };
        let &[.., n0, n1, n2, n3, _, _, _, _] = header;
        let byte_len = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
        let unit_bytes = self.dtype.unit_bytes();
        if !byte_len.is_multiple_of(unit_bytes) || byte_len / unit_bytes > MAX_UNITS {
            return Err(Error::new(Rule::PageLength)
                .at(CHECKSUM as u64)
                .expected(format!("at most 2^24 units of {unit_bytes} bytes"))
                .found(byte_len));
        }
        Ok(byte_len)
    }

    /// Decodes `encoded`, the bytes of one page and no others, into `page`. The page's checksum is
    /// compared first. After an error the contents of `page` are unspecified.
    ///
    /// # Errors
    /// [`Rule::PageChecksum`] and other rules of class [`Corrupt`](crate::Class::Corrupt) for a
    /// damaged page, [`Rule::PageTables`] for one that was encoded with other tables,
    /// [`Rule::BufferLength`] if `page` has another length.
    pub fn decode_page(&self, encoded: &[u8], page: &mut [u8]) -> Result<()> {
        let Some((header, rest)) = encoded.split_first_chunk::<HEADER>() else {
            return Err(Error::new(Rule::PageLength).expected("16 bytes").found(encoded.len()));
        };
        let (checksum, covered) = encoded.split_at(CHECKSUM);
        let found = xxh3(covered);
        if found.to_le_bytes() != *checksum {
            return Err(Error::new(Rule::PageChecksum).at(0).found(format!("{found:#018x}")));
        }
        let &[.., t0, t1, t2, t3] = header;
        let id = u32::from_le_bytes([t0, t1, t2, t3]);
        if id != self.id {
            return Err(Error::new(Rule::PageTables)
                .at(12)
                .expected(format!("tables {id:#010x}"))
                .found(format!("{:#010x}", self.id)));
        }
        let byte_len = self.page_len(encoded)?;
        if byte_len != page.len() {
            return Err(Error::new(Rule::BufferLength)
                .expected(format!("{byte_len} bytes for the page"))
                .found(page.len()));
        }
        let unit_bytes = self.dtype.unit_bytes();
        let cut = Cut::of(byte_len / unit_bytes);
        let short = || Error::new(Rule::PageLength).found(format!("{} bytes", encoded.len()));
        let table_len = (4 * cut.n_blocks).next_multiple_of(8);
        let (table, mut blocks) = rest.split_at_checked(table_len).ok_or_else(short)?;
        let (lens, padding) = table.split_at(4 * cut.n_blocks);
        if padding.iter().any(|&b| b != 0) {
            return Err(Error::new(Rule::PaddingNotZero).at((HEADER + lens.len()) as u64));
        }
        let mut page = page;
        let mut block_units = cut.first;
        for lens in lens.as_chunks::<4>().0.chunks(PAIR) {
            let mut pair: [&[u8]; PAIR] = [&[]; PAIR];
            for (block, len) in pair.iter_mut().zip(lens) {
                let len = u32::from_le_bytes(*len) as usize;
                let padded = len.checked_next_multiple_of(8).ok_or_else(short)?;
                let (this, after) = blocks.split_at_checked(padded).ok_or_else(short)?;
                let (this, padding) = this.split_at(len);
                if padding.iter().any(|&b| b != 0) {
                    let at = encoded.len() - after.len() - padding.len();
                    return Err(Error::new(Rule::PaddingNotZero).at(at as u64));
                }
                (*block, blocks) = (this, after);
            }
            let pair = &pair[..lens.len()];
            let units = block_units + cut.other * (pair.len() - 1);
            let (now, later) = page.split_at_mut(units * unit_bytes);
            let block_bytes = block_units * unit_bytes;
            block::decode(&self.head, self.kernels, pair, block_bytes, now, Ahead::default())?;
            (page, block_units) = (later, cut.other);
        }
        match blocks.len() {
            0 => Ok(()),
            _ => Err(short()),
        }
    }
}

/// The number of units that `byte_len` bytes hold.
fn whole_units(dtype: Dtype, byte_len: usize) -> Result<usize> {
    let unit_bytes = dtype.unit_bytes();
    let n_units = byte_len / unit_bytes;
    if !byte_len.is_multiple_of(unit_bytes) || n_units > MAX_UNITS {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("at most 2^24 units of {unit_bytes} bytes, for {dtype}"))
            .found(byte_len));
    }
    Ok(n_units)
}

/// A head for masks of any kind: bytes without a one and with nothing else are common.
fn mask_head() -> Option<Box<Head>> {
    let layout = Layout::new(Dtype::U8, 0)?;
    let mut counts = [4; 256];
    (counts[0], counts[255]) = (2048, 2048);
    let tables = vec![FrequencyTable::from_counts(&counts)];
    Some(Box::new(Head::new(0, layout, 8, (0, 0), 1024, Vec::new(), tables)))
}

#[cfg(test)]
mod tests {
    use bigsmall_format::MAX_BLOCK_UNITS;

    use super::*;

    #[test]
    fn pages_are_cut_into_pairs_of_blocks() {
        let near = |n: usize| n.saturating_sub(700)..n + 700;
        let sizes = [0, 4096, 8192, PAIR_UNITS, 4 * PAIR_UNITS, MAX_UNITS - 700].map(near);
        for n in sizes.into_iter().flatten() {
            let Cut { n_blocks, first, other } = Cut::of(n);
            assert_eq!(first + other * n_blocks.saturating_sub(1), n, "{n}");
            assert!(first <= MAX_BLOCK_UNITS && other <= first && other % GROUP == 0, "{n}");
            assert!(n_blocks < 2 || n_blocks % 2 == 0 && other > 0, "{n}");
        }
        assert_eq!(Cut::of(8192), Cut { n_blocks: 2, first: 4096, other: 4096 });
    }
}
