//! The encoder: chooses the window and writes blocks. Also the decoder for the trait.

use bigsmall_format::internal::{Ahead, len_of, read_at, reserve, set_len};
use bigsmall_format::{
    Backend, BlockDecoder, BlockEncoder, Dtype, EncodingId, Error, ReadAt, Result, Rule,
    TensorEncoding, TensorSpec,
};

use crate::backend;
use crate::kernels::Kernels;
use crate::layout::{Fields, GROUP, HEAD_LEN, Head, Sections, TILE, Width};
use crate::view::Block;

/// The triple-bitmap encoding. Exponents become codes of 3 or 4 bits, stored in bitmaps. All other
/// bits are at a fixed position, so that any thread can decode any weight in constant time. For
/// [`BF16`](Dtype::BF16), [`F16`](Dtype::F16), [`F8_E4M3`](Dtype::F8_E4M3) and
/// [`F8_E5M2`](Dtype::F8_E5M2), and any shape.
///
/// The idea is ZipServ's TCA-TBE (arXiv 2603.17435). Here the sign and mantissa of every weight,
/// escaped or not, have a fixed position, and an escape stores only its exponent.
///
/// ```
/// use bigsmall_tbe::{Dtype, Tbe, TensorSpec, Width, encode_tensor};
///
/// let weights: Vec<u8> = (0..1000u16).flat_map(|i| (0x3c00 + i).to_le_bytes()).collect();
/// let spec = TensorSpec::new("w", Dtype::BF16, &[10, 100])?;
/// let tbe = Tbe::new(Width::Three);
/// let encoded = encode_tensor(&tbe, &spec, &weights)?;
///
/// let mut restored = vec![0; weights.len()];
/// encoded.decode_bytes(&tbe, 0..2000, &mut restored)?;
/// assert_eq!(restored, weights);
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Tbe {
    width: Width,
    kernels: &'static Kernels,
}

impl Tbe {
    /// The encoding with codes of `width` bits. It decodes payloads of both widths. It uses the
    /// fastest kernels that this machine can run.
    #[must_use]
    pub fn new(width: Width) -> Self {
        Tbe { width, kernels: backend::best() }
    }

    /// The same with the kernels of `backend`; the bytes do not change.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] if this machine cannot run them.
    pub fn with_backend(mut self, backend: Backend) -> Result<Self> {
        self.kernels = backend::kernels(backend)?;
        Ok(self)
    }

    /// The width of the codes that the encoder writes.
    #[must_use]
    pub fn width(&self) -> Width {
        self.width
    }

    /// The backend whose kernels are used.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.kernels.backend
    }
}

impl Default for Tbe {
    /// Three bitmaps.
    fn default() -> Self {
        Tbe::new(Width::Three)
    }
}

impl std::fmt::Debug for Tbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tbe").field("width", &self.width).field("backend", &self.backend()).finish()
    }
}

impl TensorEncoding for Tbe {
    fn id(&self) -> EncodingId {
        EncodingId::Tbe
    }

    fn supports(&self, dtype: Dtype) -> bool {
        Fields::of(dtype).is_some()
    }

    fn plan(&self, spec: &TensorSpec, source: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        let blank = Head::new(spec.dtype(), self.width, 0).map_err(|e| e.in_tensor(spec.name()))?;
        let found = len_of(source)?;
        if found != spec.byte_len() {
            return Err(Error::new(Rule::BufferLength)
                .in_tensor(spec.name())
                .expected(format!("{} bytes", spec.byte_len()))
                .found(found));
        }
        let counts = histogram(spec, blank.fields, source)?;
        let head = Head { base: best_base(&counts, blank), ..blank };
        Ok(Box::new(Encoder { head, bytes: head.to_bytes(), block_bytes: spec.block_bytes() }))
    }

    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        let head = Head::parse(spec.dtype(), head).map_err(|e| e.in_tensor(spec.name()))?;
        Ok(Box::new(Decoder { head, kernels: self.kernels, block_bytes: spec.block_bytes() }))
    }
}

/// The largest number of blocks whose exponents are counted.
const SAMPLE_BLOCKS: u64 = 8;

