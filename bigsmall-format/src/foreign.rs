//! Names files that are neither safetensors files nor shards, for errors.

use crate::read_at::{len_of, read_at};
use crate::shard::MAGIC;
use crate::{Error, ReadAt};

/// Bytes of the start that are looked at.
const START: usize = 512;

/// Characters of a text that are shown.
const SHOWN: usize = 100;

/// Starts of files, and what the file is and what to do about it.
const STARTS: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself: `git lfs pull` fetches it",
    ),
    (b"GGUF", "a GGUF file: take the model's safetensors files"),
    (b"\x93NUMPY", "a NumPy array (.npy): save it as safetensors"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras): save the weights as safetensors"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file: unpack it first"),
    (b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (
        b"\0\x05\x16\x07",
        "what macOS keeps beside a file (AppleDouble): the file has the name without `._`",
    ),
];

const PICKLE: &str = "a PyTorch pickle (.bin, .pt, .pth, .ckpt): save its tensors as safetensors";

/// An error of the same rule that says what the file `source` is and what to do about it; `error`
/// if that is not known.
pub(crate) fn explain(source: &dyn ReadAt, error: Error) -> Error {
    let mut start = [0; START];
    let Ok(byte_len) = len_of(source) else { return error };
    let Some(start) = start.get_mut(..byte_len.min(START as u64) as usize) else { return error };
    match read_at(source, 0, start).ok().and_then(|()| named(start)) {
        Some(what) => Error::new(error.rule()).found(what),
        None => error,
    }
}

fn named(start: &[u8]) -> Option<String> {
    if start.is_empty() {
        return Some("an empty file".into());
    }
    if start.starts_with(&MAGIC) {
        return Some("this is a bigsmall shard, which is compressed already".into());
    }
    if start.get(4..9) == Some(b"\0\0\0\0{") {
        return Some("it begins as a safetensors file; is it cut short?".into());
    }
    if let Some((_, what)) = STARTS.iter().find(|(begin, _)| start.starts_with(begin)) {
        return Some((*what).into());
    }
    match start {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => return Some(zip(start).into()),
        // Protocols 2 to 5; older files of PyTorch begin with a number.
        [0x80, 2..=5, ..] => return Some(PICKLE.into()),
        // The version, then the name of the program that wrote it.
        [8, 1..=31, 0x12, ..] => return Some("an ONNX model: take its safetensors files".into()),
        _ => {}
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some("a tar archive: unpack it first".into());
    }
    if start.len() >= 16 && start.iter().all(|&byte| byte == 0) {
        return Some("nothing but zeros: the file was not written or downloaded whole".into());
    }
    text(start)
}

/// An archive, by the name of its first file.
fn zip(start: &[u8]) -> &'static str {
    let name_len = start.get(26..28).and_then(|n| Some(u16::from_le_bytes(n.try_into().ok()?)));
    let end = 30usize.saturating_add(name_len.unwrap_or(0).into());
    let name = start.get(30..end.min(start.len())).unwrap_or_default();
    if name.ends_with(b".npy") {
        "a NumPy archive (.npz): save its arrays as safetensors"
    } else if name.ends_with(b".pkl") {
        PICKLE
    } else {
        "a zip archive, such as a PyTorch checkpoint: save its tensors as safetensors"
    }
}

/// A text. It may be the answer of a server, saved in place of the file.
fn text(start: &[u8]) -> Option<String> {
    let whole = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The last character may be cut.
        Err(e) if start.len().saturating_sub(e.valid_up_to()) < 4 => {
            std::str::from_utf8(start.get(..e.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    if whole.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let text = whole.trim_start_matches('\u{feff}').trim();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    let kind = if begins("<!doctype html") || begins("<html") || begins("<head") {
        "a page of HTML"
    } else if begins("<?xml") {
        "XML"
    } else if text.starts_with(['{', '[']) {
        "JSON"
    } else {
        "a text"
    };
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    Some(format!(
        "{kind}, such as the answer of a server in place of the file ({shown:?}): download it \
         again, logged in if the model is restricted"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Header, Limits, Rule, Shard};

    /// What is said about a file under both names that it may have.
    fn said(bytes: &[u8]) -> [(Rule, String); 2] {
        let header = Header::read(&bytes, &Limits::default()).unwrap_err();
        let shard = Shard::open(bytes).unwrap_err();
        [(header.rule(), header.to_string()), (shard.rule(), shard.to_string())]
    }

    #[test]
    // E-23
    fn files_of_other_kinds_are_named_as_safetensors_files_and_as_shards() {
        let zip = |name: &str| {
            let mut zip = b"PK\x03\x04".to_vec();
            zip.resize(26, 0);
            zip.extend((name.len() as u16).to_le_bytes());
            zip.extend([0, 0]);
            zip.extend(name.as_bytes());
            zip.resize(900, 7);
            zip
        };
        let long = |start: &[u8]| [start, &[9; 900]].concat();
        let mut tar = vec![b'x'; 1024];
        tar[100..257].fill(0);
        tar[257..262].copy_from_slice(b"ustar");
        let html =
            "\r\n<!DOCTYPE html>\n<html><title>Sign in</title>".to_owned() + &"ä".repeat(300);
        let cases: &[(&[u8], &str)] = &[
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4\n",
                "git lfs pull",
            ),
            (&zip("archive/data.pkl"), "a PyTorch pickle"),
            (&zip("w.npy"), "a NumPy archive"),
            (&zip("other"), "a zip archive"),
            (&long(b"\x80\x02\x8a\x0al\xfc\x9cF"), "a PyTorch pickle"),
            (&long(b"GGUF\x03\0\0\0"), "a GGUF file"),
            (&long(b"\x93NUMPY\x01\0"), "a NumPy array"),
            (&long(b"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
            (&long(b"\x1f\x8b\x08"), "a gzip file"),
            (&long(b"\x08\x07\x12\x07pytorch"), "an ONNX model"),
            (&long(b"\0\x05\x16\x07\0\x02\0\0"), "AppleDouble"),
            (&tar, "a tar archive"),
            (&[0; 1000], "nothing but zeros"),
            (b"", "an empty file"),
            (b"[]", "JSON"),
            (br#"{"error":"Access to model meta/x is restricted."}"#, "JSON"),
            (html.as_bytes(), "a page of HTML"),
            (b"Access to model meta/x is restricted. You must have access to it.\n", "a text"),
        ];
        for (bytes, what) in cases {
            for (rule, text) in said(bytes) {
                assert!(text.contains(what), "{rule:?}: {text}");
                assert!(text.lines().count() == 1 && text.len() < 400, "{text}");
                assert!(
                    matches!(rule, Rule::HeaderLength | Rule::ShardMagic | Rule::ShardTooShort),
                    "{what}: {rule:?}"
                );
            }
        }
        // What the text says is shown, and nothing of it reaches a terminal as it is.
        let [(_, text), _] = said("Access to \u{202e}model is \u{2066}restricted".as_bytes());
        assert!(text.contains("Access to \\u{202e}model"), "{text}");
    }

    #[test]
    fn what_begins_as_a_safetensors_file_is_none_of_another_kind() {
        for bytes in [&b"\x08\x01\0\0\0\0\0\0{\"w\""[..], b"\x40\0\0\0\0\0\0\0{\"w\":{\"dtype\""] {
            let [(rule, text), _] = said(bytes);
            assert_eq!(rule, Rule::HeaderLength);
            assert!(text.contains("cut short"), "{text}");
        }
    }
}
