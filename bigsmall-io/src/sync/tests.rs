//! A store in memory that fails at any call, manifests that nobody should have written, and chains
//! that lack a step.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use bigsmall_testing::Random;

use crate::error::{Error, ErrorKind, Result};
use crate::stage::lock::lock;
use crate::sync::manifest::{Entry, Kind, Manifest};
use crate::sync::step::{Before, encode, rebuild};
use crate::sync::store::{MANIFEST, Store, Version, changed, check_len};
use crate::{Class, Dtype, PublishOptions, Publisher, Rule, Subscriber, TensorView, Weights};

/// Files in memory, and the calls until one fails.
#[derive(Clone, Default)]
struct Memory {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Calls that are left; `None` for ever.
    left: Arc<Mutex<Option<usize>>>,
    /// Whether the call that fails does its work nevertheless.
    after: bool,
}

impl Memory {
    /// Does `work`, unless it is the call that fails.
    fn call<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut left = lock(&self.left);
        match &mut *left {
            Some(0) => {
                if self.after {
                    let _ = work();
                }
                Err(Error::new(ErrorKind::Io).found("the store failed"))
            }
            left => {
                if let Some(left) = left {
                    *left -= 1;
                }
                work()
            }
        }
    }

    fn fail_after(&self, calls: Option<usize>) {
        *lock(&self.left) = calls;
    }

    fn manifest(&self) -> Manifest {
        Manifest::read(&lock(&self.files)[MANIFEST]).unwrap()
    }

    fn set(&self, name: &str, bytes: Vec<u8>) {
        lock(&self.files).insert(name.to_owned(), bytes);
    }

    fn edit(&self, edit: impl FnOnce(&mut Manifest)) {
        let mut manifest = self.manifest();
        edit(&mut manifest);
        self.set(MANIFEST, manifest.write());
    }
}

impl Store for Memory {
    fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, Version)>> {
        self.call(|| {
            let files = lock(&self.files);
            let Some(bytes) = files.get(name) else { return Ok(None) };
            check_len(bytes.len() as u64, most)?;
            Ok(Some((bytes.clone(), Version::of(bytes))))
        })
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.call(|| {
            self.set(name, bytes);
            Ok(())
        })
    }

    fn replace_manifest(&self, bytes: &[u8], version: Option<&Version>) -> Result<()> {
        self.call(|| {
            let found = lock(&self.files).get(MANIFEST).map(|bytes| Version::of(bytes));
            if found.as_ref() != version {
                return Err(changed());
            }
            self.set(MANIFEST, bytes.to_vec());
            Ok(())
        })
    }

    fn names(&self) -> Result<Vec<String>> {
        self.call(|| Ok(lock(&self.files).keys().cloned().collect()))
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.call(|| {
            lock(&self.files).remove(name);
            Ok(())
        })
    }

    fn lock(&self) -> Result<Option<File>> {
        Ok(None)
    }

    fn shown(&self, name: &str) -> String {
        format!("memory/{name}")
    }
}

/// The weights of step `i`: a few more bits differ with each step, one tensor stays as it is, one
/// comes and goes.
fn weights(i: u64) -> Weights {
    let mut random = Random::new(1);
    let mut matrix = random.weights(3000);
    let norm = random.weights(40);
    for _ in 0..i * 5 {
        let at = random.below(3000) as usize;
        matrix[2 * at] ^= 1;
    }
    let ids = vec![7; 300];
    let view = |dtype, n, bytes: &[u8]| TensorView::new(dtype, &[n], bytes.to_vec());
    let mut tensors =
        vec![("matrix", view(Dtype::BF16, 3000, &matrix)), ("norm", view(Dtype::BF16, 40, &norm))];
    if !i.is_multiple_of(3) {
        tensors.push(("ids", view(Dtype::U8, 300, &ids)));
    }
    Weights::from_tensors(tensors, None).unwrap()
}

fn options() -> PublishOptions {
    PublishOptions::new().anchor_every(4).keep_anchors(2)
}

fn publisher(store: &Memory) -> Publisher {
    Publisher::with_store(Box::new(store.clone()), &options()).unwrap()
}

fn subscriber(store: &Memory) -> Subscriber {
    Subscriber::with_store(Box::new(store.clone()))
}

/// Brings the subscriber to the newest step, which must have the weights of `expected`.
fn follow(subscriber: &mut Subscriber, expected: u64) -> usize {
    let update = subscriber.prepare().unwrap().unwrap();
    let n_files = update.fetched_files();
    subscriber.commit(update).unwrap();
    let found = subscriber.weights().unwrap();
    assert!(found.as_bytes() == weights(expected).as_bytes(), "step {expected}");
    assert!(subscriber.prepare().unwrap().is_none());
    n_files
}

