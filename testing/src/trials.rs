//! Damages shards and finds out whether the damage is detected, harmless or silent. The example
//! `damage`, the test `every_bit` and the fuzz targets use it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use bigsmall_codec::{Ans, Backend};
use bigsmall_format::internal::{Assembler, xxh3};
use bigsmall_format::{
    Class, EncodedView, EncodingId, Error, Raw, ReadAt, Result, Rule, Shard, TensorEncoding,
};
use bigsmall_tbe::Tbe;
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::Random;

/// The encodings of a shard, with a chosen backend.
#[derive(Debug)]
pub struct Encodings {
    ans: Ans,
    tbe: Tbe,
}

impl Encodings {
    /// Decodes ANS with `backend`.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`].
    pub fn new(backend: Backend) -> Result<Self> {
        Ok(Encodings { ans: Ans::default().with_backend(backend)?, tbe: Tbe::default() })
    }

    /// The encoding with this id.
    #[must_use]
    pub fn get(&self, id: EncodingId) -> &dyn TensorEncoding {
        match id {
            EncodingId::Raw => &Raw,
            EncodingId::Ans => &self.ans,
            _ => &self.tbe,
        }
    }
}

/// Restores the safetensors file of a shard. Compares every checksum except the SHA-256 of the
/// whole file.
///
/// # Errors
/// The first rule that the shard breaks; [`Rule::Memory`] for a file beyond `most` bytes.
pub fn decode_all(source: impl ReadAt, encodings: &Encodings, most: u64) -> Result<Vec<u8>> {
    restore(source, encodings, most).map(|(file, _)| file)
}

/// The same, and also compares the SHA-256.
///
/// # Errors
/// Those of [`decode_all`]; [`Rule::ContentDigest`].
pub fn restore_all(source: impl ReadAt, encodings: &Encodings, most: u64) -> Result<Vec<u8>> {
    let (file, sha256) = restore(source, encodings, most)?;
    if Sha256::digest(&file)[..] != sha256 {
        return Err(Error::new(Rule::ContentDigest));
    }
    Ok(file)
}

/// The same with the MD5s compared too, as `bigsmall verify` does.
///
/// # Errors
/// Those of [`restore_all`].
pub fn verify_all(bytes: &[u8], encodings: &Encodings, most: u64) -> Result<Vec<u8>> {
    let file = restore_all(bytes, encodings, most)?;
    let shard = Shard::open(bytes)?;
    let data = &file[8 + shard.header_json().len()..];
    for (i, spec) in shard.tensors().iter().enumerate() {
        let range = shard.header().data_range(i);
        let found: [u8; 16] = Md5::digest(&data[range.start as usize..range.end as usize]).into();
        if shard.entry(i)?.md5().is_some_and(|stored| stored != found) {
            return Err(Error::new(Rule::ContentDigest).in_tensor(spec.name()));
        }
    }
    Ok(file)
}

/// The values of the tensor in a frame.
///
/// # Errors
/// The first rule that the frame breaks; [`Rule::Memory`] for a tensor beyond `most` bytes.
pub fn decode_frame(frame: &[u8], encodings: &Encodings, most: u64) -> Result<Vec<u8>> {
    let view = EncodedView::parse(frame)?;
    let byte_len = view.spec().byte_len();
    if byte_len > most {
        return Err(Error::new(Rule::Memory).expected(format!("at most {most} bytes")));
    }
    view.check()?;
    let mut values = vec![0; byte_len as usize];
    view.decode_bytes(encodings.get(view.encoding()), 0..byte_len, &mut values)?;
    Ok(values)
}

