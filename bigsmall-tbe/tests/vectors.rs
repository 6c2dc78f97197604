//! The test vectors of FORMAT.md section 8.

#![allow(clippy::unwrap_used)]

use bigsmall_tbe::{Dtype, Tbe, TensorSpec, View, Width, encode_tensor};
use bigsmall_testing::oracle::tbe as oracle;
use bigsmall_testing::specification::{self, from_hex};

/// Dtype, width, base, values, block.
const VECTORS: &[(Dtype, Width, u8, &str, &str)] = &[
    (
        Dtype::BF16,
        Width::Three,
        115,
        "3f80 bf80 3c00 0000 3c41 7f80 3cc0",
        "3f00000000000000 6b00000000000000 7f00000000000000 0080000041004000 0000000000000000 \
         7f7f00ff",
    ),
    (
        Dtype::BF16,
        Width::Four,
        113,
        "3f80 bf80 3c00 0000 3c41 7f80 3cc0",
        "3c00000000000000 3f00000000000000 3f00000000000000 6b00000000000000 0080000041004000 \
         0000000000000000 00ff",
    ),
    (
        Dtype::F16,
        Width::Three,
        9,
        "3c00 bc01 2eff 0000 2c03 7c00 2fff",
        "2800000000000000 7f00000000000000 2b00000000000000 4000000000000000 4400000000000000 \
         0200000000000000 0001ff000300ff00 0000000000000000 001f",
    ),
    (
        Dtype::F8_E4M3,
        Width::Three,
        1,
        "38 b9 1f 00 7e 27 a0",
        "7800000000000000 7f00000000000000 1b00000000000000 2600000000000000 3400000000000000 \
         3400000000000000 4200000000000000 0000000000000000 000f",
    ),
    (
        Dtype::F8_E5M2,
        Width::Four,
        0,
        "3c bd 1b 00 7c 03 a1",
        "1300000000000000 1700000000000000 1700000000000000 5300000000000000 6600000000000000 \
         2400000000000000 4200000000000000 0000000000000000 0f0f1f",
    ),
];

#[test]
fn encoder_decoder_and_oracle_agree_with_them() {
    for &(dtype, width, base, values, block) in VECTORS {
        let values: Vec<u16> =
            values.split(' ').map(|v| u16::from_str_radix(v, 16).unwrap()).collect();
        let bytes = oracle::bytes(dtype, &values);
        let expected = from_hex(block);
        assert_eq!(oracle::encode_block(dtype, width.bits(), base, &values), expected);
        assert_eq!(
            oracle::decode_block(dtype, width.bits(), base, values.len(), &expected),
            values
        );

        let spec = TensorSpec::new("v", dtype, &[values.len() as u64]).unwrap();
        let encoded = encode_tensor(&Tbe::new(width), &spec, &bytes).unwrap();
        assert_eq!(encoded.head(), [width.bits() as u8, base, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded.block(0), expected);
        let mut decoded = vec![0; bytes.len()];
        View::new(&encoded).unwrap().decode(0..values.len() as u64, &mut decoded).unwrap();
        assert_eq!(decoded, bytes);
    }
}

#[test]
fn the_specification_has_them() {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let specification = squeeze(&specification::text());
    for &(dtype, width, base, values, block) in VECTORS {
        let vector = squeeze(&format!(
            "{dtype} width {} base {base} values {values} block {block}",
            width.bits()
        ));
        assert!(specification.contains(&vector), "FORMAT.md lacks `{vector}`");
    }
}
