//! Work on several threads, in order, with the first error.
//!
//! All of it runs in the caller's rayon pool: the one that `ThreadPool::install` chose, or the
//! global one. No thread is started here.

use std::sync::Mutex;

/// Threads of the caller's pool (1 without the feature `parallel`).
#[must_use]
pub fn pool_size() -> usize {
    #[cfg(feature = "parallel")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "parallel"))]
    1
}

/// Calls `work` on this thread and, at the same time, on up to `n - 1` threads of the caller's
/// pool; returns when every call has returned. A call may begin late, even after the others have
/// returned, so no call may wait for another one to begin.
pub fn run_in_pool(n: usize, work: impl Fn() + Sync) {
    #[cfg(feature = "parallel")]
    if n > 1 && pool_size() > 1 {
        // In place: this thread begins at once, while the others are still being woken.
        rayon::in_place_scope(|scope| {
            for _ in 1..n.min(pool_size()) {
                scope.spawn(|_| work());
            }
            work();
        });
        return;
    }
    let _ = n;
    work();
}

/// Calls `work` for every item, in the caller's pool. Each thread makes one `scratch` and reuses
/// it. Items are handed out in order; after an error no new item begins, and the error of the
/// earliest failing item is returned, so the outcome depends neither on the pool nor on timing.
///
/// # Errors
/// Those of `work`.
pub fn for_each_in_parallel<I, S, E>(
    items: I,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I::Item) -> Result<(), E> + Sync,
) -> Result<(), E>
where
    I: ExactSizeIterator + Send,
    E: Send,
{
    // A single item does not need a pool, nor does it start the global one.
    let threads = if items.len() <= 1 { 1 } else { pool_size().min(items.len()) };
    if threads == 1 {
        let mut scratch = scratch();
        let mut items = items;
        return items.try_for_each(|item| work(&mut scratch, item));
    }
    let queue = Mutex::new(items.enumerate());
    let failure = Mutex::new(None::<(usize, E)>);
    let lock = "a thread of ours never panics while it holds a lock";
    run_in_pool(threads, || {
        let mut kept = None;
        loop {
            if failure.lock().expect(lock).is_some() {
                return;
            }
            let Some((index, item)) = queue.lock().expect(lock).next() else { return };
            // Made only by a thread that has work to do.
            if let Err(error) = work(kept.get_or_insert_with(&scratch), item) {
                let mut first = failure.lock().expect(lock);
                if first.as_ref().is_none_or(|(i, _)| index < *i) {
                    *first = Some((index, error));
                }
            }
        }
    });
    match failure.into_inner().expect(lock) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[cfg(all(test, feature = "parallel"))]
mod tests {
    use std::collections::HashSet;
    use std::thread::ThreadId;

    use super::*;
    use crate::{Error, Rule};

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool")
    }

    #[test]
    fn every_item_once_and_the_first_error() {
        for threads in [1, 2, 7] {
            let pool = pool(threads);
            let seen = Mutex::new(vec![0; 100]);
            let count = |(): &mut (), i: usize| {
                seen.lock().unwrap()[i] += 1;
                Ok::<(), Error>(())
            };
            pool.install(|| for_each_in_parallel(0..100, || (), count)).unwrap();
            assert!(seen.into_inner().unwrap().iter().all(|&n| n == 1));
            // The earliest failing item is the slowest one, so others fail before it.
            let fail = |(): &mut (), i: u32| match i {
                ..17 => Ok(()),
                17 => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    Err(Error::new(Rule::BufferLength).at(17))
                }
                _ => Err(Error::new(Rule::BufferLength).at(i.into())),
            };
            for _ in 0..10 {
                let error = pool.install(|| for_each_in_parallel(0..100, || (), fail)).unwrap_err();
                assert_eq!(error.offset(), Some(17), "{threads} threads");
            }
        }
    }

    #[test]
    fn work_runs_on_threads_of_the_pool_alone() {
        for threads in [1, 3] {
            let pool = pool(threads);
            let own: HashSet<ThreadId> =
                pool.broadcast(|_| std::thread::current().id()).into_iter().collect();
            let seen = Mutex::new(HashSet::new());
            pool.install(|| {
                assert_eq!(pool_size(), threads);
                let note = |(): &mut (), _| {
                    seen.lock().unwrap().insert(std::thread::current().id());
                    Ok::<(), Error>(())
                };
                for _ in 0..100 {
                    for_each_in_parallel(0..50, || (), note).unwrap();
                }
            });
            assert!(seen.into_inner().unwrap().is_subset(&own));
        }
    }
}