#[test]
fn steps_are_followed_one_by_one_and_many_at_once() {
    let store = Memory::default();
    let (mut each, mut some) = (subscriber(&store), subscriber(&store));
    assert!(each.prepare().unwrap().is_none(), "nothing is there yet");
    let mut publisher = publisher(&store);
    for i in 0..30 {
        let published = publisher.publish(weights(i)).unwrap();
        assert_eq!((published.step, published.anchor_bytes.is_some()), (i, i % 4 == 0), "{i}");
        assert_eq!(published.delta_bytes.is_some(), i > 0);
        assert_eq!(follow(&mut each, i), 1);
        if i % 7 == 6 {
            follow(&mut some, i);
        }
        let mut new = subscriber(&store);
        assert!(follow(&mut new, i) <= 4, "from the newest anchor");
        let n_files = lock(&store.files).len();
        assert!(n_files <= 1 + 2 + 8, "{n_files} files are kept");
    }
}

/// W-01: whatever call fails, with or without its work done, subscribers see whole steps alone,
/// and the publisher goes on.
#[test]
fn a_store_that_fails_at_any_call() {
    for after in [false, true] {
        let store = Memory { after, ..Memory::default() };
        let mut publisher = publisher(&store);
        let mut worker = subscriber(&store);
        let (mut next, mut visible) = (0, None);
        for calls in (0..12).cycle().take(120) {
            store.fail_after(Some(calls));
            let failed = publisher.publish(weights(next)).is_err();
            let failed_to_read = worker.prepare().is_err();
            store.fail_after(None);
            // Visible is the old step or the new one.
            let mut new = subscriber(&store);
            let update = new.prepare().unwrap();
            let found = update.as_ref().map(|update| update.weights().sha256());
            if found == Some(weights(next).sha256()) {
                visible = Some(next);
            } else {
                assert!(failed && found == visible.map(|old| weights(old).sha256()));
            }
            if let Some(update) = update {
                new.commit(update).unwrap();
            }
            if let Some(update) = worker.prepare().unwrap() {
                worker.commit(update).unwrap();
            }
            let [a, b] = [&worker, &new].map(|of| of.weights().map(Weights::sha256));
            assert!(a == b, "{failed_to_read}");
            next += 1;
            if failed && calls % 2 == 0 {
                // A new process goes on where the old one was killed.
                drop(publisher);
                publisher = self::publisher(&store);
            }
        }
        publisher.publish(weights(next)).unwrap();
        follow(&mut worker, next);
    }
}

/// W-02
#[test]
fn a_chain_that_lacks_a_step_leads_nowhere() {
    let store = Memory::default();
    let mut publisher = publisher(&store);
    let mut behind = subscriber(&store);
    publisher.publish(weights(0)).unwrap();
    follow(&mut behind, 0);
    for i in 1..4 {
        publisher.publish(weights(i)).unwrap();
    }
    let names: Vec<String> = store.manifest().entries.iter().map(Entry::name).collect();
    let sound = lock(&store.files).clone();
    let restore = || *lock(&store.files) = sound.clone();
    // The file is gone, and the manifest names it.
    lock(&store.files).remove(&names[2]);
    assert_eq!(behind.prepare().unwrap_err().kind(), ErrorKind::SyncChain);
    restore();
    // The manifest does not name it: no replay without it. From an anchor alone there is a way.
    store.edit(|manifest| manifest.entries.retain(|entry| entry.step != 2));
    let error = behind.prepare().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SyncChain, "{error}");
    let anchor = encode(&weights(3), None).unwrap();
    let entry = Entry::new(3, Kind::Anchor, &anchor, weights(3).sha256());
    store.set(&entry.name(), anchor);
    store.edit(|manifest| manifest.entries.insert(2, entry));
    assert_eq!(follow(&mut behind, 3), 1);
    restore();
    // Cut and changed files, the manifest's checksum as it was and renewed.
    let name = &names[3];
    for (i, len) in (0..sound[name].len()).enumerate() {
        let cut = sound[name][..len].to_vec();
        let mut flipped = sound[name].clone();
        flipped[len] ^= 1 << (i % 8);
        for damaged in [cut, flipped] {
            store.set(name, damaged.clone());
            let error = subscriber(&store).prepare().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SyncChain, "{len}: {error}");
            assert!(error.file().is_some_and(|file| file.contains(&**name)), "{error}");
            let Entry { step, kind, sha256, .. } = store.manifest().entries[3];
            let sealed = Entry::new(step, kind, &damaged, sha256);
            store.set(&sealed.name(), damaged);
            store.edit(|manifest| manifest.entries[3] = sealed);
            let error = subscriber(&store).prepare().unwrap_err();
            assert_ne!(error.class(), Class::Io, "{len}: {error}");
            restore();
        }
    }
    assert_eq!(behind.weights().unwrap().sha256(), weights(3).sha256());
}

