//! Blocks that repeat themselves: indices, masks, equal rows (FORMAT.md section 7.5, kind 4). The
//! compressor is the crate `miniz_oxide`: plain Rust, the same bytes on every machine.
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::set_len;
use bigsmall_format::{Error, Result, Rule};
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// zlib's usual level. It is fixed, as the bytes depend on it; they also depend on the version of
/// the crate, which the golden files guard.
const LEVEL: i32 = 6;
/// Shorter blocks are not worth the look.
const LEAST: usize = 1024;
/// Bytes that are compressed first, to see whether the whole block is worth it.
const SAMPLE: usize = 16 << 10;
/// The window of DEFLATE: repetition further apart is not found.
pub(crate) const WINDOW: usize = 32 << 10;
/// A block must be shorter by one part in this many, and by this many bytes: decoding it takes
/// longer.
const GAIN: usize = 16;
const LEAST_GAIN: usize = 128;

/// Decodes a stream that holds `units` and nothing else. Returns its length.
#[inline(never)] // its state must not grow the stack of its caller
pub(crate) fn inflate(stream: &[u8], units: &mut [u8]) -> Result<usize> {
    // 11 kB, on the heap for no longer than this call.
    let mut state = Box::new(DecompressorOxide::new());
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, used, written) = decompress(&mut state, stream, units, 0, flags);
    if status != TINFLStatus::Done || written != units.len() {
        let found = match status {
            TINFLStatus::Done => format!("a stream of {written}"),
            TINFLStatus::HasMoreOutput => "a stream of more".to_owned(),
            _ => format!("a stream that breaks RFC 1951, or ends, after {written}"),
        };
        return Err(Error::new(Rule::AnsDeflate)
            .expected(format!("{} bytes", units.len()))
            .found(found));
    }
    Ok(used)
}

/// Where blocks of a tensor may repeat themselves.
pub(crate) struct Screen {
    /// Bytes of a word. Words of a tensor of floats are so long that two are equal by intent only.
    word: usize,
    /// Whether words of zeros count: of floats, a mask takes care of them.
    with_zeros: bool,
    /// Distances at which rows may repeat.
    strides: Vec<usize>,
}

/// Words in each of the two pieces that are looked at.
const WORDS: usize = 64;
/// Places where a row is compared with the one before it, and how many bytes.
const PLACES: usize = 8;
const COMPARED: usize = 16;

impl Screen {
    pub(crate) fn new(unit_bytes: usize, is_float: bool, strides: Vec<usize>) -> Screen {
        let word = if is_float { (4 * unit_bytes).max(8) } else { 4 };
        Screen { word, with_zeros: !is_float, strides }
    }

    /// Whether compressing `units` may pay. Looks at a few kilobytes only, so that other blocks
    /// cost next to nothing.
    pub(crate) fn passes(&self, units: &[u8]) -> bool {
        units.len() >= LEAST && (self.has_equal_words(units) || self.has_equal_rows(units))
    }

    /// Whether one in eight of the words occurred before.
    fn has_equal_words(&self, units: &[u8]) -> bool {
        let mut last = [0u64; 2 * WORDS];
        let (mut seen, mut equal) = (0, 0);
        for half in units.chunks(units.len().div_ceil(2).next_multiple_of(self.word)) {
            for word in half.chunks_exact(self.word).take(WORDS) {
                seen += 1;
                let mixed = word.chunks(8).fold(0u64, |sum, part| {
                    let mut bytes = [0; 8];
                    bytes[..part.len()].copy_from_slice(part);
                    (sum.rotate_left(29) ^ u64::from_le_bytes(bytes))
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                });
                // Words of zeros have the sum 0, like an empty place.
                let place = &mut last[(mixed >> 57) as usize];
                equal += usize::from(*place == mixed && (mixed != 0 || self.with_zeros));
                *place = mixed;
            }
        }
        equal * 8 > seen
    }