fn restore(source: impl ReadAt, encodings: &Encodings, most: u64) -> Result<(Vec<u8>, [u8; 32])> {
    let shard = Shard::open(source)?;
    shard.check_encodings()?;
    shard.check_prelude()?;
    if shard.original_len() > most {
        return Err(Error::new(Rule::Memory).expected(format!("at most {most} bytes")));
    }
    let mut out = (shard.header_json().len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(shard.header_json());
    for (i, spec) in shard.tensors().iter().enumerate() {
        let decoder = shard.decoder(i, encodings.get(shard.encoding(i)?))?;
        let begin = out.len();
        out.resize(begin + spec.byte_len() as usize, 0);
        shard.decode(i, &*decoder, 0..spec.byte_len(), &mut out[begin..])?;
    }
    Ok((out, shard.sha256()))
}

/// Writes an open shard again from its parts. For a valid shard the result is the same shard, byte
/// for byte, because there is only one way to write it.
///
/// # Errors
/// Those of the shard.
pub fn rewrite<R: ReadAt>(shard: &Shard<R>) -> Result<Vec<u8>> {
    let header = shard.header();
    let mut writer = Assembler::new(Vec::new(), shard.header_json().to_vec(), header.data_len())?;
    for i in 0..shard.tensors().len() {
        let entry = shard.entry(i)?;
        if let Some(owner) = entry.shares() {
            writer.share(owner, entry.md5())?;
            continue;
        }
        let tensor = shard.encoded(i)?;
        writer.tensor(&tensor, entry.md5())?;
    }
    writer.finish(shard.sha256())
}

/// The positions of the checksums in a shard, so that they can be recomputed after damage.
#[derive(Debug)]
pub struct Seals {
    /// For each tensor with its own payload: the offset of its record in the file, and its number
    /// of blocks.
    records: Vec<(usize, usize)>,
}

impl Seals {
    /// Finds them in a valid shard.
    ///
    /// # Errors
    /// Those of [`Shard::open`].
    pub fn of(sound: &[u8]) -> Result<Self> {
        let shard = Shard::open(sound)?;
        let index = sound.len() - 48 - shard.index_len() as usize;
        let mut at = index + 48 + shard.header_json().len().next_multiple_of(8);
        let mut records = Vec::new();
        for i in 0..shard.tensors().len() {
            let entry = shard.entry(i)?;
            let record = at;
            at += 32 + 16 * usize::from(entry.md5().is_some());
            if entry.shares().is_none() {
                let n = shard.table(i)?.n_blocks() as usize;
                records.push((record, n));
                at += (4 * n).next_multiple_of(8) + 8 * n;
            }
        }
        Ok(Seals { records })
    }

    /// Recomputes every checksum of `damaged`, if the fields that locate the data are still usable.
    /// The SHA-256 is not changed.
    pub fn renew(&self, damaged: &mut [u8]) {
        let Some(trailer) = damaged.len().checked_sub(48) else { return };
        for &(record, n_blocks) in &self.records {
            self.renew_record(damaged, record, n_blocks, trailer);
        }
        let from = u64_at(damaged, trailer).map_or(0, |at| at as usize).min(trailer + 32);
        let sum = xxh3(&damaged[from..trailer + 32]);
        put(damaged, trailer + 32, sum);
    }

    fn renew_record(&self, bytes: &mut [u8], record: usize, n_blocks: usize, trailer: usize) {
        let u32_at = |bytes: &[u8], at: usize| {
            Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
        };
        let (Some(head_len), Some(place)) = (u32_at(bytes, record + 4), u64_at(bytes, record + 8))
        else {
            return;
        };
        let place = place as usize;
        if let Some(head) = bytes.get(place..place.saturating_add(head_len)) {
            put(bytes, record + 24, xxh3(head));
        }
        let lens = record + 32 + 16 * usize::from(bytes[record + 1] & 2 != 0);
        let sums = lens + (4 * n_blocks).next_multiple_of(8);
        let mut at = place.saturating_add(head_len.next_multiple_of(8));
        for i in 0..n_blocks {
            let Some(len) = u32_at(bytes, lens + 4 * i) else { return };
            let end = at.saturating_add(len.next_multiple_of(8));
            if let Some(block) = bytes.get(at..end)
                && sums + 8 * i + 8 <= trailer
            {
                put(bytes, sums + 8 * i, xxh3(block));
            }
            at = end;
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(8)) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// The result of reading a damaged shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An error because a field is wrong.
    Structure,
    /// An error because the checksum of the index, a head or a block differs.
    Checksum,
    /// An error because the SHA-256 of the whole file differs.
    Digest,
    /// No error, and the right values.
    Harmless,
    /// No error, and wrong values.
    Silent,
}

impl Found {
    /// The result that an error stands for.
    #[must_use]
    pub fn by(error: &Error) -> Found {
        match error.rule() {
            Rule::IndexChecksum | Rule::HeadChecksum | Rule::BlockChecksum => Found::Checksum,
            Rule::ContentDigest => Found::Digest,
            _ => Found::Structure,
        }
    }
}

/// Counts the results. It is printed as a row of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The counts, in the order of [`Found`].
    counts: [u64; 5],
}

impl Tally {
    /// The heading of the table.
    pub const HEADING: &str =
        "       tried    structure     checksum      SHA-256     harmless       silent";

    /// Adds one result.
    pub fn add(&mut self, found: Found) {
        self.counts[found as usize] += 1;
    }

    /// Adds all counts of `other`.
    pub fn add_all(&mut self, other: &Tally) {
        self.counts.iter_mut().zip(other.counts).for_each(|(a, b)| *a += b);
    }

    /// The count of one kind of result.
    #[must_use]
    pub fn of(&self, found: Found) -> u64 {
        self.counts[found as usize]
    }

    /// The count of all results.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12}", self.tried())?;
        self.counts.iter().try_for_each(|n| write!(f, " {n:>12}"))
    }
}

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One bit flipped.
    Bit,
    /// One byte changed.
    Byte,
    /// 2 to 64 bits flipped, anywhere.
    Bits,
    /// A sector of 512 bytes set to zero.
    Zeros,
    /// A sector of 512 bytes replaced by another one of the same file.
    Copied,
    /// 1 to 64 bytes inserted.
    Inserted,
    /// 1 to 4096 bytes removed.
    Removed,
    /// The end of the file cut off.
    Cut,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] = [
        Kind::Bit,
        Kind::Byte,
        Kind::Bits,
        Kind::Zeros,
        Kind::Copied,
        Kind::Inserted,
        Kind::Removed,
        Kind::Cut,
    ];

    /// The name for users.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bit => "one bit flipped",
            Kind::Byte => "one byte changed",
            Kind::Bits => "2 to 64 bits flipped",
            Kind::Zeros => "a sector zeroed",
            Kind::Copied => "a sector of other bytes",
            Kind::Inserted => "bytes put in",
            Kind::Removed => "bytes taken out",
            Kind::Cut => "cut short",
        }
    }

    /// Damages `original`, which must not be empty. Half of the damage is in the last 64 KiB, where
    /// the index is.
    ///
    /// # Errors
    /// Those of `original`.
    pub fn damage<'a>(self, original: &'a dyn ReadAt, random: &mut Random) -> Result<Damaged<'a>> {
        let len = original.byte_len()?;
        let from = if random.bits() & 1 == 0 { len.saturating_sub(65_536) } else { 0 };
        let mut place = || from + random.bits() % (len - from).max(1);
        let byte_at = |at: u64| {
            let mut byte = [0];
            original.read_exact_at(at, &mut byte).map(|()| byte[0])
        };
        let mut edits = Vec::new();
        match self {
            Kind::Bit | Kind::Bits => {
                let n = if self == Kind::Bit { 1 } else { 2 + place() % 63 };
                let mut bytes = BTreeMap::new();
                for _ in 0..n {
                    let at = place();
                    let was = bytes.get(&at).copied().map_or_else(|| byte_at(at), Ok)?;
                    bytes.insert(at, was ^ 1 << (place() % 8));
                }
                edits.extend(bytes.into_iter().map(|(at, byte)| (at..at + 1, vec![byte])));
            }
            Kind::Byte => {
                let at = place();
                let other = byte_at(at)?.wrapping_add(1 + (place() % 255) as u8);
                edits.push((at..at + 1, vec![other]));
            }
            Kind::Zeros | Kind::Copied => {
                let sector = |at: u64| at / 512 * 512..len.min(at / 512 * 512 + 512);
                let at = sector(place());
                let mut bytes = vec![0; (at.end - at.start) as usize];
                if self == Kind::Copied {
                    let other = sector(place()).start.min(len - bytes.len() as u64);
                    original.read_exact_at(other, &mut bytes)?;
                }
                edits.push((at, bytes));
            }
            Kind::Inserted => {
                let (at, n) = (place(), 1 + place() % 64);
                edits.push((at..at, (0..n).map(|_| place() as u8).collect()));
            }
            Kind::Removed => {
                let at = place();
                edits.push((at..len.min(at + 1 + place() % 4096), Vec::new()));
            }
            Kind::Cut => edits.push((place()..len, Vec::new())),
        }
        Damaged::new(original, edits)
    }
}

