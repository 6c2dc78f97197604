//! Weight sync between processes that are killed at random moments, in a folder, and between a
//! publisher and two subscribers in an object store.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bigsmall_io::{
    Dtype, ErrorKind, PublishOptions, Publisher, Subscriber, TensorView, Weights, hex,
};
use bigsmall_testing::Random;

/// The weights of step `step`.
fn weights(step: u64) -> Weights {
    let mut random = Random::new(3);
    let mut values = random.weights(60_000);
    for i in 0..step {
        let mut random = Random::new(i);
        for _ in 0..40 {
            values[2 * random.below(60_000) as usize] ^= 1;
        }
    }
    let ids = vec![3; 64];
    let matrix = TensorView::new(Dtype::BF16, &[600, 100], values);
    let tensors = [("matrix", matrix), ("ids", TensorView::new(Dtype::U8, &[64], ids))];
    Weights::from_tensors(tensors, None).unwrap()
}

fn options() -> PublishOptions {
    PublishOptions::new().anchor_every(5).keep_anchors(1)
}

/// What a process of the test below does, until it is killed.
#[test]
fn child() {
    let Ok(role) = std::env::var("BIGSMALL_SYNC_ROLE") else { return };
    let place = std::env::var("BIGSMALL_SYNC_PLACE").unwrap();
    let place = Path::new(&place);
    if role == "publisher" {
        let mut publisher = Publisher::open(place, &options()).unwrap();
        loop {
            let next = publisher.step().map_or(0, |step| step + 1);
            publisher.publish(weights(next)).unwrap();
        }
    }
    let mut subscriber = Subscriber::open(place).unwrap();
    loop {
        let Some(update) = subscriber.prepare().unwrap() else { continue };
        let step = update.step();
        subscriber.commit(update).unwrap();
        let found = subscriber.weights().unwrap();
        assert!(found.as_bytes() == weights(step).as_bytes(), "wrong weights at step {step}");
    }
}

fn start(role: &str, place: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture"]);
    command.env("BIGSMALL_SYNC_ROLE", role).env("BIGSMALL_SYNC_PLACE", place);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// W-07
#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let roles = ["publisher", "a", "b"];
    let mut children = roles.map(|role| (role, start(role, dir.path())));
    let mut random = Random::new(std::process::id().into());
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(5 + random.below(80)));
        let (role, child) = &mut children[random.below(3) as usize];
        if let Some(status) = child.try_wait().unwrap() {
            let errors = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
            panic!("{role} ended by itself, {status}: {errors}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        *child = start(role, dir.path());
    }
    for (role, child) in &mut children {
        std::thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none(), "{role} ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // What is left is whole, and leads on.
    let mut subscriber = Subscriber::open(dir.path()).unwrap();
    let update = subscriber.prepare().unwrap().unwrap();
    let step = update.step();
    assert!(step > 0, "something was published between the kills");
    assert!(update.weights().as_bytes() == weights(step).as_bytes());
    subscriber.commit(update).unwrap();
    let mut publisher = Publisher::open(dir.path(), &options()).unwrap();
    assert_eq!(publisher.step(), Some(step));
    let published = publisher.publish(weights(step + 1)).unwrap();
    assert!(published.delta_bytes.unwrap() < 2000, "{published:?}");
    subscriber.commit(subscriber.prepare().unwrap().unwrap()).unwrap();
    assert_eq!(hex(&subscriber.weights().unwrap().sha256()), hex(&published.sha256));
    // Nothing of killed publishers stays.
    let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(names.len() <= 2 + 7 && !names.iter().any(|n| n.ends_with(".tmp")), "{names:?}");
}

#[test]
fn one_publisher_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("new/folder");
    let publisher = Publisher::open(&place, &options()).unwrap();
    let error = Publisher::open(&place, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SyncBusy, "{error}");
    drop(publisher);
    Publisher::open(&place, &options()).unwrap();
    let missing = Subscriber::open(dir.path().join("missing")).unwrap();
    assert!(missing.prepare().unwrap().is_none());
}

/// What cannot be looked into is not an empty place.
#[test]
#[cfg(unix)] // elsewhere a path through a file is one to a missing file
fn a_place_that_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Subscriber::open(&file).unwrap().prepare().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.file().is_some_and(|name| name.ends_with("manifest.json")), "{error}");
    std::os::unix::fs::symlink("gone", dir.path().join("manifest.json")).unwrap();
    assert!(Subscriber::open(dir.path()).unwrap().prepare().unwrap().is_none());
}

#[cfg(feature = "cloud")]
#[test]
fn in_an_object_store() {
    use std::sync::Arc;

    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let open = || Publisher::in_store(Arc::clone(&store), "runs/7", &options()).unwrap();
    let (mut publisher, mut zombie) = (open(), open());
    let mut workers = [(); 2].map(|()| Subscriber::in_store(Arc::clone(&store), "runs/7").unwrap());
    for step in 0..12 {
        publisher.publish(weights(step)).unwrap();
        for (i, worker) in workers.iter_mut().enumerate() {
            // The second one looks every fourth step.
            if i == 0 || step % 4 == 3 {
                let update = worker.prepare().unwrap().unwrap();
                assert_eq!(update.step(), step);
                worker.commit(update).unwrap();
                assert!(worker.weights().unwrap().as_bytes() == weights(step).as_bytes());
            }
        }
    }
    // An old trainer that has not noticed that it was replaced.
    assert_eq!(zombie.publish(weights(99)).unwrap_err().kind(), ErrorKind::SyncBusy);
    assert!(workers[0].prepare().unwrap().is_none());
}
