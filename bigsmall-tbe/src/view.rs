//! Validated views of encoded bytes.

use std::ops::Range;

use bigsmall_format::internal::{Ahead, for_each_in_parallel, pool_size};
use bigsmall_format::{
    Backend, Dtype, EncodedRef, EncodedTensor, EncodingId, Error, Result, Rule, TensorSpec,
};

use crate::backend;
use crate::kernels::{Kernels, Tiles};
use crate::layout::{GROUP, Head, Sections, TILE, Width, escape_mask};

/// A borrowed view of one encoded block (FORMAT.md section 8). A `Block` is always valid: every
/// section has its length, every escape code has its exponent, and no offset leads outside.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    head: Head,
    n: usize,
    bitmaps: &'a [[u8; 8]],
    plane: &'a [u8],
    starts: &'a [[u8; 4]],
    escapes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Validates a block of `n` weights. It begins at `origin`, which offsets in errors include.
    pub(crate) fn parse(
        head: Head,
        n: usize,
        bytes: &'a [u8],
        origin: u64,
        kernels: &Kernels,
    ) -> Result<Self> {
        let place = |at: usize| origin + at as u64;
        let sections = Sections::of(head, n);
        let length = |expected: String| {
            Err(Error::new(Rule::TbeBlockLength)
                .at(place(bytes.len().min(sections.starts)))
                .expected(expected)
                .found(format!("{} bytes", bytes.len())))
        };
        let Some((fixed, escapes)) = bytes.split_at_checked(sections.starts) else {
            return length(format!("at least {} bytes for {n} weights", sections.starts));
        };
        let bitmaps = fixed[..sections.bitmaps].as_chunks::<8>().0;
        let (plane, plane_padding) = if head.fields.has_plane() {
            fixed[sections.bitmaps..sections.plane].split_at(n)
        } else {
            (&fixed[..0], &fixed[..0])
        };
        let n_starts = n.div_ceil(GROUP);
        let (starts, starts_padding) =
            fixed[sections.plane..sections.starts].split_at(4 * n_starts);
        let starts = starts.as_chunks::<4>().0;

        let padding = |at: usize| Err(Error::new(Rule::PaddingNotZero).at(place(at)));
        if let (Some(tile), used @ 1..) =
            (bitmaps.len().checked_sub(head.bitmaps_per_tile()), n % TILE)
        {
            for (j, bitmap) in bitmaps[tile..].iter().enumerate() {
                if u64::from_le_bytes(*bitmap) >> used != 0 {
                    return padding((tile + j) * 8 + used / 8);
                }
            }
        }
        if let Some(at) = plane_padding.iter().position(|&b| b != 0) {
            return padding(sections.bitmaps + n + at);
        }
        if let Some(at) = starts_padding.iter().position(|&b| b != 0) {
            return padding(sections.plane + 4 * n_starts + at);
        }
        match (kernels.count_escapes)(&head, bitmaps, starts) {
            Err(group) => {
                return Err(Error::new(Rule::TbeEscapeStarts)
                    .at(place(sections.plane + 4 * group))
                    .expected(format!("the number of escape codes before weight {}", group * GROUP))
                    .found(starts.get(group).map_or(0, |s| u32::from_le_bytes(*s))));
            }
            Ok(codes) if codes != escapes.len() => {
                return length(format!("{} bytes with {codes} escapes", sections.starts + codes));
            }
            Ok(_) => {}
        }
        // One pass that the compiler vectorises. A second pass finds the position, only after a
        // failure.
        let window = head.width.window() as u8;
        let last = (head.fields.n_exponents() - 1) as u8;
        let wrong = |e: u8| e.wrapping_sub(head.base) < window || e > last;
        if escapes.iter().fold(false, |any, &e| any | wrong(e)) {
            let at = escapes.iter().position(|&e| wrong(e)).unwrap_or(0);
            let rule =
                if escapes[at] > last { Rule::TbeEscapeField } else { Rule::TbeEscapeInWindow };
            return Err(Error::new(rule).at(place(sections.starts + at)).found(escapes[at]));
        }
        Ok(Block { head, n, bitmaps, plane, starts, escapes })
    }

    /// The same for bytes that are known to be valid.
    fn trusted(head: Head, n: usize, bytes: &'a [u8]) -> Self {
        let sections = Sections::of(head, n);
        let plane_len = if head.fields.has_plane() { n } else { 0 };
        Block {
            head,
            n,
            bitmaps: bytes[..sections.bitmaps].as_chunks::<8>().0,
            plane: &bytes[sections.bitmaps..][..plane_len],
            starts: bytes[sections.plane..][..4 * n.div_ceil(GROUP)].as_chunks::<4>().0,
            escapes: &bytes[sections.starts..],
        }
    }

    /// The number of weights in the block, at most [`MAX_BLOCK_UNITS`](crate::MAX_BLOCK_UNITS).
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.n
    }

    /// The number of bitmaps of one tile: first those of the codes, then those of sign and mantissa
    /// bits outside the byte plane (none for BF16, 3 for F16, 4 for F8_E4M3, 3 for F8_E5M2).
    #[must_use]
    pub fn bitmaps_per_tile(&self) -> usize {
        self.head.bitmaps_per_tile()
    }

    /// The bitmaps as little-endian 64-bit words: [`bitmaps_per_tile`](Self::bitmaps_per_tile)
    /// words for every 64 weights.
    #[must_use]
    pub fn bitmaps(&self) -> &'a [[u8; 8]] {
        self.bitmaps
    }

    /// The byte plane, one byte for each weight: for BF16 sign and mantissa, for F16 the low 8 bits
    /// of the mantissa; empty for the 8-bit dtypes.
    #[must_use]
    pub fn byte_plane(&self) -> &'a [u8] {
        self.plane
    }

    /// The exponents of the escaped weights, in order.
    #[must_use]
    pub fn escapes(&self) -> &'a [u8] {
        self.escapes
    }

    /// For every 512 weights the number of escapes before them, as stored (little-endian).
    #[must_use]
    pub fn escape_starts(&self) -> &'a [[u8; 4]] {
        self.starts
    }

    /// A bit for each of the 64 weights of a tile: whether it is an escape. 0 beyond the last tile.
    #[must_use]
    pub fn escape_mask(&self, tile: usize) -> u64 {
        let per_tile = self.bitmaps_per_tile();
        match self.bitmaps.get(tile.saturating_mul(per_tile)..) {
            Some(bitmaps) if bitmaps.len() >= per_tile => {
                escape_mask(&bitmaps[..self.head.width.bits()])
            }
            _ => 0,
        }
    }

    /// The number of escapes before weight `index`, in constant time: a stored start and at most
    /// eight popcounts. For an index beyond the last weight: the number of all escapes.
    #[must_use]
    pub fn escapes_before(&self, index: usize) -> usize {
        if index >= self.n {
            return self.escapes.len();
        }
        if index == 0 {
            // Reads nothing: at the beginning of a block, memory is not yet in the caches.
            return 0;
        }
        let mut before = u32::from_le_bytes(self.starts[index / GROUP]) as usize;
        let tile = index / TILE;
        for t in index / GROUP * (GROUP / TILE)..tile {
            before += self.escape_mask(t).count_ones() as usize;
        }
        let below = (1u64 << (index % TILE)) - 1;
        before + (self.escape_mask(tile) & below).count_ones() as usize
    }

    /// The bits of weight `index`, in constant time; `None` beyond the last one.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u16> {
        if index >= self.n {
            return None;
        }
        let per_tile = self.bitmaps_per_tile();
        let bitmaps = &self.bitmaps[index / TILE * per_tile..][..per_tile];
        let row = bitmaps.iter().enumerate().fold(0u32, |row, (j, bitmap)| {
            row | ((u64::from_le_bytes(*bitmap) >> (index % TILE) & 1) as u32) << j
        });
        let width = self.head.width.bits();
        let code = row & ((1 << width) - 1);
        let exponent = if code as usize == self.head.width.window() {
            u32::from(self.escapes[self.escapes_before(index)])
        } else {
            u32::from(self.head.base) + code
        };
        let high = row >> width;
        let others = match self.plane.get(index) {
            Some(&low) => high << 8 | u32::from(low),
            None => high,
        };
        Some(self.head.fields.join(exponent, others) as u16)
    }

    /// The tiles from `tile` on, for the kernels.
    pub(crate) fn tiles_from(&self, tile: usize) -> Tiles<'a> {
        let per_tile = self.bitmaps_per_tile();
        Tiles {
            head: self.head,
            bitmaps: &self.bitmaps[(tile * per_tile).min(self.bitmaps.len())..],
            plane: &self.plane[(tile * TILE).min(self.plane.len())..],
            escapes: &self.escapes[self.escapes_before(tile * TILE)..],
        }
    }

    /// The tiles for products with the weights from `index` on, and the position of that weight in
    /// its tile. Byte plane and escapes begin at the weight; the bitmaps begin at the tile.
    pub(crate) fn tiles_at(&self, index: usize) -> (Tiles<'a>, u32) {
        let mut tiles = self.tiles_from(index / TILE);
        if !index.is_multiple_of(TILE) {
            tiles.plane = &self.plane[index.min(self.plane.len())..];
            tiles.escapes = &self.escapes[self.escapes_before(index)..];
        }
        (tiles, (index % TILE) as u32)
    }

    /// Decodes the weights `range` into `dst`. The range must lie in the block, and `dst` must have
    /// its length.
    pub(crate) fn decode_range(&self, range: Range<usize>, dst: &mut [u8], kernels: &Kernels) {
        let bytes = self.head.fields.bytes;
        let (mut at, mut dst) = (range.start, dst);
        if at % TILE != 0 {
            // The range begins inside this tile.
            let tile = at / TILE;
            let mut buffer = [0; 2 * TILE];
            let whole = (self.n - tile * TILE).min(TILE);
            let out = &mut buffer[..whole * bytes];
            (kernels.decode)(&self.one_tile(tile), out, &mut Ahead::default());
            let n = (range.end - at).min(TILE - at % TILE);
            let (piece, rest) = dst.split_at_mut(n * bytes);
            piece.copy_from_slice(&buffer[at % TILE * bytes..][..n * bytes]);
            (at, dst) = (at + n, rest);
        }
        if at < range.end {
            (kernels.decode)(&self.tiles_from(at / TILE), dst, &mut Ahead::default());
        }
    }

    fn one_tile(&self, tile: usize) -> Tiles<'a> {
        let mut tiles = self.tiles_from(tile);
        tiles.bitmaps = &tiles.bitmaps[..self.bitmaps_per_tile()];
        tiles.plane = &tiles.plane[..tiles.plane.len().min(TILE)];
        tiles
    }
}