/// A source that reads a file with some bytes replaced. The file itself is not changed.
pub struct Damaged<'a> {
    original: &'a dyn ReadAt,
    /// The offset of each piece, and its contents.
    pieces: Vec<(u64, Piece)>,
    byte_len: u64,
    touched: Vec<Range<u64>>,
}

#[derive(Debug)]
enum Piece {
    Original(Range<u64>),
    Other(Vec<u8>),
}

impl Piece {
    fn byte_len(&self) -> u64 {
        match self {
            Piece::Original(range) => range.end - range.start,
            Piece::Other(bytes) => bytes.len() as u64,
        }
    }
}

impl<'a> Damaged<'a> {
    /// Replaces each range of `original` by the given bytes. The ranges must be in order and must
    /// not overlap.
    ///
    /// # Errors
    /// That of the original's length.
    pub fn new(original: &'a dyn ReadAt, edits: Vec<(Range<u64>, Vec<u8>)>) -> Result<Self> {
        let mut out = Damaged { original, pieces: Vec::new(), byte_len: 0, touched: Vec::new() };
        let mut at = 0;
        for (range, bytes) in edits {
            out.push(Piece::Original(at..range.start));
            let moved = bytes.len() as u64 != range.end - range.start;
            out.touched.push(range.start..if moved { u64::MAX } else { range.end });
            at = range.end;
            out.push(Piece::Other(bytes));
        }
        out.push(Piece::Original(at..original.byte_len()?));
        Ok(out)
    }

