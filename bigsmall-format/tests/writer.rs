//! What [`ShardWriter`] promises: what it writes is what is due, and restores to the file whose
//! SHA-256 the shard holds.
#![allow(clippy::unwrap_used)]

use bigsmall_format::*;
use sha2::{Digest, Sha256};

/// An encoding that writes every block as its first unit where all units are the same, and is twice
/// as long otherwise.
struct Constant;

struct Blocks(usize);

impl TensorEncoding for Constant {
    fn id(&self) -> EncodingId {
        EncodingId::Ans
    }

    fn supports(&self, dtype: Dtype) -> bool {
        dtype == Dtype::U8
    }

    fn plan(&self, spec: &TensorSpec, _: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        Ok(Box::new(Blocks(spec.block_bytes())))
    }

    fn open(&self, spec: &TensorSpec, _: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        Ok(Box::new(Blocks(spec.block_bytes())))
    }
}

impl BlockEncoder for Blocks {
    fn head(&self) -> &[u8] {
        b"constant"
    }

    fn encode_blocks(
        &self,
        _: u64,
        units: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        for block in units.chunks(self.0) {
            let same = block.iter().all(|b| *b == block[0]);
            let encoded = if same { vec![block[0]; 56] } else { [block, block].concat() };
            lens.push(encoded.len() as u32);
            out.extend(encoded);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        Ok(())
    }
}

impl BlockDecoder for Blocks {
    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        for (block, dst) in blocks.iter().zip(dst.chunks_mut(self.0)) {
            match block.len() {
                56 => dst.fill(block[0]),
                _ => dst.copy_from_slice(&block[..dst.len()]),
            }
        }
        Ok(())
    }
}

fn encoding(id: EncodingId) -> &'static dyn TensorEncoding {
    if id == EncodingId::Raw { &Raw } else { &Constant }
}

/// The safetensors file that a shard restores to; its SHA-256 is the one in the shard.
fn verified(bytes: &[u8]) -> Vec<u8> {
    let shard = Shard::open(bytes).unwrap();
    let json = shard.header_json();
    let mut file = [&(json.len() as u64).to_le_bytes(), json].concat();
    for (i, spec) in shard.tensors().iter().enumerate() {
        let decoder = shard.decoder(i, encoding(shard.encoding(i).unwrap())).unwrap();
        let mut values = vec![0; spec.byte_len() as usize];
        shard.decode(i, &*decoder, 0..spec.byte_len(), &mut values).unwrap();
        file.extend(values);
    }
    assert_eq!(shard.sha256()[..], Sha256::digest(&file)[..], "the SHA-256 of what is restored");
    file
}

fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(name, dtype, shape).unwrap()
}

/// Bytes without any order.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..n).map(next).collect()
}

#[test]
fn the_documented_example_verifies_and_restores() {
    let spec = spec("w", Dtype::U8, &[3]);
    let mut writer = ShardWriter::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    writer.write(&spec, &[1, 2, 3], &Raw).unwrap();
    let file = verified(&writer.finish().unwrap());
    assert!(file.ends_with(&[1, 2, 3]));
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.tensor("w").unwrap().data(), [1, 2, 3]);
}

/// Every way to write, several blocks each, with a header of our own and with one of a file.
#[test]
fn every_way_to_write_verifies() {
    let n = 2 * MAX_BLOCK_UNITS + 77;
    let specs = [
        spec("same", Dtype::U8, &[n as u64]),
        spec("noise", Dtype::U8, &[n as u64]),
        spec("encoded", Dtype::U8, &[n as u64]),
        // More than is decoded at once.
        spec("large", Dtype::U8, &[150, MAX_BLOCK_UNITS as u64]),
        spec("tied", Dtype::U8, &[n as u64]),
        spec("tied again", Dtype::U8, &[1, n as u64]),
        spec("none", Dtype::U8, &[0]),
        spec("other", Dtype::F32, &[20]),
    ];
    let json = Header::synthesise(&specs).unwrap();
    let data_len = specs.iter().map(TensorSpec::byte_len).sum();
    let large: Vec<u8> = (0..150).flat_map(|i| vec![i; MAX_BLOCK_UNITS]).collect();
    for synthesised in [true, false] {
        let mut writer = match synthesised {
            true => ShardWriter::synthesised(Vec::new(), &specs).unwrap(),
            false => ShardWriter::new(Vec::new(), json.clone(), data_len).unwrap(),
        };
        assert_eq!(
            writer.tensors(),
            Header::parse(&json, data_len, &Limits::default()).unwrap().tensors()
        );
        let noise = noise(n);
        writer.write(&specs[0], &vec![7; n], &Constant).unwrap();
        writer.write(&specs[1], &noise, &Constant).unwrap();
        let encoded = encode_tensor(&Constant, &specs[2], &vec![9; n]).unwrap();
        writer.write_encoded(&encoded, &Constant).unwrap();
        let encoded = encode_tensor(&Constant, &specs[3], &large).unwrap();
        writer.write_encoded(&encoded, &Constant).unwrap();
        writer.share(&specs[4], &noise, "noise").unwrap();
        writer.share(&specs[5], &noise, "tied").unwrap();
        writer.write(&specs[6], &[], &Constant).unwrap();
        writer.write(&specs[7], &[5; 80], &Constant).unwrap();
        let bytes = writer.finish().unwrap();
        let file = verified(&bytes);
        let data = &file[8 + json.len()..];
        let expected = [&vec![7; n], &noise, &vec![9; n], &large, &noise, &noise, &vec![5; 80]];
        assert!(expected.map(|v| &v[..]).concat() == data);
        let shard = Shard::open(bytes).unwrap();
        let ids: Vec<_> = (0..8).map(|i| shard.encoding(i).unwrap().name()).collect();
        assert_eq!(ids, ["ans", "raw", "ans", "ans", "raw", "raw", "raw", "raw"]);
        let shares: Vec<_> = (0..8).map(|i| shard.entry(i).unwrap().shares()).collect();
        assert_eq!(shares[4..6], [Some(1), Some(1)]);
        // What does not shrink takes no more than its own bytes.
        let range = shard.payload_range(1).unwrap();
        assert_eq!(range.end - range.start, n.next_multiple_of(8) as u64);
    }
}

