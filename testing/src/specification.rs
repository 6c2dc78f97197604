//! Reads FORMAT.md for tests: the text, the test vectors and the table of rules.

/// The text of FORMAT.md.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../FORMAT.md");
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The words of the vector `key` in the specification: the words after `key:` in an indented line,
/// and those in the following lines that are indented deeper. A `#` begins a comment.
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

/// A row of the table of all rules.
#[derive(Debug)]
pub struct Row<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// The name of its class.
    pub class: &'a str,
    /// The numbers of the sections that state the rule.
    pub sections: Vec<&'a str>,
}

/// The table of all rules.
///
/// # Panics
/// If a row does not have four columns.
#[must_use]
pub fn rules(specification: &str) -> Vec<Row<'_>> {
    let rows = specification.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.filter_map(|line| {
        let columns: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, class @ ("Corrupt" | "Unsupported" | "Limit"), sections, _] = columns[..] else {
            return None;
        };
        Some(Row { rule: rule.trim_matches('`'), class, sections: sections.split(", ").collect() })
    });
    rows.collect()
}

/// The section with that number, including its subsections.
///
/// # Panics
/// If there is no such section.
#[must_use]
pub fn section<'a>(specification: &'a str, number: &str) -> &'a str {
    let heading = format!("# {number}{} ", if number.contains('.') { "" } else { "." });
    let begin = specification
        .find(&heading)
        .unwrap_or_else(|| panic!("FORMAT.md lacks the section {number}"));
    let level = specification[..begin].chars().rev().take_while(|c| *c == '#').count() + 1;
    let rest = &specification[begin + 1..];
    let ends = (2..=level).filter_map(|n| rest.find(&format!("\n{} ", "#".repeat(n))));
    &rest[..ends.min().unwrap_or(rest.len())]
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Parses hexadecimal digits. Spaces are ignored.
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