    fn push(&mut self, piece: Piece) {
        if piece.byte_len() > 0 {
            let begin = self.byte_len;
            self.byte_len += piece.byte_len();
            self.pieces.push((begin, piece));
        }
    }

    /// Reads all bytes into memory.
    ///
    /// # Errors
    /// Those of the original.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.byte_len as usize];
        self.read_exact_at(0, &mut out)?;
        Ok(out)
    }

    fn touches(&self, range: &Range<u64>) -> bool {
        self.touched.iter().any(|t| t.start < range.end && range.start < t.end)
    }

    /// Opens the damaged file like any reader, reads every block that the damage affects, and
    /// returns the result. `sound` is the opened original.
    ///
    /// # Errors
    /// Those of the original.
    pub fn try_out<R: ReadAt>(&self, sound: &Shard<R>, encodings: &Encodings) -> Result<Found> {
        match self.read_touched(sound, encodings) {
            Ok(same) => Ok(if same { Found::Harmless } else { Found::Silent }),
            Err(error) if error.rule() == Rule::Io && self.original_fails() => Err(error),
            Err(error) => Ok(Found::by(&error)),
        }
    }

    fn original_fails(&self) -> bool {
        self.original.read_exact_at(0, &mut [0]).is_err()
    }

    fn read_touched<R: ReadAt>(&self, sound: &Shard<R>, encodings: &Encodings) -> Result<bool> {
        let shard = Shard::open(self)?;
        shard.check_prelude()?;
        let same_index = shard.header_json() == sound.header_json()
            && shard.sha256() == sound.sha256()
            && (0..sound.tensors().len()).all(|i| shard.entry(i).ok() == sound.entry(i).ok());
        if !same_index {
            return Ok(false);
        }
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        for (i, spec) in shard.tensors().iter().enumerate() {
            let payload = shard.payload_range(i)?;
            if !self.touches(&payload) {
                continue;
            }
            let encoding = encodings.get(shard.encoding(i)?);
            let (damaged, whole) = (shard.decoder(i, encoding)?, sound.decoder(i, encoding)?);
            for block in 0..spec.n_blocks() {
                let place = shard.table(i)?.padded_block_range(block);
                if !self.touches(&(payload.start + place.start..payload.start + place.end)) {
                    continue;
                }
                let begin = block * spec.block_bytes() as u64;
                let range = begin..begin + spec.block_byte_len(block) as u64;
                found.resize(spec.block_byte_len(block), 0);
                expected.resize(spec.block_byte_len(block), 0);
                shard.decode(i, &*damaged, range.clone(), &mut found)?;
                sound.decode(i, &*whole, range, &mut expected)?;
                if found != expected {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl fmt::Debug for Damaged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Damaged").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl ReadAt for Damaged<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.byte_len)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.byte_len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = buf;
        let first = self.pieces.partition_point(|(begin, _)| *begin <= offset).saturating_sub(1);
        for (begin, piece) in &self.pieces[first.min(self.pieces.len())..] {
            let skip = at - begin;
            let n = rest.len().min((piece.byte_len() - skip) as usize);
            let (now, after) = rest.split_at_mut(n);
            match piece {
                Piece::Original(range) => self.original.read_exact_at(range.start + skip, now)?,
                Piece::Other(bytes) => now.copy_from_slice(&bytes[skip as usize..][..n]),
            }
            rest = after;
            at += n as u64;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// A golden file: a small valid shard, and the safetensors file to which it is restored.
#[derive(Debug)]
pub struct Golden {
    /// The file's name.
    pub name: String,
    /// The shard.
    pub bytes: Vec<u8>,
    /// The safetensors file.
    pub restored: Vec<u8>,
    seals: Seals,
    backends: Vec<Encodings>,
}

/// The largest restored size of a golden file, also when a damaged header states more.
const MOST: u64 = 1 << 30;

impl Golden {
    /// All golden files, the smallest first.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn all() -> Result<Vec<Golden>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(crate::goldens::folder())? {
            let path = entry?.path();
            if path.extension().is_some_and(|x| x == "bs") {
                found.push(Golden::read(&path)?);
            }
        }
        found.sort_by_key(|g| g.bytes.len());
        Ok(found)
    }

    fn read(path: &Path) -> Result<Golden> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(path)?;
        // The fastest backend, and one with different code. They must agree on everything.
        let backends = [Backend::best(), Backend::Portable].map(Encodings::new);
        let backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
        let restored = restore_all(&bytes[..], &backends[0], MOST).map_err(|e| e.in_file(path))?;
        let seals = Seals::of(&bytes)?;
        Ok(Golden { name, bytes, restored, seals, backends })
    }

    /// Reads `damaged` in place of this file with several readers, and returns the result.
    ///
    /// # Panics
    /// If two readers disagree, or if the error is not one of a damaged file.
    #[must_use]
    pub fn judge(&self, damaged: &[u8]) -> Found {
        let results = self.backends.iter().map(|e| restore_all(damaged, e, MOST));
        let found = results.map(|result| match result {
            Ok(file) if file == self.restored => Ok(()),
            Ok(_) => Err(None),
            Err(error) => {
                assert!(
                    matches!(error.class(), Class::Corrupt | Class::Unsupported | Class::Limit),
                    "{}: {error:?}",
                    self.name
                );
                Err(Some((error.rule(), error.offset())))
            }
        });
        let found: Vec<_> = found.collect();
        assert!(found.windows(2).all(|w| w[0] == w[1]), "{}: {found:?}", self.name);
        match found[0] {
            Ok(()) => Found::Harmless,
            Err(None) => Found::Silent,
            Err(Some((rule, _))) => Found::by(&Error::new(rule)),
        }
    }

    /// `damaged` with every checksum recomputed.
    #[must_use]
    pub fn sealed(&self, mut damaged: Vec<u8>) -> Vec<u8> {
        self.seals.renew(&mut damaged);
        damaged
    }

    fn judge_sealed(&self, damaged: Vec<u8>, sealed: bool) -> Found {
        self.judge(&if sealed { self.sealed(damaged) } else { damaged })
    }

    /// Flips every `step`-th bit, one at a time. With `sealed`, every checksum is recomputed.
    ///
    /// # Errors
    /// Never; the signature is that of the other functions.
    pub fn every_bit(&self, step: usize, sealed: bool, tally: &mut Tally) -> Result<()> {
        for bit in (0..8 * self.bytes.len()).step_by(step) {
            let mut damaged = self.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            tally.add(self.judge_sealed(damaged, sealed));
        }
        Ok(())
    }

    /// Cuts the file at every byte. With `sealed`, a trailer is appended that says that the index
    /// ends there.
    ///
    /// # Errors
    /// Never; the signature is that of the other functions.
    pub fn every_cut(&self, sealed: bool, tally: &mut Tally) -> Result<()> {
        for len in 0..self.bytes.len() {
            let mut damaged = self.bytes[..len].to_vec();
            if sealed {
                let trailer = self.bytes.len() - 48;
                let index = u64_at(&self.bytes, trailer).unwrap_or(0).min(len as u64);
                damaged.extend_from_slice(&self.bytes[trailer..]);
                put(&mut damaged, len, index);
                put(&mut damaged, len + 8, len as u64 - index);
                // The trailer of the whole file, at its old position.
                if damaged == self.bytes {
                    continue;
                }
            }
            tally.add(self.judge_sealed(damaged, sealed));
        }
        Ok(())
    }

    /// `n` random damages of one kind.
    ///
    /// # Errors
    /// Never; the signature is that of the other functions.
    pub fn random(&self, kind: Kind, n: usize, seed: u64, tally: &mut Tally) -> Result<()> {
        let mut random = Random::new(seed);
        for _ in 0..n {
            let damaged = kind.damage(&self.bytes, &mut random)?.to_vec()?;
            if damaged != self.bytes {
                tally.add(self.judge(&damaged));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_one() {
        let original: Vec<u8> = (0..100).collect();
        let edits = vec![(10..12, vec![200, 201]), (20..30, vec![]), (40..40, vec![1, 2, 3])];
        let mut expected = original.clone();
        expected.splice(40..40, [1, 2, 3]);
        expected.splice(20..30, []);
        expected.splice(10..12, [200, 201]);
        let damaged = Damaged::new(&original, edits).unwrap();
        assert_eq!(damaged.to_vec().unwrap(), expected);
        for from in 0..expected.len() {
            for to in from..=expected.len() {
                let mut buf = vec![0; to - from];
                damaged.read_exact_at(from as u64, &mut buf).unwrap();
                assert_eq!(buf, expected[from..to], "{from}..{to}");
            }
        }
        assert!(damaged.read_exact_at(90, &mut [0; 4]).is_err());
    }

    #[test]
    fn wrong_values_without_an_error_are_silent() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../goldens/raw-dtypes.bs");
        let bytes = std::fs::read(golden).unwrap();
        let encodings = Encodings::new(Backend::best()).unwrap();
        let sound = Shard::open(&bytes[..]).unwrap();
        assert_eq!(rewrite(&sound).unwrap(), bytes);
        // A different valid shard: no reader can detect it, so the result must be `Silent`.
        let mut sealed = bytes.clone();
        sealed[16] ^= 1;
        Seals::of(&bytes).unwrap().renew(&mut sealed);
        let replaced = Damaged {
            original: &bytes,
            byte_len: sealed.len() as u64,
            pieces: vec![(0, Piece::Other(sealed.clone()))],
            touched: std::iter::once(0..u64::MAX).collect(),
        };
        assert_eq!(replaced.try_out(&sound, &encodings).unwrap(), Found::Silent);
        assert_eq!(
            restore_all(&sealed[..], &encodings, 1 << 20).unwrap_err().rule(),
            Rule::ContentDigest
        );
        let same = Damaged::new(&bytes, vec![(20..21, vec![bytes[20]])]).unwrap();
        assert_eq!(same.try_out(&sound, &encodings).unwrap(), Found::Harmless);
        let other = Damaged::new(&bytes, vec![(20..21, vec![!bytes[20]])]).unwrap();
        assert_eq!(other.try_out(&sound, &encodings).unwrap(), Found::Checksum);
    }
}
