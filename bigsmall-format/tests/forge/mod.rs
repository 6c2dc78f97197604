//! Shards and frames written by hand from FORMAT.md sections 4, 5 and 9, right or wrong in any
//! field, with every checksum right.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use bigsmall_format::ReadAt;
use bigsmall_format::internal::xxh3;

pub const MAGIC: [u8; 8] = *b"\x89bsmall\n";

/// A source that lends nothing: everything is copied out of it.
pub struct Copying<'a>(pub &'a [u8]);

impl ReadAt for Copying<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(offset, buf)
    }
}

pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// One index record, field by field.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub encoding: u8,
    pub flags: u8,
    pub reserved: u16,
    pub head_len: u32,
    pub place: u64,
    pub length: u64,
    pub head_hash: u64,
    pub md5: Option<[u8; 16]>,
    pub lens: Vec<u32>,
    pub hashes: Vec<u64>,
}

impl Record {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![self.encoding, self.flags];
        out.extend(self.reserved.to_le_bytes());
        out.extend(self.head_len.to_le_bytes());
        out.extend(self.place.to_le_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(self.head_hash.to_le_bytes());
        out.extend(self.md5.iter().flatten());
        out.extend(self.lens.iter().flat_map(|n| n.to_le_bytes()));
        pad(&mut out);
        out.extend(self.hashes.iter().flat_map(|h| h.to_le_bytes()));
        out
    }

    /// The record of a tensor that shares the payload of the one at `place`.
    pub fn shared(place: u64) -> Record {
        Record { flags: 1, place, ..Record::default() }
    }
}

/// A shard, field by field. `None` for what follows from the rest.
#[derive(Clone, Debug)]
pub struct Forge {
    pub before: Vec<u8>,
    pub prelude: [u8; 16],
    pub payloads: Vec<u8>,
    pub header_len: Option<u64>,
    pub sha256: [u8; 32],
    pub count: Option<u32>,
    pub flags: u32,
    pub header: Vec<u8>,
    pub header_padding: u8,
    /// The section of bases.
    pub bases: Vec<u8>,
    pub records: Vec<Record>,
    pub index_tail: Vec<u8>,
    pub index_offset: Option<u64>,
    pub index_len: Option<u64>,
    pub required: u32,
    pub ignorable: u32,
    pub version: u16,
    pub reserved: [u8; 6],
    pub checksum: Option<u64>,
    pub magic: [u8; 8],
    pub after: Vec<u8>,
}

impl Forge {
    pub fn new(header: &str) -> Forge {
        let mut prelude = [0; 16];
        prelude[..8].copy_from_slice(&MAGIC);
        prelude[8] = 1;
        Forge {
            before: vec![],
            prelude,
            payloads: vec![],
            header_len: None,
            sha256: [0; 32],
            count: None,
            flags: 0,
            header: header.as_bytes().to_vec(),
            header_padding: 0,
            bases: vec![],
            records: vec![],
            index_tail: vec![],
            index_offset: None,
            index_len: None,
            required: 0,
            ignorable: 0,
            version: 1,
            reserved: [0; 6],
            checksum: None,
            magic: MAGIC,
            after: vec![],
        }
    }

    /// Adds a payload of a head and blocks, and its record.
    pub fn add(&mut self, encoding: u8, head: &[u8], blocks: &[&[u8]]) -> &mut Record {
        let place = 16 + self.payloads.len() as u64;
        self.payloads.extend(head);
        pad(&mut self.payloads);
        let mut record = Record {
            encoding,
            head_len: head.len() as u32,
            place,
            head_hash: xxh3(head),
            ..Record::default()
        };
        for block in blocks {
            let mut padded = block.to_vec();
            pad(&mut padded);
            record.lens.push(block.len() as u32);
            record.hashes.push(xxh3(&padded));
            self.payloads.extend(padded);
        }
        record.length = 16 + self.payloads.len() as u64 - place;
        self.records.push(record);
        self.records.last_mut().unwrap()
    }

