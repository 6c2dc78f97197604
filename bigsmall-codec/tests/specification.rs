//! The test vectors of FORMAT.md section 7.6, read out of that file: neither can change without the
//! other. They are checked against the oracle, which is written from the text, and the frame
//! against every backend; `agree` and `hostile` compare the oracle with the backends on everything
//! else.
#![allow(clippy::unwrap_used)]

mod oracle;

use bigsmall_codec::*;
use bigsmall_format::internal::xxh3;
use bigsmall_testing::specification::{self, from_hex, hex, vector};
use oracle::{Bits, Head};

fn list<T: std::fmt::Display>(of: impl IntoIterator<Item = T>) -> String {
    of.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn vectors() {
    let text = specification::text();
    let mut wrong = Vec::new();
    let mut check = |key: &str, ours: String| {
        let theirs = vector(&text, key);
        if theirs.join(" ") != ours && theirs.concat() != ours {
            wrong.push(format!("{key}: {ours}"));
        }
    };

    let freqs: Vec<u32> = vector(&text, "frequencies").iter().map(|f| f.parse().unwrap()).collect();
    let mut bits = Bits::default();
    oracle::push_table(&mut bits, &freqs);
    check("table bytes", hex(&bits.bytes(1)));
    let alias = oracle::alias(&freqs);
    check("keep", list(&alias.keep));
    check("donor", list(&alias.donor));
    let slots = [0, 1, 127, 128, 1279, 1280, 2000, 3000, 4095];
    let slot = |i: usize| format!("{i}:{}:{}", alias.slots[i].0, alias.slots[i].2);
    check("slots, as slot:symbol:rank", list(slots.map(slot)));

    for n in 1..=8 {
        let values: Vec<u8> = (0..256).map(|i| (i * i / 8 % (1 << n)) as u8).collect();
        let packed = oracle::pack(&values, n);
        assert_eq!(oracle::unpack(&packed, n), values);
        check(&format!("packed {n}"), format!("{:#018x}", xxh3(&packed)));
        if n == 3 {
            check("packed 3 begins", hex(&packed[..32]));
        }
    }
    let lows: Vec<u64> = (0..256).map(|i| i * 40503 % 2048 * 32).collect();
    let packed = oracle::pack_lows(&lows, 16, 11);
    check("low planes begin", hex(&packed[..16]));
    check("low planes", format!("{:#018x}", xxh3(&packed)));

    let head = Head::plain(Dtype::BF16, 1, 112, vec![freqs]);
    let exceptions: Vec<(usize, u32)> = vector(&text, "exceptions, as position:field")
        .iter()
        .map(|pair| pair.split_once(':').unwrap())
        .map(|(position, field)| (position.parse().unwrap(), field.parse().unwrap()))
        .collect();
    check("exception bytes", hex(&oracle::write_exceptions(&head, &exceptions, 3).bytes(1)));

    let mut with_masks = head.clone();
    with_masks.mask = Some(Box::new(Head::plain(Dtype::U8, 0, 0, vec![vec![16; 256]])));
    let unit = |i: u16| if i % 32 == 5 { 0x3f80 + i } else { 0 };
    let units: Vec<u8> = (0..260).flat_map(|i| unit(i).to_le_bytes()).collect();
    let block = from_hex(&vector(&text, "zeros block").concat());
    assert_eq!(oracle::decode(&with_masks, &block, 260).unwrap(), units);
    let (mask, others, k) = oracle::zeros(&block, 260).unwrap();
    check("zeros block", hex(&oracle::zeros_block(mask, others, k)));
    let spec = TensorSpec::new("z", Dtype::BF16, &[260]).unwrap();
    for backend in bigsmall_codec::backends() {
        let ans = Ans::default().with_backend(backend).unwrap();
        let mut back = vec![0; units.len()];
        let decoder = ans.open(&spec, &with_masks.write()).unwrap();
        decoder.decode_blocks(&[&block], &mut back).unwrap();
        assert_eq!(back, units, "{backend:?}");
    }

    let mut with_columns = head.clone();
    with_columns.columns = vec![1, 0, 7, 0, 1];
    check("columns", hex(&oracle::columns(&with_columns.columns)));
    let order = oracle::order_of_classes(&with_columns.columns, 3, 12);
    let order: Vec<String> = order.iter().map(usize::to_string).collect();
    assert_eq!(vector(&text, "order of units"), order);
    let unit = |i: usize| 0x3c00 + 37 * i as u16 % 0x280;
    let order = oracle::order_of_classes(&with_columns.columns, 3, 300);
    let ordered: Vec<u8> = order.into_iter().flat_map(|i| unit(i).to_le_bytes()).collect();
    let choices = oracle::Choices { tables: vec![0], low_widths: vec![], q: 2, begin: vec![] };
    let within = oracle::encode(&with_columns, &ordered, &choices).bytes();
    let block = oracle::columns_block(3, &within);
    let units: Vec<u8> = (0..300).flat_map(|i| unit(i).to_le_bytes()).collect();
    assert_eq!(oracle::decode(&with_columns, &block, 300).unwrap(), units);
    let spec = TensorSpec::new("c", Dtype::BF16, &[300]).unwrap();
    for backend in bigsmall_codec::backends() {
        let ans = Ans::default().with_backend(backend).unwrap();
        let mut back = vec![0; units.len()];
        let decoder = ans.open(&spec, &with_columns.write()).unwrap();
        decoder.decode_blocks(&[&block], &mut back).unwrap();
        assert_eq!(back, units, "{backend:?}");
    }

    let head = Head::plain(Dtype::U8, 0, 0, vec![vec![16; 256]]);
    let units: Vec<u8> = (0..300u32).map(|i| (i % 10) as u8).collect();
    let block = from_hex(&vector(&text, "deflate block").concat());
    assert_eq!(oracle::decode(&head, &block, 300).unwrap(), units);
    let spec = TensorSpec::new("d", Dtype::U8, &[300]).unwrap();
    let decoder = Ans::default().open(&spec, &head.write()).unwrap();
    let mut back = vec![0; units.len()];
    decoder.decode_blocks(&[&block], &mut back).unwrap();
    assert_eq!(back, units);

    // The bytes of the frame are what the encoder chose once; what counts is that they are read for
    // ever.
    let units: Vec<u8> = (0..261u16)
        .map(|i| match i {
            7 => 0x0001,
            100 => 0x7fc1,
            _ => (i % 2) << 15 | (240 + (i % 256).count_ones() as u16) << 6 | (29 * i % 64),
        })
        .flat_map(u16::to_le_bytes)
        .collect();
    let spec = TensorSpec::new("v", Dtype::BF16, &[261]).unwrap();
    let ours = encode_tensor(&Ans::default(), &spec, &units).unwrap().to_bytes();
    let theirs = vector(&text, "frame").concat();
    if theirs.contains('?') {
        wrong.push(format!("frame: {}", hex(&ours)));
    }
    assert!(wrong.is_empty(), "FORMAT.md should say\n{}", wrong.join("\n"));

    let tensor = EncodedTensor::from_bytes(&from_hex(&theirs)).unwrap();
    assert_eq!(tensor.spec(), &spec);
    let head = Head::read(Dtype::BF16, tensor.head()).unwrap();
    assert_eq!(head.write(), tensor.head());
    assert_eq!(oracle::decode(&head, tensor.block(0), 261).unwrap(), units);
    for backend in bigsmall_codec::backends() {
        let ans = Ans::default().with_backend(backend).unwrap();
        let mut back = vec![0; units.len()];
        tensor.decode_bytes(&ans, 0..units.len() as u64, &mut back).unwrap();
        assert_eq!(back, units, "{backend:?}");
    }
}

#[test]
fn pages() {
    let text = specification::text();
    let freqs: Vec<u32> = vector(&text, "frequencies").iter().map(|f| f.parse().unwrap()).collect();
    let head = Head::plain(Dtype::BF16, 1, 112, vec![freqs]).write();
    let units: Vec<u8> = [0x3f80u16, 0xbf80, 0].into_iter().flat_map(u16::to_le_bytes).collect();
    let raw = [&[0; 8], &units[..]].concat();
    let page = oracle::page::page(&head, 6, &[raw]);
    let spec = TensorSpec::new("", Dtype::BF16, &[0]).unwrap();
    let frame = oracle::seal(&spec, &head, &[]).unwrap().to_bytes();
    assert_eq!(vector(&text, "tables").concat(), hex(&frame));
    assert_eq!(vector(&text, "page").concat(), hex(&page));
    let pages = Pages::from_bytes(&frame).unwrap();
    let mut ours = vec![0; pages.max_encoded_len(6)];
    let n = pages.encode_page(&units, &mut ours).unwrap();
    assert_eq!(ours[..n], page);
    let mut back = [0; 6];
    pages.decode_page(&page, &mut back).unwrap();
    assert_eq!(back[..], units);
}

/// The vectors of section 10: blocks against a base, decoded by the oracle and by every backend.
#[test]
fn deltas() {
    let text = specification::text();
    let bytes = |key: &str| from_hex(&vector(&text, key).concat());
    let units = |unit: &dyn Fn(u16) -> u16| -> Vec<u8> {
        (0..260).flat_map(|i| unit(i).to_le_bytes()).collect()
    };
    let of_base = |i: u16| (0x3c00 + 37 * i % 0x280) | ((i % 2) << 15);
    let base = units(&of_base);
    let dense = units(&|i| match i {
        9 => 0,
        200 => 0xff80,
        _ => of_base(i) + (u32::from(i) * u32::from(i) / 8 % 5) as u16,
    });
    let few = units(&|i| match i {
        3 => of_base(i) + 1,
        77 => of_base(i) - 2,
        259 => of_base(i) + 40,
        _ => of_base(i),
    });
    let spec = TensorSpec::new("d", Dtype::BF16, &[260]).unwrap();
    let head_bytes = bytes("delta head");
    let head = oracle::delta::Head::read(Dtype::BF16, &head_bytes).unwrap();
    for (key, kind, new) in [
        ("delta coded block", 1, &dense),
        ("delta sparse block", 2, &few),
        ("delta by class block", 3, &few),
    ] {
        let block = bytes(key);
        assert_eq!(block[0], kind, "{key}");
        assert!(oracle::delta::decode(&head, &block, &base).unwrap() == *new, "{key}");
        for backend in backends() {
            let delta = Delta::default().with_backend(backend).unwrap();
            let mut units = base.clone();
            let decoder = delta.open(&spec, &head_bytes).unwrap();
            decoder.decode_blocks(&[&block], &mut units).unwrap();
            assert!(units == *new, "{key} {backend}");
        }
    }
}
