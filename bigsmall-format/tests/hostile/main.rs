//! Damaged and forged shards, headers and frames: each is refused under the right rule by every
//! reader, and what is only odd is read. The shards are written by hand with every checksum right,
//! so that the validator behind the checksum is reached.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

mod edges;
mod envelope;
#[path = "../forge/mod.rs"]
mod forge;
mod frames;
mod headers;
mod misuse;
mod records;

use bigsmall_format::internal::xxh3;
use bigsmall_format::*;
use forge::{Copying, Forge, Record};

/// What a reader says: nothing, or the rule, the tensor and whether there is an offset.
type Outcome = Result<(), (Rule, Option<String>)>;

fn seen(error: &Error) -> (Rule, Option<String>) {
    let printed = error.to_string();
    assert!(!printed.chars().any(char::is_control), "control characters are escaped: {printed}");
    (error.rule(), error.tensor().map(str::to_owned))
}

fn open_and_read<R: ReadAt>(source: R) -> Outcome {
    let shard = Shard::open(source).map_err(|e| seen(&e))?;
    shard.check_prelude().map_err(|e| seen(&e))?;
    for (i, spec) in shard.tensors().iter().enumerate() {
        let n = spec.byte_len();
        let mut dst = vec![0; n as usize];
        let by_blocks = shard.encoding(i).and_then(|_| {
            let decoder = shard.decoder(i, &Raw)?;
            shard.decode(i, &*decoder, 0..n, &mut dst)
        });
        let mut again = vec![0; n as usize];
        let at_once =
            shard.encoded(i).and_then(|tensor| tensor.decode_bytes(&Raw, 0..n, &mut again));
        let rules = (&by_blocks, &at_once);
        let rules = (rules.0.as_ref().err().map(seen), rules.1.as_ref().err().map(seen));
        assert_eq!(rules.0, rules.1, "two ways to read tensor {i} disagree");
        assert_eq!(dst, again);
        by_blocks.map_err(|e| {
            let offset = e.offset();
            let place = shard.payload_range(i).unwrap();
            let known = matches!(e.rule(), Rule::EncodingUnknown | Rule::SpecMismatch)
                || offset.is_some_and(|at| at == place.start || place.contains(&at));
            assert!(known, "{e:?} has no offset within {place:?}");
            seen(&e)
        })?;
    }
    Ok(())
}

/// The same by every kind of source.
fn outcome(name: &str, bytes: &[u8]) -> Outcome {
    let first = open_and_read(bytes);
    assert_eq!(open_and_read(Copying(bytes)), first, "{name}: a source that lends nothing");
    let path = std::env::temp_dir().join(format!(
        "bigsmall-hostile-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, bytes).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    assert_eq!(open_and_read(file), first, "{name}: a file");
    std::fs::remove_file(&path).unwrap();
    first
}

/// What must come of a case. A tensor is named wherever one is to blame.
enum Expect {
    Ok,
    Err(Rule),
    Named(Rule, &'static str),
}
use Expect::{Err as Refused, Named};

type Case = (&'static str, fn(&mut Forge), Expect);

fn run(base: fn() -> Forge, cases: &[Case]) {
    assert_eq!(outcome("undamaged", &base().bytes()), Ok(()));
    for (name, damage, expect) in cases {
        let mut forge = base();
        damage(&mut forge);
        let expected = match expect {
            Expect::Ok => Ok(()),
            Refused(rule) => Err((*rule, None)),
            Named(rule, tensor) => Err((*rule, Some((*tensor).to_owned()))),
        };
        assert_eq!(outcome(name, &forge.bytes()), expected, "{name}");
    }
}

// C-10: the fourth has no values.
/// Five tensors: two with values, one that shares a payload, an empty one, one of four bits an
/// element.
fn sound() -> Forge {
    let mut forge = Forge::new(concat!(
        r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"#,
        r#""b":{"dtype":"U8","shape":[5],"data_offsets":[6,11]},"#,
        r#""tied":{"dtype":"U8","shape":[1,5],"data_offsets":[11,16]},"#,
        r#""none":{"dtype":"F32","shape":[0],"data_offsets":[16,16]},"#,
        r#""c":{"dtype":"F4","shape":[4],"data_offsets":[16,18]}}"#,
    ));
    forge.add(0, &[], &[&[1, 2, 3, 4, 5, 6]]);
    let record = forge.add(0, &[], &[&[7, 8, 9, 10, 11]]);
    record.flags = 2;
    record.md5 = Some([0x33; 16]);
    forge.records.push(Record::shared(1));
    forge.add(0, &[], &[]);
    forge.add(0, &[], &[&[0x21, 0x43]]);
    assert!(!forge.header.len().is_multiple_of(8), "the header has padding to damage");
    forge
}

/// Bytes of a full block of [`four_blocks`].
const FULL: usize = 33_792;

/// One tensor of four blocks, the last of 29,703 bytes.
fn four_blocks() -> Forge {
    let mut forge =
        Forge::new(r#"{"w":{"dtype":"U8","shape":[131079],"data_offsets":[0,131079]}}"#);
    forge.add(0, &[], &[&[3; FULL], &[4; FULL], &[5; FULL], &[6; 29_703]]);
    forge
}
