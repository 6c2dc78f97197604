//! Pages: every one comes back from every backend, whatever the tables were trained on; what is
//! damaged, or belongs to other tables, is refused.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod oracle;
mod random;

use bigsmall_codec::*;
use oracle::page;
use random::Random;

const DTYPES: [Dtype; 8] = [
    Dtype::BF16,
    Dtype::F16,
    Dtype::F32,
    Dtype::F64,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
    Dtype::I16,
    Dtype::F4,
];

/// Units that are much alike, about `scale` in size.
fn units(random: &mut Random, dtype: Dtype, n: usize, scale: f64) -> Vec<u8> {
    let mut out = vec![];
    for _ in 0..n {
        let value = random.normal() * scale;
        let bits = match dtype {
            Dtype::BF16 => u64::from((value as f32).to_bits() >> 16),
            Dtype::F16 => u64::from(half::f16::from_f64(value).to_bits()),
            Dtype::F8_E5M2 => u64::from(half::f16::from_f64(value).to_bits() >> 8),
            Dtype::F32 => u64::from((value as f32).to_bits()),
            Dtype::F64 => value.to_bits(),
            _ => (value * 9.0) as i64 as u64,
        };
        out.extend(&bits.to_le_bytes()[..dtype.unit_bytes()]);
    }
    out
}

fn train(dtype: Dtype, level: Level) -> Pages {
    let mut random = Random::new(3);
    let samples: Vec<_> = [0.5, 2.0].map(|scale| units(&mut random, dtype, 20_000, scale)).into();
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    Pages::train_with(dtype, &samples, level).unwrap()
}

/// The head of the tables.
fn head(pages: &Pages) -> Vec<u8> {
    EncodedTensor::from_bytes(&pages.to_bytes()).unwrap().head().to_vec()
}

fn encode(pages: &Pages, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0xa5; pages.max_encoded_len(bytes.len())];
    let n = pages.encode_page(bytes, &mut out).unwrap();
    out.truncate(n);
    out
}

fn decode(pages: &Pages, encoded: &[u8], byte_len: usize) -> Result<Vec<u8>> {
    let mut out = vec![0x5a; byte_len];
    pages.decode_page(encoded, &mut out).map(|()| out)
}

/// The tables once for each backend.
fn of_every_backend(pages: &Pages) -> Vec<Pages> {
    let again = |backend| Pages::from_bytes(&pages.to_bytes()).unwrap().with_backend(backend);
    backends().map(|backend| again(backend).unwrap()).collect()
}

#[test]
fn every_page_comes_back() {
    let mut random = Random::new(1);
    let r = &mut random;
    for dtype in DTYPES {
        let unit = dtype.unit_bytes();
        let pages = train(dtype, if dtype == Dtype::F16 { Level::Small } else { Level::Default });
        let head = head(&pages);
        let backends = of_every_backend(&pages);
        let sizes = [0, 1, 255, 256, 300, 4095, 4096, 4097, 4400, 8192, 8191 + 256, 131_073];
        for (i, n) in sizes.into_iter().enumerate() {
            let like = units(r, dtype, n, 1.0);
            let mut half = like.clone();
            half[n / 2 * unit..].fill(0);
            let mut some = like.clone();
            some.chunks_mut(unit).step_by(61).for_each(|u| u.fill(r.bits() as u8));
            let kinds = [
                ("of the samples", like),
                ("of another scale", units(r, dtype, n, 1e-9)),
                ("half empty", half),
                ("with odd values", some),
                ("zeros", vec![0; n * unit]),
                ("of one value", [7, 0x3e, 0x40, 0x3f, 1, 2, 3, 0x41][8 - unit..].repeat(n)),
                ("of any bits", r.bytes(n * unit)),
            ];
            for (kind, bytes) in kinds {
                let what = format!("{dtype}, {n} units, {kind}");
                let encoded = encode(&pages, &bytes);
                assert!(encoded.len() <= pages.max_encoded_len(bytes.len()), "{what}");
                assert_eq!(pages.page_len(&encoded).unwrap(), bytes.len(), "{what}");
                for pages in &backends {
                    assert!(encode(pages, &bytes) == encoded, "{what}: {pages:?}");
                    let back = decode(pages, &encoded, bytes.len()).unwrap();
                    assert!(back == bytes, "{what}: {pages:?}");
                }
                if i < 11 {
                    assert!(page::read(dtype, &head, &encoded) == Ok(bytes), "{what}");
                }
            }
        }
        if dtype == Dtype::BF16 {
            let page = units(r, dtype, 8192, 1.0);
            let n = encode(&pages, &page).len();
            assert!(n * 100 < page.len() * 69, "{n} bytes of {}", page.len());
            let mut page = page;
            page[4000..].fill(0);
            let n = encode(&pages, &page).len();
            assert!(n < 3300, "{n} bytes for 4000 and zeros");
        }
    }
}