impl std::fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block")
            .field("n_elements", &self.n)
            .field("escapes", &self.escapes.len())
            .finish_non_exhaustive()
    }
}

/// A borrowed view of a whole TBE tensor. All blocks of a `View` are valid, so products, decoding
/// and uploading need no further check.
///
/// It is made from a reference to an [`EncodedTensor`], or to an
/// [`EncodedView`](crate::EncodedView) of a frame in memory or in a memory map, without a copy.
///
/// ```
/// use bigsmall_tbe::{Dtype, Tbe, View, TensorSpec, Width, encode_tensor};
///
/// let weights: Vec<u8> = (0..70_000u32).flat_map(|i| (i as u16).to_le_bytes()).collect();
/// let spec = TensorSpec::new("w", Dtype::BF16, &[700, 100])?;
/// let encoded = encode_tensor(&Tbe::new(Width::Three), &spec, &weights)?;
///
/// let view = View::new(&encoded)?;
/// assert_eq!(view.get(66_000), Some(66_000u32 as u16));
/// let mut row = [0; 200];
/// view.decode(300..400, &mut row)?; // the fourth row
/// assert_eq!(row, weights[600..800]);
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct View<'a> {
    tensor: EncodedRef<'a>,
    head: Head,
    kernels: &'static Kernels,
}

