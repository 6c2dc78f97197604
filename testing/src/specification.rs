//! FORMAT.md as tests read it: the text, and the test vectors in it.

/// The text of FORMAT.md.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../FORMAT.md");
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The words of the vector `key` in the specification: those after `key:` in an indented line, and
/// those in the lines after it that are indented deeper. What follows a `#` is a comment.
///
/// # Panics
/// If there is no such vector.
#[must_use]
pub fn vector<'a>(specification: &'a str, key: &str) -> Vec<&'a str> {
    let mut lines = specification.lines();
    let first = lines
        .by_ref()
        .find_map(|line| line.strip_prefix("    ")?.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("FORMAT.md lacks the vector `{key}`"));
    let more = lines.take_while(|line| line.starts_with("        "));
    let code = |line: &'a str| line.split('#').next().unwrap_or("");
    std::iter::once(first).chain(more).flat_map(|line| code(line).split_whitespace()).collect()
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for; blanks do not count.
///
/// # Panics
/// If `text` holds something else, or half a byte.
#[must_use]
pub fn from_hex(text: &str) -> Vec<u8> {
    let digit = |c: char| c.to_digit(16).unwrap_or_else(|| panic!("{c:?} is not a digit")) as u8;
    let digits: Vec<u8> = text.chars().filter(|c| !c.is_whitespace()).map(digit).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}