/// W-03
#[test]
fn a_wrong_base_is_refused() {
    let (a, b, c) = (weights(1), weights(2), weights(4));
    let delta = encode(&b, Some(Before { weights: &a, depth: 0 })).unwrap();
    assert!(rebuild(&delta, Some(&a), 1 << 20).unwrap().as_bytes() == b.as_bytes());
    for before in [None, Some(&b), Some(&c)] {
        let error = rebuild(&delta, before, 1 << 20).unwrap_err();
        assert_eq!(error.rule(), Some(Rule::BaseMismatch), "{error}");
    }
    assert_eq!(rebuild(&delta, Some(&a), 1000).unwrap_err().class(), Class::Limit);
    // Named rightly, and of other contents all the same: an impostor.
    let store = Memory::default();
    let mut publisher = publisher(&store);
    publisher.publish(weights(1)).unwrap();
    publisher.publish(weights(2)).unwrap();
    let other = encode(&c, Some(Before { weights: &a, depth: 0 })).unwrap();
    let Entry { step, kind, sha256, .. } = store.manifest().entries[1];
    let entry = Entry::new(step, kind, &other, sha256);
    store.set(&entry.name(), other);
    store.edit(|manifest| manifest.entries[1] = entry);
    let error = subscriber(&store).prepare().unwrap_err();
    assert_eq!(error.rule(), Some(Rule::ContentDigest), "{error}");
}

