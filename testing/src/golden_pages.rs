//! The golden pages (FORMAT.md section 7.7): tables, and pages with what they hold.

use bigsmall_codec::{Dtype, Pages, Result};

use crate::Random;

/// Name and contents of the tables, of pages that they encode, and of what those hold.
///
/// # Errors
/// Those of the encoder, on a bug.
pub(crate) fn golden_pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut random = Random::new(77);
    let sample = random.weights(20_000);
    let pages = Pages::train(Dtype::BF16, &[&sample])?;
    let mut files = vec![("pages.tables".to_owned(), pages.to_bytes())];
    // Two blocks, of which the first is the longer one; values that the tables do not know.
    let mut odd = random.weights(4700);
    odd.chunks_mut(2).step_by(97).for_each(|unit| unit.copy_from_slice(&[0xc1, 0x7f]));
    // The second block ends in zeros.
    let mut filling = random.weights(4096);
    filling[6000..].fill(0);
    let named = [
        ("odd", odd),
        ("filling", filling),
        ("short", random.weights(300)),
        ("raw", random.bytes(2 * 700)),
        ("empty", vec![]),
    ];
    for (name, bytes) in named {
        let mut page = vec![0; pages.max_encoded_len(bytes.len())];
        let n = pages.encode_page(&bytes, &mut page)?;
        page.truncate(n);
        files.push((format!("{name}.page"), page));
        files.push((format!("{name}.bytes"), bytes));
    }
    Ok(files)
}