#[test]
fn of_any_length() {
    let pages = train(Dtype::BF16, Level::Fast);
    let mut random = Random::new(8);
    let all = units(&mut random, Dtype::BF16, 400_000, 1.0);
    for _ in 0..60 {
        let n = random.below(400_000) as usize >> random.below(12);
        let bytes = &all[..2 * n];
        let encoded = encode(&pages, bytes);
        assert!(decode(&pages, &encoded, bytes.len()).unwrap() == bytes, "{n} units");
    }
}

#[test]
fn many_threads_use_the_same_tables() {
    let pages = train(Dtype::BF16, Level::Default);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let pages = &pages;
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for _ in 0..20 {
                    let n = 1 + random.below(20_000) as usize;
                    let bytes = units(&mut random, Dtype::BF16, n, 1.0);
                    let encoded = encode(pages, &bytes);
                    assert!(decode(pages, &encoded, bytes.len()).unwrap() == bytes);
                }
            });
        }
    });
}

/// K-01: every bit of a page flipped, and every length that is too short or too long.
#[test]
fn damage_is_an_error() {
    let pages = train(Dtype::BF16, Level::Default);
    let mut random = Random::new(4);
    for n in [0, 3, 700, 4700] {
        let mut bytes = units(&mut random, Dtype::BF16, n, 1.0);
        bytes[n..].fill(0);
        let encoded = encode(&pages, &bytes);
        let check = |damaged: &[u8], what: &str| {
            let error = decode(&pages, damaged, bytes.len()).unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{what}: {error}");
        };
        for bit in 0..8 * encoded.len() {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            check(&damaged, &format!("bit {bit}"));
        }
        for len in 0..encoded.len() {
            check(&encoded[..len], &format!("{len} bytes"));
        }
        check(&[&encoded[..], &[0; 8]].concat(), "8 bytes more");
    }
}

/// K-02
#[test]
fn a_page_of_other_tables_is_an_error() {
    let [ours, other] = [Level::Default, Level::Small].map(|level| train(Dtype::BF16, level));
    let mut random = Random::new(5);
    let bytes = units(&mut random, Dtype::BF16, 1000, 1.0);
    let error = decode(&other, &encode(&ours, &bytes), bytes.len()).unwrap_err();
    assert_eq!(error.rule(), Rule::PageTables);
}

/// K-03: sealed pages of blocks, lengths and bits that do not belong there: the same pages are
/// taken as by the oracle, with the same bytes.
#[test]
fn sealed_damage_is_refused_as_the_oracle_does() {
    let mut random = Random::new(6);
    let r = &mut random;
    for dtype in [Dtype::BF16, Dtype::F32, Dtype::F8_E4M3] {
        let unit = dtype.unit_bytes();
        let pages = train(dtype, Level::Default);
        let head = head(&pages);
        let backends = of_every_backend(&pages);
        let judge = |damaged: &[u8], byte_len: usize, what: &str| {
            let expected = page::read(dtype, &head, damaged);
            for pages in &backends {
                let found = decode(pages, damaged, byte_len);
                match &expected {
                    Ok(bytes) if bytes.len() == byte_len => {
                        assert!(found.unwrap() == *bytes, "{what}");
                    }
                    // The page says another length than the caller.
                    Ok(_) => assert_eq!(found.unwrap_err().rule(), Rule::BufferLength, "{what}"),
                    Err(_) => {
                        let class = found.unwrap_err().class();
                        assert!(matches!(class, Class::Corrupt | Class::Usage), "{what}");
                    }
                }
            }
            expected.err()
        };
        for n in [300, 4096, 5003] {
            let bytes = units(r, dtype, n, 1.0);
            let sound = encode(&pages, &bytes);
            assert_eq!(judge(&sound, bytes.len(), "sound"), None);
            for round in 0..150 {
                let mut damaged = sound.clone();
                // Half of the edits among the lengths and the headers of the first block.
                let most = if r.below(2) == 0 { 60 } else { damaged.len() as u64 };
                let at = (8 + r.below(most - 8)) as usize;
                match r.below(3) {
                    0 => damaged[at] ^= 1 << r.below(8),
                    1 => damaged[at] = r.bits() as u8,
                    _ => damaged.truncate(at.max(16)),
                }
                page::seal(&mut damaged);
                judge(&damaged, bytes.len(), &format!("{dtype} {n} {round}"));
            }
            // Blocks of another cut, too few and too many.
            let raw = |units: &[u8]| [&[0; 8], units].concat();
            let cut = page::cut(n);
            let mut at = 0;
            let mut blocks = vec![];
            for units in cut {
                blocks.push(raw(&bytes[at * unit..(at + units) * unit]));
                at += units;
            }
            let len = bytes.len() as u32;
            let plain = page::page(&head, len, &blocks);
            assert_eq!(judge(&plain, bytes.len(), "raw blocks"), None);
            let whole = page::page(&head, len, &[raw(&bytes)]);
            assert_eq!(judge(&whole, bytes.len(), "one block").is_some(), blocks.len() > 1);
            blocks.push(raw(&[]));
            let more = page::page(&head, len, &blocks);
            assert!(judge(&more, bytes.len(), "a block more").is_some());
            blocks.truncate(blocks.len() - 2);
            let less = page::page(&head, len, &blocks);
            assert!(judge(&less, bytes.len(), "a block less").is_some());
        }
    }
}

