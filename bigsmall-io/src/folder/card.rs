//! The model card of a compressed folder. Visitors of the Hub see it; restoring the folder leaves
//! it out.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bigsmall_format::internal::{Shown, len_of, read_at};
use bigsmall_format::{Base, ReadAt};

use crate::error::{Context as _, Result};
use crate::source::folder::Folder;
use crate::{FileReport, hex};

/// The card's name, and its name if the model has a card of its own.
pub(crate) const NAMES: [&str; 2] = ["README.md", "BIGSMALL.md"];

/// The beginning of every card, and of no file of a model: cards are recognised by it.
const BEGIN: &str = "---
library_name: bigsmall
tags:
- bigsmall
- lossless-compression
---
<!-- Written by bigsmall, and left out when the folder is restored. -->
";

/// The card's name beside the files of a model; `None` if both names are taken.
pub(crate) fn name(files: &BTreeSet<PathBuf>) -> Option<&'static str> {
    let taken = |name: &&str| {
        // Some file systems ignore case.
        files.iter().any(|f| f.to_str().is_some_and(|f| f.eq_ignore_ascii_case(name)))
    };
    NAMES.into_iter().find(|name| !taken(name))
}

/// The cards among the files of a folder.
pub(crate) fn all(folder: &Folder, files: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut cards = BTreeSet::new();
    for name in files.iter().filter(|name| may_be(name)) {
        if is_card(&folder.open_file(name)?).in_file(name)? {
            cards.insert(name.clone());
        }
    }
    Ok(cards)
}

/// Whether the file `name` of a folder may be a card.
pub(crate) fn may_be(name: &Path) -> bool {
    NAMES.iter().any(|card| name == Path::new(card))
}

/// Whether `file` is a card.
pub(crate) fn is_card(file: &dyn ReadAt) -> Result<bool> {
    let mut begin = [0; BEGIN.len()];
    if len_of(file)? < BEGIN.len() as u64 {
        return Ok(false);
    }
    read_at(file, 0, &mut begin)?;
    Ok(begin == BEGIN.as_bytes())
}

/// A name in a table of Markdown, which may become a page: nothing in it is a link, a tag or the
/// end of a cell.
fn in_table(name: &str) -> String {
    let mut out = String::new();
    for c in Shown::whole(name).to_string().chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '|' | '[' | ']' | '`' | '*' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

/// The card of a model with the safetensors files `files`. It depends on nothing else.
pub(crate) fn text(files: &[FileReport]) -> String {
    let mut files: Vec<&FileReport> = files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let (original, compressed) = files.iter().fold((0, 0), |(original, compressed), f| {
        (original + f.original_bytes, compressed + f.compressed_bytes)
    });
    // Integers, so that every machine rounds the same way.
    let share = u128::from(compressed) * 10_000 / u128::from(original.max(1));
    let mut bases: Vec<&Base> = files.iter().flat_map(|f| &f.bases).collect();
    bases.sort_by(|a, b| (&a.hint, a.sha256).cmp(&(&b.hint, b.sha256)));
    bases.dedup_by_key(|base| base.sha256);
    let with_base_model = match bases.is_empty() {
        true => "",
        false => ".with_base(BaseModel::open(\"BASE\")?)?",
    };
    let with_base = if bases.is_empty() { "" } else { " --base BASE" };
    let mut out = String::from(BEGIN);
    let _ = write!(
        out,
        "
# Compressed weights

{original} bytes of weights in {compressed} ({}.{:02} %), compressed without loss: \
restoring gives back the identical files.

## How to load

```console
$ cargo install bigsmall-io --features cli,hub
$ bigsmall verify hf://OWNER/NAME{with_base}
$ bigsmall restore hf://OWNER/NAME{with_base} -o model
```

In Rust, with only the bytes fetched that are needed:

```rust
let model = bigsmall_io::Model::open(\"hf://OWNER/NAME\")?{with_base_model};
let tensor = model.tensor(\"NAME OF A TENSOR\")?;
```

## Files

| file restored | bytes | compressed | SHA-256 of the restored file |
|---|---|---|---|
",
        share / 100,
        share % 100
    );
    for f in &files {
        let name = in_table(&f.name);
        let _ = writeln!(
            out,
            "| {name} | {} | {} | `{}` |",
            f.original_bytes,
            f.compressed_bytes,
            hex(&f.sha256)
        );
    }
    if !bases.is_empty() {
        out += "\n## Base\n\nSome tensors are stored as differences from these files, which are \
                needed too:\n\n";
        out += "| file | SHA-256 of its safetensors form |\n|---|---|\n";
        for base in bases {
            let _ = writeln!(out, "| {} | `{}` |", in_table(&base.hint), hex(&base.sha256));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // U-01, U-02
    fn a_name_in_the_card_is_text_and_nothing_else() {
        for (name, expected) in [
            ("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors"),
            ("<img src=x>&|y", "&lt;img src=x&gt;&amp;\\|y"),
            ("[a](http://b)`c`", "\\[a\\](http://b)\\`c\\`"),
            ("\u{202e}x\n", "\\u{202e}x\\n"),
        ] {
            assert_eq!(in_table(name), expected);
        }
    }
}