/// The number of weights with each exponent, in the whole tensor or in blocks spread evenly over
/// it, including the first and the last. Whole blocks are counted, because a source that decodes on
/// demand decodes whole blocks.
fn histogram(spec: &TensorSpec, fields: Fields, source: &dyn ReadAt) -> Result<[u64; 256]> {
    let mut counts = [0; 256];
    let mut buffer = Vec::new();
    let n_blocks = spec.n_blocks();
    for i in 0..n_blocks.min(SAMPLE_BLOCKS) {
        let block = if n_blocks <= SAMPLE_BLOCKS {
            i
        } else {
            (u128::from(n_blocks - 1) * u128::from(i) / u128::from(SAMPLE_BLOCKS - 1)) as u64
        };
        let begin = block * spec.block_bytes() as u64;
        let bytes = begin..begin + spec.block_byte_len(block) as u64;
        let values = match source.bytes_at(bytes.clone()) {
            Some(values) => values,
            None => {
                set_len(&mut buffer, (bytes.end - bytes.start) as usize)?;
                read_at(source, bytes.start, &mut buffer)?;
                &buffer
            }
        };
        count_exponents(fields, values, &mut counts);
    }
    Ok(counts)
}

/// Adds the exponents of a block to `counts`.
fn count_exponents(fields: Fields, values: &[u8], counts: &mut [u64; 256]) {
    // Four histograms, so that the increments of equal neighbours do not wait for each other.
    let mut four = [[0u32; 4]; 256];
    let mut count =
        |i: usize, bits: u16| four[usize::from(fields.split(bits.into()).0 as u8)][i] += 1;
    if fields.bytes == 2 {
        for values in values.chunks(8) {
            let values = values.as_chunks::<2>().0.iter().enumerate();
            values.for_each(|(i, &value)| count(i, u16::from_le_bytes(value)));
        }
    } else {
        for values in values.chunks(4) {
            values.iter().enumerate().for_each(|(i, &value)| count(i, value.into()));
        }
    }
    for (sum, four) in counts.iter_mut().zip(four) {
        *sum += four.into_iter().map(u64::from).sum::<u64>();
    }
}

/// The base of the window that covers the most weights; the smallest one if several do.
fn best_base(counts: &[u64; 256], head: Head) -> u8 {
    let window = head.width.window();
    let mut best = (0, 0);
    for base in 0..=head.fields.n_exponents() - window {
        let covered: u64 = counts[base..base + window].iter().sum();
        if covered > best.0 {
            best = (covered, base as u8);
        }
    }
    best.1
}

struct Encoder {
    head: Head,
    bytes: [u8; HEAD_LEN],
    block_bytes: usize,
}

impl BlockEncoder for Encoder {
    fn head(&self) -> &[u8] {
        &self.bytes
    }

    fn encode_blocks(
        &self,
        _: u64,
        units: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        for block in units.chunks(self.block_bytes) {
            lens.push(encode_block(self.head, block, out)?);
        }
        Ok(())
    }
}

/// Appends one encoded block and its padding. Returns its length without the padding.
fn encode_block(head: Head, block: &[u8], out: &mut Vec<u8>) -> Result<u32> {
    // The compiler can then treat the positions of the fields as constants.
    const BF16: Fields = Fields::of(Dtype::BF16).unwrap();
    match head.fields {
        BF16 => encode_fields(head, BF16, block, out),
        fields => encode_fields(head, fields, block, out),
    }
}