impl<'a> View<'a> {
    /// Validates all of `tensor` on the threads of the caller's rayon pool: a pass over the bitmaps
    /// and escapes. The checksums of an [`EncodedView`](crate::EncodedView) are compared too; those
    /// of an [`EncodedTensor`] have been. Allocates nothing that grows with the tensor.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another encoding than TBE; of class
    /// [`Corrupt`](bigsmall_format::Class::Corrupt) for a payload that breaks the format, with
    /// the offset in the payload.
    pub fn new(tensor: impl Into<EncodedRef<'a>>) -> Result<Self> {
        let tensor = tensor.into();
        let name = tensor.spec().name();
        tensor.expect(EncodingId::Tbe)?;
        tensor.check_head()?;
        let head =
            Head::parse(tensor.spec().dtype(), tensor.head()).map_err(|e| e.in_tensor(name))?;
        let kernels = backend::best();
        let view = View { tensor, head, kernels };
        for_each_in_parallel(
            0..view.n_blocks_usize(),
            || (),
            |(), index| {
                let index = index as u64;
                tensor.check_block(index)?;
                let bytes = tensor.block(index);
                let origin = tensor.table().padded_block_range(index).start;
                Block::parse(head, view.block_len(index), bytes, origin, kernels)
                    .map(drop)
                    .map_err(|e| e.in_tensor(name))
            },
        )?;
        Ok(view)
    }

