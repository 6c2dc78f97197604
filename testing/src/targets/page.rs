//! The target of pages.

use std::sync::OnceLock;

use bigsmall_codec::{Class, Dtype, EncodedTensor, Level, Pages};

use super::{Input, backends, edit};
use crate::Random;
use crate::oracle::ans;

const DTYPES: [Dtype; 4] = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::U8];

/// Tables of one dtype, on every backend, and their head.
struct Tables {
    dtype: Dtype,
    head: Vec<u8>,
    pages: Vec<Pages>,
}

fn tables() -> &'static [Tables] {
    static TABLES: OnceLock<Vec<Tables>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let of = |dtype: Dtype| {
            let sample = Random::new(9).weights(30_000);
            let pages = Pages::train_with(dtype, &[&sample], Level::Default).unwrap();
            let bytes = pages.to_bytes();
            let again = |backend| Pages::from_bytes(&bytes).unwrap().with_backend(backend).unwrap();
            let head = EncodedTensor::from_bytes(&bytes).unwrap().head().to_vec();
            Tables { dtype, head, pages: backends().map(again).collect() }
        };
        DTYPES.map(of).into()
    })
}

/// Any bytes as a page, or a sound page with edits: every backend says what the oracle says; an
/// edit without a new checksum is detected.
pub fn page(data: &[u8]) {
    let mut input = Input(data);
    let Tables { dtype, head, pages } = &tables()[usize::from(input.u8()) % DTYPES.len()];
    let n_units = usize::from(input.u16()) % 6000;
    let byte_len = n_units * dtype.unit_bytes();
    let decode = |pages: &Pages, page: &[u8]| {
        let mut out = vec![0x5a; byte_len];
        pages.decode_page(page, &mut out).map(|()| out)
    };
    let mut page = input.0.to_vec();
    if input.u8() & 1 == 1 {
        let bytes = input.fill(byte_len);
        let [first, ..] = &pages[..] else { return };
        page = vec![0; first.max_encoded_len(byte_len)];
        let n = first.encode_page(&bytes, &mut page).unwrap();
        page.truncate(n);
        for pages in pages {
            let mut again = vec![0; pages.max_encoded_len(byte_len)];
            assert_eq!(pages.encode_page(&bytes, &mut again).unwrap(), n);
            assert!(again[..n] == page, "backends write different pages");
            assert!(decode(pages, &page).unwrap() == bytes);
        }
        let sound = page.clone();
        for _ in 0..input.u8() % 4 {
            edit(&mut input, &mut page);
        }
        if page != sound {
            let error = decode(first, &page).unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{error}");
        }
    }
    if page.len() >= 16 {
        let id = &ans::page::page(head, 0, &[])[12..16];
        page[12..16].copy_from_slice(id);
        ans::page::seal(&mut page);
    }
    let expected = ans::page::read(*dtype, head, &page).ok().filter(|b| b.len() == byte_len);
    for pages in pages {
        let found = decode(pages, &page);
        if let Err(error) = &found {
            assert!(matches!(error.class(), Class::Corrupt | Class::Usage), "{error}");
        }
        assert!(found.ok() == expected, "the oracle: {:?}", expected.is_some());
    }
}