/// [`encode_block`] for values with these fields.
#[inline(always)]
fn encode_fields(head: Head, fields: Fields, block: &[u8], out: &mut Vec<u8>) -> Result<u32> {
    let n = block.len() / fields.bytes;
    let sections = Sections::of(head, n);
    let begin = out.len();
    // Every weight may be an escape.
    let most = sections.starts + n;
    reserve(out, most)?;
    set_len(out, begin + most)?;
    let (bitmaps, rest) = out[begin..].split_at_mut(sections.bitmaps);
    let (plane, rest) = rest.split_at_mut(sections.plane - sections.bitmaps);
    let (starts, escapes) = rest.split_at_mut(sections.starts - sections.plane);
    let mut n_escapes = 0;
    let width = head.width.bits();
    let tiles = block.chunks(TILE * fields.bytes);
    let mut planes = plane.chunks_mut(TILE);
    let bitmaps = bitmaps.chunks_exact_mut(8 * head.bitmaps_per_tile());
    for (tile, (values, bitmaps)) in tiles.zip(bitmaps).enumerate() {
        if tile % (GROUP / TILE) == 0 {
            let at = tile / (GROUP / TILE) * 4;
            starts[at..at + 4].copy_from_slice(&(n_escapes as u32).to_le_bytes());
        }
        let mut exponents = [0; TILE];
        let rows =
            split_tile(head, fields, values, planes.next().unwrap_or(&mut []), &mut exponents);
        let mut escaped = u64::MAX;
        for (j, bitmap) in bitmaps.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // Gathers bit j of eight rows into one byte by a multiplication.
            let byte = |rows: &[u8; 8]| {
                let bits = u64::from_le_bytes(*rows) >> j & 0x0101_0101_0101_0101;
                bits.wrapping_mul(0x0102_0408_1020_4080) >> 56
            };
            let bytes = rows.as_chunks::<8>().0.iter().zip(0..);
            let word = bytes.fold(0, |word, (rows, i)| word | byte(rows) << (8 * i));
            *bitmap = word.to_le_bytes();
            if j < width {
                // The escape code has all bits set.
                escaped &= word;
            }
        }
        while escaped != 0 {
            escapes[n_escapes] = exponents[escaped.trailing_zeros() as usize];
            n_escapes += 1;
            escaped &= escaped - 1;
        }
    }
    let len = sections.starts + n_escapes;
    out.truncate(begin + len);
    out.resize(begin + len.next_multiple_of(8), 0);
    Ok(len as u32)
}

/// The bits for the bitmaps of one tile, one row per weight: the code, and above it the bits of
/// sign and mantissa that are not in the byte plane.
#[inline(always)]
fn split_tile(
    head: Head,
    fields: Fields,
    values: &[u8],
    plane: &mut [u8],
    exponents: &mut [u8; TILE],
) -> [u8; TILE] {
    let (width, escape) = (head.width.bits(), head.width.window() as u32);
    let plane_bits = if fields.has_plane() { 8 } else { 0 };
    let (mut rows, mut others) = ([0; TILE], [0; TILE]);
    let mut whole = [0; 2 * TILE];
    whole[..values.len()].copy_from_slice(values);
    for i in 0..TILE {
        let bits = match fields.bytes {
            2 => u32::from(u16::from_le_bytes([whole[2 * i], whole[2 * i + 1]])),
            _ => u32::from(whole[i]),
        };
        let (exponent, all) = fields.split(bits);
        let code = exponent.wrapping_sub(u32::from(head.base)).min(escape);
        exponents[i] = exponent as u8;
        rows[i] = (code | (all >> plane_bits) << width) as u8;
        others[i] = all as u8;
    }
    plane.copy_from_slice(&others[..plane.len()]);
    // Weights after the end have no bits set.
    rows[values.len() / fields.bytes..].fill(0);
    rows
}

struct Decoder {
    head: Head,
    kernels: &'static Kernels,
    block_bytes: usize,
}

impl BlockDecoder for Decoder {
    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        self.decode_blocks_with(blocks, dst, Ahead::default())
    }

    fn decode_blocks_with(
        &self,
        blocks: &[&[u8]],
        dst: &mut [u8],
        mut ahead: Ahead<'_>,
    ) -> Result<()> {
        let bytes = self.head.fields.bytes;
        let mut pieces = dst.chunks_mut(self.block_bytes);
        for block in blocks {
            let piece = pieces.next().unwrap_or(&mut []);
            let block = Block::parse(self.head, piece.len() / bytes, block, 0, self.kernels)?;
            (self.kernels.decode)(&block.tiles_from(0), piece, &mut ahead);
        }
        match pieces.next() {
            Some(rest) => Err(Error::new(Rule::BufferLength)
                .expected("blocks for the whole output")
                .found(format!("no block for {} bytes", rest.len()))),
            None => Ok(()),
        }
    }
}