    pub fn index(&self) -> Vec<u8> {
        let mut index = self.header_len.unwrap_or(self.header.len() as u64).to_le_bytes().to_vec();
        index.extend(self.sha256);
        index.extend(self.count.unwrap_or(self.records.len() as u32).to_le_bytes());
        index.extend(self.flags.to_le_bytes());
        index.extend(&self.header);
        index.resize(index.len().next_multiple_of(8), self.header_padding);
        index.extend(&self.bases);
        index.extend(self.records.iter().flat_map(Record::bytes));
        index.extend(&self.index_tail);
        index
    }

    pub fn bytes(&self) -> Vec<u8> {
        let index = self.index();
        let offset = (self.before.len() + 16 + self.payloads.len()) as u64;
        let mut out = self.before.clone();
        out.extend(self.prelude);
        out.extend(&self.payloads);
        out.extend(&index);
        let offset = self.index_offset.unwrap_or(offset);
        out.extend(offset.to_le_bytes());
        out.extend(self.index_len.unwrap_or(index.len() as u64).to_le_bytes());
        out.extend(self.required.to_le_bytes());
        out.extend(self.ignorable.to_le_bytes());
        out.extend(self.version.to_le_bytes());
        out.extend(self.reserved);
        // The checksum of what the trailer says is the index.
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(out.len());
        let sum = xxh3(&out[from..]);
        out.extend(self.checksum.unwrap_or(sum).to_le_bytes());
        out.extend(self.magic);
        out.extend(&self.after);
        out
    }
}

/// Recomputes the checksum of the index as the trailer places it, after its bytes were changed.
pub fn reseal_index(shard: &mut [u8]) {
    let end = shard.len() - 48;
    let offset = u64::from_le_bytes(shard[end..end + 8].try_into().unwrap());
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(end + 32);
    let sum = xxh3(&shard[from..end + 32]);
    shard[end + 32..end + 40].copy_from_slice(&sum.to_le_bytes());
}

/// A frame written by hand from FORMAT.md section 9.
#[derive(Clone)]
pub struct Frame {
    pub magic: [u8; 8],
    pub version: u8,
    pub encoding: u8,
    pub dtype: Vec<u8>,
    pub dtype_len: Option<u8>,
    pub rank: Option<u8>,
    pub head_len: Option<u32>,
    pub name: Vec<u8>,
    pub name_len: Option<u64>,
    pub head_hash: Option<u64>,
    pub shape: Vec<u64>,
    pub padding: u8,
    pub lens: Vec<u32>,
    pub lens_padding: u8,
    pub hashes: Vec<u64>,
    pub checksum: Option<u64>,
    pub head: Vec<u8>,
    pub payload: Vec<u8>,
    pub after: Vec<u8>,
}

impl Frame {
    pub fn sound() -> Frame {
        Frame {
            magic: *b"\x89bsmlT\r\n",
            version: 1,
            encoding: 0,
            dtype: b"U8".to_vec(),
            dtype_len: None,
            rank: None,
            head_len: None,
            name: b"w".to_vec(),
            name_len: None,
            head_hash: None,
            shape: vec![3],
            padding: 0,
            lens: vec![3],
            lens_padding: 0,
            hashes: vec![xxh3(&[1, 2, 3, 0, 0, 0, 0, 0])],
            checksum: None,
            head: vec![],
            payload: vec![1, 2, 3, 0, 0, 0, 0, 0],
            after: vec![],
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend([self.version, self.encoding]);
        out.push(self.dtype_len.unwrap_or(self.dtype.len() as u8));
        out.push(self.rank.unwrap_or(self.shape.len() as u8));
        out.extend(self.head_len.unwrap_or(self.head.len() as u32).to_le_bytes());
        out.extend(self.name_len.unwrap_or(self.name.len() as u64).to_le_bytes());
        out.extend(self.head_hash.unwrap_or(xxh3(&self.head)).to_le_bytes());
        out.extend(self.shape.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(&self.dtype);
        out.extend(&self.name);
        out.resize(out.len().next_multiple_of(8), self.padding);
        out.extend(self.lens.iter().flat_map(|n| n.to_le_bytes()));
        out.resize(out.len().next_multiple_of(8), self.lens_padding);
        out.extend(self.hashes.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(self.checksum.unwrap_or(xxh3(&out)).to_le_bytes());
        out.extend(&self.head);
        pad(&mut out);
        out.extend(&self.payload);
        out.extend(&self.after);
        out
    }
}