/// W-04: no name in a manifest is used, whatever it holds.
#[test]
fn hostile_manifests() {
    let digest = "00".repeat(32);
    let with = |files: &str| format!(r#"{{"bigsmall-sync":1,"run":"r","files":[{files}]}}"#);
    let file = |step: &str, more: &str| {
        format!(
            r#"{{"step":{step},"bytes":5,"xxh3":"0000000000000000","sha256":"{digest}"{more}}}"#
        )
    };
    let base = format!(r#","base":"{digest}""#);
    let other = format!(r#","base":"{}""#, "11".repeat(32));
    let two = |a: &str, b: &str| with(&format!("{a},{b}"));
    let wrong = [
        String::new(),
        "[]".into(),
        "{".into(),
        "[".repeat(100_000),
        r#"{"bigsmall-sync":0,"run":"r","files":[]}"#.into(),
        r#"{"bigsmall-sync":1,"run":"","files":[]}"#.into(),
        r#"{"bigsmall-sync":1,"run":"r","files":{}}"#.into(),
        with("7"),
        with(&file("-1", "")),
        with(&file("1.5", "")),
        with(&file("9007199254740992", "")),
        with(&file("18446744073709551615", "")),
        with(&file("\"../../x\"", "")),
        with(&file("0", &base)),
        with(&file("1", r#","base":"../../etc/passwd""#)),
        with(&file("1", r#","base":7"#)),
        with(&file("1", "").replace("\"xxh3\":\"0", "\"xxh3\":\"/")),
        with(&file("1", &format!(r#","base":"{}""#, "é".repeat(32)))),
        with(&file("1", &format!(r#","base":"{}""#, "AA".repeat(32)))),
        // Twice, backwards, a base that is not that of the step before.
        two(&file("1", ""), &file("1", "")),
        two(&file("2", ""), &file("1", "")),
        two(&file("1", &base), &file("1", "")),
        two(&file("0", ""), &file("1", &other)),
    ];
    for text in wrong {
        let error = Manifest::read(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SyncManifest, "{text:.99}: {error}");
    }
    let newer = r#"{"bigsmall-sync":2,"anything":1}"#;
    assert_eq!(Manifest::read(newer.as_bytes()).unwrap_err().class(), Class::Unsupported);
    let many = with(&vec!["1"; 70_000].join(","));
    assert_eq!(Manifest::read(many.as_bytes()).unwrap_err().class(), Class::Limit);
    // A circle of digests is no circle of steps.
    let circle = Manifest::read(two(&file("1", &base), &file("2", &base)).as_bytes()).unwrap();
    assert_eq!(circle.path(None).unwrap_err().kind(), ErrorKind::SyncChain);
    assert_eq!(circle.path(Some((0, [0; 32]))).unwrap().len(), 2);
    assert_eq!(circle.path(Some((0, [1; 32]))).unwrap_err().kind(), ErrorKind::SyncChain);
    // As many anchors and deltas as there may be: looked through once.
    let more = |step: u64, kind| Entry::new(step, kind, &[], [0; 32]);
    let of_step = |step| [more(step, Kind::Anchor), more(step, Kind::Delta { base: [0; 32] })];
    let entries: Vec<Entry> = (1..=32_768).flat_map(of_step).collect();
    let many = Manifest { run: "r".into(), entries };
    let many = Manifest::read(&many.write()).unwrap();
    assert_eq!(many.path(Some((0, [0; 32]))).unwrap().len(), 1);
    // Lengths that no file has.
    let store = Memory::default();
    store.set(MANIFEST, with(&file("3", "").replace(":5", ":18446744073709551615")).into());
    assert_eq!(subscriber(&store).prepare().unwrap_err().kind(), ErrorKind::SyncChain);
    store.set("anchor-000000000003-0000000000000000.bs", vec![0; 100]);
    assert_eq!(subscriber(&store).prepare().unwrap_err().class(), Class::Corrupt);
    let limited = subscriber(&store).max_bytes(99);
    assert_eq!(limited.prepare().unwrap_err().class(), Class::Limit);
    // Fields that a later writer adds are ignored; names of files are such fields.
    let named = with(&file("3", r#","file":"/etc/passwd""#));
    let manifest = Manifest::read(named.as_bytes()).unwrap();
    assert_eq!(manifest.entries[0].name(), "anchor-000000000003-0000000000000000.bs");
    assert_eq!(Manifest::read(&manifest.write()).unwrap(), manifest);
}

/// What a publisher may keep is what a manifest may name.
#[test]
fn no_options_make_a_manifest_that_is_not_read() {
    let options = PublishOptions::new().anchor_every(u64::MAX).keep_anchors(usize::MAX);
    assert!(format!("{options:?}").contains("anchor_every: 16384"), "{options:?}");
    let more = |step: u64, kind| Entry::new(step, kind, &[], [0; 32]);
    for every in [1, 2, 1000, 16_384] {
        let mut manifest = Manifest { run: "r".into(), entries: Vec::new() };
        for step in 0..70_000 {
            if step % every == 0 {
                manifest.entries.push(more(step, Kind::Anchor));
            }
            if step > 0 {
                manifest.entries.push(more(step, Kind::Delta { base: [0; 32] }));
            }
        }
        let mut one = manifest.clone();
        manifest.prune(usize::MAX);
        let n = manifest.entries.len();
        assert!((40_000..=65_536).contains(&n), "{n}");
        assert_eq!(manifest.entries[0].kind, Kind::Anchor);
        let read = Manifest::read(&manifest.write()).unwrap();
        assert_eq!(read.newest(), one.newest());
        one.prune(1);
        assert!(one.entries.len() <= every as usize);
        assert!(read.entries.ends_with(&one.entries[1..]));
    }
}

/// W-05
#[test]
fn histories_are_not_mixed() {
    let store = Memory::default();
    let mut worker = subscriber(&store);
    let mut first = publisher(&store);
    for i in 0..3 {
        first.publish(weights(i)).unwrap();
    }
    follow(&mut worker, 2);
    // The manifest goes back: said, not followed.
    let newest = store.manifest();
    store.edit(|manifest| manifest.entries.truncate(1));
    assert_eq!(worker.prepare().unwrap_err().kind(), ErrorKind::SourceChanged);
    store.set(MANIFEST, newest.write());
    // Another publisher, which did not ask.
    let mut second = publisher(&store);
    second.publish(weights(3)).unwrap();
    assert_eq!(first.publish(weights(9)).unwrap_err().kind(), ErrorKind::SyncBusy);
    follow(&mut worker, 3);
    // Afterwards it goes on from what is visible.
    first.publish(weights(5)).unwrap();
    follow(&mut worker, 5);
    // A new history in the same place, with as many steps.
    lock(&store.files).clear();
    let mut third = publisher(&store);
    for i in 10..15 {
        third.publish(weights(i)).unwrap();
    }
    follow(&mut worker, 14);
    // An update that was prepared before another one was committed.
    third.publish(weights(15)).unwrap();
    let old = worker.prepare().unwrap().unwrap();
    third.publish(weights(16)).unwrap();
    follow(&mut worker, 16);
    assert_eq!(worker.commit(old).unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn a_worker_resumes_with_the_weights_it_kept() {
    let store = Memory::default();
    let mut publisher = publisher(&store);
    for i in 0..3 {
        publisher.publish(weights(i)).unwrap();
    }
    let mut worker = subscriber(&store);
    assert!(!worker.resume(weights(7)).unwrap());
    assert!(worker.resume(weights(1)).unwrap());
    let update = worker.prepare().unwrap().unwrap();
    assert_eq!((update.fetched_files(), update.changed()), (1, &["matrix".to_owned()][..]));
}

/// W-08: nobody deletes what another publisher has made visible, or is about to.
#[test]
fn another_publisher_while_old_files_are_deleted() {
    /// Publishes from another publisher when files are listed, and when one is deleted.
    struct Overtaken(Memory, Mutex<(Publisher, u64)>);
    impl Overtaken {
        fn overtake(&self) {
            let (other, next) = &mut *lock(&self.1);
            // The first attempt may find that it is overtaken itself.
            *next += 1;
            if other.publish(weights(*next)).is_err() {
                other.publish(weights(*next)).unwrap();
            }
        }
    }
    impl Store for Overtaken {
        fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, Version)>> {
            self.0.get(name, most)
        }

        fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
            self.0.put(name, bytes)
        }

        fn replace_manifest(&self, bytes: &[u8], version: Option<&Version>) -> Result<()> {
            self.0.replace_manifest(bytes, version)
        }

        fn names(&self) -> Result<Vec<String>> {
            if lock(&self.1).1.is_multiple_of(2) {
                self.overtake();
            }
            self.0.names()
        }

        fn delete(&self, name: &str) -> Result<()> {
            self.overtake();
            self.0.delete(name)
        }

        fn lock(&self) -> Result<Option<File>> {
            self.0.lock()
        }

        fn shown(&self, name: &str) -> String {
            self.0.shown(name)
        }
    }
    let store = Memory::default();
    let mut worker = subscriber(&store);
    let overtaken = Overtaken(store.clone(), Mutex::new((publisher(&store), 0)));
    let mut publisher = Publisher::with_store(Box::new(overtaken), &options()).unwrap();
    let mut published = 0;
    for i in 0..30 {
        store.set("delta-000000000000-0000000000000000.bs", vec![1]);
        published += u32::from(publisher.publish(weights(100 + i)).is_ok());
        for name in store.manifest().entries.iter().map(Entry::name) {
            assert!(lock(&store.files).contains_key(&name), "{i}: {name} is gone");
        }
        // None if the publisher was overtaken before, and nobody published since.
        if let Some(update) = worker.prepare().unwrap() {
            worker.commit(update).unwrap();
        }
    }
    assert!((1..30).contains(&published), "{published}");
}

/// W-06: files that the manifest does not name are deleted when it was replaced, and while a slow
/// reader reads.
#[test]
fn a_slow_reader_while_steps_are_pruned() {
    /// Publishes steps between the manifest and the first file.
    struct Slow(Memory, Mutex<(Publisher, u64)>);
    impl Store for Slow {
        fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, Version)>> {
            let found = self.0.get(name, most);
            let (publisher, next) = &mut *lock(&self.1);
            if name == MANIFEST && *next < 40 {
                for _ in 0..9 {
                    *next += 1;
                    publisher.publish(weights(*next)).unwrap();
                }
            }
            found
        }

        fn put(&self, _: &str, _: Vec<u8>) -> Result<()> {
            unreachable!("a reader writes nothing")
        }

        fn replace_manifest(&self, _: &[u8], _: Option<&Version>) -> Result<()> {
            unreachable!("a reader writes nothing")
        }

        fn names(&self) -> Result<Vec<String>> {
            unreachable!("a reader asks for files by name")
        }

        fn delete(&self, _: &str) -> Result<()> {
            unreachable!("a reader deletes nothing")
        }

        fn lock(&self) -> Result<Option<File>> {
            unreachable!("a reader needs no lock")
        }

        fn shown(&self, name: &str) -> String {
            name.to_owned()
        }
    }
    let store = Memory::default();
    let mut publisher = publisher(&store);
    publisher.publish(weights(0)).unwrap();
    let slow = Slow(store, Mutex::new((publisher, 0)));
    let mut worker = Subscriber::with_store(Box::new(slow));
    let update = worker.prepare().unwrap().unwrap();
    assert!(update.step() >= 40, "{}", update.step());
    worker.commit(update).unwrap();
    assert_eq!(worker.weights().unwrap().sha256(), weights(45).sha256());
}