    /// The same with the kernels of `backend`, for decoding and products.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] if this machine cannot run them.
    pub fn with_backend(self, backend: Backend) -> Result<View<'a>> {
        Ok(View { kernels: backend::kernels(backend)?, ..self })
    }

    pub(crate) fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    fn n_blocks_usize(&self) -> usize {
        self.n_blocks() as usize
    }

    fn block_len(&self, index: u64) -> usize {
        self.tensor.spec().block_byte_len(index) / self.head.fields.bytes
    }

    /// The encoded tensor.
    #[must_use]
    pub fn tensor(&self) -> EncodedRef<'a> {
        self.tensor
    }

    /// Name, dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &'a TensorSpec {
        self.tensor.spec()
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.head.dtype
    }

    /// The width of the codes.
    #[must_use]
    pub fn width(&self) -> Width {
        self.head.width
    }

    /// The exponent of code 0.
    #[must_use]
    pub fn base(&self) -> u8 {
        self.head.base
    }

    /// Number of weights.
    #[must_use]
    pub fn n_elements(&self) -> u64 {
        self.tensor.spec().n_elements()
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.tensor.table().n_blocks()
    }

    /// Block `index`. It begins with weight `index * block_units`, where the latter is
    /// [`TensorSpec::block_units`].
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn block(&self, index: u64) -> Block<'a> {
        Block::trusted(self.head, self.block_len(index), self.tensor.block(index))
    }

    /// All blocks in order.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = Block<'a>> {
        let view = *self;
        (0..self.n_blocks_usize()).map(move |i| view.block(i as u64))
    }

    /// The bits of weight `index`, counted row-major, in constant time; `None` beyond the last one.
    #[must_use]
    pub fn get(&self, index: u64) -> Option<u16> {
        if index >= self.n_elements() {
            return None;
        }
        let (block, in_block) = self.place_of(index);
        self.block(block).get(in_block)
    }

    /// Decodes the weights `range`, counted row-major, into `dst` (little-endian), on the threads
    /// of the caller's rayon pool. With several threads it allocates one slice for each block of
    /// the range.
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`], [`Rule::BufferLength`].
    pub fn decode(&self, range: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let bytes = self.head.fields.bytes;
        if range.start > range.end || range.end > self.n_elements() {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .in_tensor(self.spec().name())
                .expected(format!("weights within 0..{}", self.n_elements()))
                .found(format!("{range:?}")));
        }
        if dst.len() as u64 != (range.end - range.start) * bytes as u64 {
            return Err(Error::new(Rule::BufferLength)
                .in_tensor(self.spec().name())
                .expected(format!("{} bytes", (range.end - range.start) * bytes as u64))
                .found(dst.len()));
        }
        if range.end - range.start <= self.spec().block_units() as u64 || pool_size() == 1 {
            self.decode_here(range.start, dst, self.kernels);
            return Ok(());
        }
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (range.start, dst);
        while !rest.is_empty() {
            let (block, in_block) = self.place_of(at);
            let n = (rest.len() / bytes).min(self.spec().block_units() - in_block);
            let (piece, after) = rest.split_at_mut(n * bytes);
            pieces.push((block, in_block..in_block + n, piece));
            (at, rest) = (at + n as u64, after);
        }
        for_each_in_parallel(
            pieces.into_iter(),
            || (),
            |(), (block, range, piece)| {
                self.block(block).decode_range(range, piece, self.kernels);
                Ok(())
            },
        )
    }
}

impl View<'_> {
    /// The block of a weight, and the weight's number in it.
    pub(crate) fn place_of(&self, weight: u64) -> (u64, usize) {
        let block_units = self.spec().block_units() as u64;
        (weight / block_units, (weight % block_units) as usize)
    }

    /// Fills `dst` with the weights from `first` on, on this thread. The tensor must have them.
    pub(crate) fn decode_here(&self, first: u64, dst: &mut [u8], kernels: &Kernels) {
        let bytes = self.head.fields.bytes;
        let (mut at, mut rest) = (first, dst);
        while !rest.is_empty() {
            let (block, begin) = self.place_of(at);
            let n = (rest.len() / bytes).min(self.spec().block_units() - begin);
            let (piece, after) = rest.split_at_mut(n * bytes);
            self.block(block).decode_range(begin..begin + n, piece, kernels);
            (at, rest) = (at + n as u64, after);
        }
    }
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("spec", self.spec())
            .field("width", &self.width())
            .field("base", &self.base())
            .finish()
    }
}

/// A TBE tensor that was validated once. Programs keep it to use a model whose weights stay
/// encoded.
///
/// ```
/// use bigsmall_tbe::{Dtype, Tbe, Matrix, TensorSpec, encode_tensor};
///
/// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
/// let encoded = encode_tensor(&Tbe::default(), &spec, &vec![0; 8])?;
/// let weights = Matrix::new(encoded)?;
/// assert_eq!(weights.view().get(3), Some(0)); // no check again
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
///
/// A tensor of another encoding is encoded again, through [`Decoded`](crate::Decoded). Tensors of a
/// file come from `bigsmall_io::Model::encoded`.
///
/// ```
/// use bigsmall_tbe::{Decoded, Dtype, Matrix, Raw, Tbe, TensorSpec, encode_tensor};
///
/// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
/// let raw = encode_tensor(&Raw, &spec, &[0x3f80u16.to_le_bytes(); 4].concat())?; // ones
///
/// // `Raw` is the encoding that the tensor has; for ANS it is `bigsmall_codec::Ans::default()`.
/// let encoded = encode_tensor(&Tbe::default(), &spec, &Decoded::new(&raw, &Raw)?)?;
/// let mut y = [0.0; 2];
/// Matrix::new(encoded)?.matmul(&[1.0, 2.0], 1, &mut y)?;
/// assert_eq!(y, [3.0; 2]);
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Matrix {
    tensor: EncodedTensor,
    head: Head,
}

impl Matrix {
    /// Validates all of `tensor`.
    ///
    /// # Errors
    /// Those of [`View::new`].
    pub fn new(tensor: EncodedTensor) -> Result<Self> {
        let head = View::new(&tensor)?.head;
        Ok(Matrix { tensor, head })
    }

    /// A view of the tensor, in constant time.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { tensor: (&self.tensor).into(), head: self.head, kernels: backend::best() }
    }

    /// The encoded tensor.
    #[must_use]
    pub fn into_inner(self) -> EncodedTensor {
        self.tensor
    }
}