#[test]
fn only_the_tensor_that_is_due_is_taken() {
    let due = spec("k_proj", Dtype::U8, &[2, 3]);
    let bytes = [1, 2, 3, 4, 5, 6];
    let other = [
        spec("q_proj", Dtype::U8, &[2, 3]),
        spec("k_proj", Dtype::I8, &[2, 3]),
        spec("k_proj", Dtype::U8, &[3, 2]),
        spec("k_proj", Dtype::U8, &[6]),
    ];
    for wrong in &other {
        let specs = [spec("first", Dtype::U8, &[6]), due.clone()];
        let mut writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
        writer.write(&specs[0], &bytes, &Raw).unwrap();
        let encoded = encode_tensor(&Raw, wrong, &bytes.to_vec()).unwrap();
        for error in [
            writer.write(wrong, &bytes, &Raw).unwrap_err(),
            writer.write_encoded(&encoded, &Raw).unwrap_err(),
            writer.share(wrong, &bytes, "first").unwrap_err(),
        ] {
            assert_eq!((error.rule(), error.class()), (Rule::WriterMisuse, Class::Usage));
            for spec in [&due, wrong] {
                let text = format!("{:?}, {} {:?}", spec.name(), spec.dtype(), spec.shape());
                assert!(error.to_string().contains(&text), "{error} names {text}");
            }
        }
        // Nothing of it was written or hashed.
        writer.write(&due, &bytes, &Raw).unwrap();
        verified(&writer.finish().unwrap());
    }
}

#[test]
fn misuse_is_an_error() {
    let specs = [spec("a", Dtype::U8, &[3]), spec("b", Dtype::U8, &[3])];
    let mut writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
    let error = writer.share(&specs[0], &[1, 2, 3], "a").unwrap_err();
    assert_eq!(error.rule(), Rule::WriterMisuse);
    let error = writer.write(&specs[0], &[1, 2], &Raw).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::BufferLength, Some("a")));
    let encoded = encode_tensor(&Raw, &specs[0], &vec![1, 2, 3]).unwrap();
    let error = writer.write_encoded(&encoded, &Constant).unwrap_err();
    assert_eq!(error.rule(), Rule::SpecMismatch);
    writer.write_encoded(&encoded, &Raw).unwrap();
    // Values that are not those of the earlier tensor, and a tensor that does not exist.
    let error = writer.share(&specs[1], &[1, 2, 4], "a").unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::WriterMisuse, Some("b")));
    let error = writer.share(&specs[1], &[1, 2, 3], "c").unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::TensorMissing, Some("c")));
    writer.share(&specs[1], &[1, 2, 3], "a").unwrap();
    let error = writer.write(&specs[1], &[1, 2, 3], &Raw).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::WriterMisuse, Some("b")));
    verified(&writer.finish().unwrap());
    let writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
    assert_eq!(writer.finish().unwrap_err().rule(), Rule::WriterMisuse);
}

/// Two tensors of 32 bytes with the same XXH3: where the first 8 bytes are those of the hash's
/// secret, they are multiplied as zero, and the next 8 do not count.
#[test]
// M-02
fn tensors_with_the_same_short_hash_are_not_taken_for_the_same() {
    let secret = 0xbe4b_a423_396c_feb8_u64.to_le_bytes();
    let [one, other] = [0u8, 255].map(|fill| [&secret[..], &[fill; 8], &[7; 16]].concat());
    assert_eq!(internal::xxh3(&one), internal::xxh3(&other));
    let specs = [spec("a", Dtype::U8, &[32]), spec("b", Dtype::U8, &[32])];
    for encoded in [false, true] {
        let mut writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
        match encoded {
            false => writer.write(&specs[0], &one, &Raw).unwrap(),
            true => {
                let tensor = encode_tensor(&Raw, &specs[0], &one).unwrap();
                writer.write_encoded(&tensor, &Raw).unwrap();
            }
        }
        assert!(writer.has_values("a", &one).unwrap());
        assert!(!writer.has_values("a", &other).unwrap());
        assert!(!writer.has_values("b", &one).unwrap(), "not written yet");
        assert_eq!(writer.has_values("c", &one).unwrap_err().rule(), Rule::TensorMissing);
        let error = writer.share(&specs[1], &other, "a").unwrap_err();
        assert_eq!((error.rule(), error.tensor()), (Rule::WriterMisuse, Some("b")));
        writer.write(&specs[1], &other, &Raw).unwrap();
        verified(&writer.finish().unwrap());
    }
}