    /// Whether two of the places are equal to those a row earlier.
    fn has_equal_rows(&self, units: &[u8]) -> bool {
        self.strides.iter().any(|&stride| {
            let Some(room) = units.len().checked_sub(stride + COMPARED) else { return false };
            let equal = (0..PLACES).filter(|i| {
                let at = room * i / PLACES;
                let bytes = &units[at..at + COMPARED];
                bytes == &units[at + stride..][..COMPARED]
                    && (self.with_zeros || bytes.iter().any(|&b| b != 0))
            });
            equal.count() > 1
        })
    }
}

/// A compressor that is kept between blocks: 320 kB, made when the first block asks.
#[derive(Default)]
pub(crate) struct Deflater {
    state: Option<Box<CompressorOxide>>,
    out: Vec<u8>,
}

impl Deflater {
    /// The stream of `units`, if it is shorter than `coded` bytes by [`GAIN`] and [`LEAST_GAIN`].
    pub(crate) fn shorter(&mut self, units: &[u8], coded: usize) -> Result<Option<&[u8]>> {
        let most = coded.saturating_sub(LEAST_GAIN.max(coded / GAIN));
        if units.len() > 4 * SAMPLE {
            let from = units.len() / 2;
            let sample = &units[from..from + SAMPLE];
            // A quarter more, as the sample has less before it to refer to.
            let most = (most * SAMPLE / units.len() * 5).div_ceil(4);
            if self.deflate(sample, most)?.is_none() {
                return Ok(None);
            }
        }
        let len = self.deflate(units, most)?;
        Ok(len.map(|len| &self.out[..len]))
    }

    /// Compresses `units` to `out`; the length, if it is at most `most`.
    fn deflate(&mut self, units: &[u8], most: usize) -> Result<Option<usize>> {
        let state = match &mut self.state {
            Some(state) => {
                state.reset();
                state
            }
            None => {
                // A negative number of bits in the window: no zlib header.
                let flags = create_comp_flags_from_zip_params(LEVEL, -15, 0);
                self.state.insert(Box::new(CompressorOxide::new(flags)))
            }
        };
        set_len(&mut self.out, most)?;
        let (status, _, len) = compress(state, units, &mut self.out, TDEFLFlush::Finish);
        Ok((status == TDEFLStatus::Done).then_some(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_as_long_as_it_says() {
        let units: Vec<u8> = (0..100_000u32).map(|i| (i / 300) as u8).collect();
        let mut deflater = Deflater::default();
        let stream = deflater.shorter(&units, units.len()).unwrap().unwrap().to_vec();
        assert!(stream.len() < units.len() / 50);
        assert!(deflater.shorter(&units, stream.len()).unwrap().is_none());
        let exact = stream.len() + LEAST_GAIN;
        assert!(deflater.shorter(&units, exact).unwrap() == Some(&stream[..]));
        assert!(deflater.shorter(&units, exact - 1).unwrap().is_none());
        let mut back = vec![0; units.len()];
        assert_eq!(inflate(&stream, &mut back).unwrap(), stream.len());
        assert!(back == units);
        let long = [&stream[..], &[1, 2, 3]].concat();
        assert_eq!(inflate(&long, &mut back).unwrap(), stream.len());
    }

    #[test]
    fn dense_floats_are_not_tried() {
        let mut state = 1u64;
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for unit_bytes in [1, 2, 4, 8] {
            let screen = Screen::new(unit_bytes, true, vec![512]);
            // Three bits a byte, and half of the units zero.
            let units: Vec<u8> = (0..100_000 / unit_bytes)
                .flat_map(|_| {
                    let unit = noise() & 0x0707_0707_0707_0707 | 0x1010_1010_1010_1010;
                    let unit = if noise() >> 40 & 1 == 0 { 0 } else { unit };
                    unit.to_le_bytes().into_iter().take(unit_bytes).collect::<Vec<_>>()
                })
                .collect();
            assert!(!screen.passes(&units), "{unit_bytes}");
            let rows: Vec<u8> = units
                .chunks_exact(1024)
                .flat_map(|row| [&row[..512], &row[..512]].concat())
                .collect();
            assert!(screen.passes(&rows), "{unit_bytes}");
        }
    }
}