/// K-04
#[test]
fn tables_are_validated_on_load() {
    let pages = train(Dtype::BF16, Level::Default);
    let bytes = pages.to_bytes();
    assert_eq!(Pages::from_bytes(&bytes).unwrap().to_bytes(), bytes);
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = Pages::from_bytes(&damaged).unwrap_err();
        assert_ne!(error.class(), Class::Usage, "{bit}: {error}");
    }
    for len in 0..bytes.len() {
        assert_eq!(Pages::from_bytes(&bytes[..len]).unwrap_err().class(), Class::Corrupt, "{len}");
    }
    // Frames of something else.
    let frame = |name: &str, shape: &[u64], encoding: &dyn TensorEncoding| {
        let spec = TensorSpec::new(name, Dtype::BF16, shape).unwrap();
        let units = vec![0; spec.byte_len() as usize];
        encode_tensor(encoding, &spec, &units).unwrap().to_bytes()
    };
    let raw: &dyn TensorEncoding = &bigsmall_format::Raw;
    let ans: &dyn TensorEncoding = &Ans::default();
    for (name, shape, encoding) in
        [("", &[0][..], raw), ("", &[1], ans), ("w", &[0], ans), ("", &[0, 2], ans)]
    {
        let error = Pages::from_bytes(&frame(name, shape, encoding)).unwrap_err();
        assert_eq!(error.rule(), Rule::PageTables, "{name:?} {shape:?}");
    }
    // Sealed: a head that cannot be.
    let mut head = head(&pages);
    head[1] = 9;
    let spec = TensorSpec::new("", Dtype::BF16, &[0]).unwrap();
    let sealed = oracle::seal(&spec, &head, &[]).unwrap().to_bytes();
    assert_eq!(Pages::from_bytes(&sealed).unwrap_err().rule(), Rule::AnsHead);
}

/// K-05
#[test]
fn wrong_use_is_an_error() {
    let pages = train(Dtype::BF16, Level::Default);
    let rule = |result: Result<usize>| result.unwrap_err().rule();
    let bytes = units(&mut Random::new(7), Dtype::BF16, 1000, 1.0);
    let encoded = encode(&pages, &bytes);
    for len in [0, 15, 16, encoded.len() - 1] {
        let mut out = vec![0; len];
        assert_eq!(rule(pages.encode_page(&bytes, &mut out)), Rule::BufferLength);
    }
    assert_eq!(pages.encode_page(&bytes, &mut vec![0; encoded.len()]).unwrap(), encoded.len());
    let mut out = vec![0; 10_000];
    assert_eq!(rule(pages.encode_page(&bytes[1..], &mut out)), Rule::BufferLength);
    for len in [0, 1998, 2002, 1 << 20] {
        assert_eq!(decode(&pages, &encoded, len).unwrap_err().rule(), Rule::BufferLength);
    }
    for samples in [&[][..], &[&bytes[..510]], &[&bytes[..513], &bytes]] {
        let error = Pages::train(Dtype::BF16, samples).unwrap_err();
        assert_eq!(error.rule(), Rule::BufferLength);
    }
    // A length of 4 GiB is not believed.
    let mut long = encoded;
    long[8..12].fill(0xfe);
    page::seal(&mut long);
    assert_eq!(pages.page_len(&long).unwrap_err().rule(), Rule::PageLength);
    assert_eq!(decode(&pages, &long, 2000).unwrap_err().rule(), Rule::PageLength);
}
