//! Work on several threads, in order, with the first error.

use std::sync::Mutex;

use crate::Result;

/// How many threads the machine offers (1 without the feature `parallel`).
#[must_use]
pub fn available_threads() -> usize {
    if cfg!(feature = "parallel") {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    } else {
        1
    }
}

/// Calls `work` for every item on up to `threads` threads (the caller's is one of them; 0 means
/// [`available_threads`]; fewer where the system gives no more). Each thread makes one `scratch`
/// and reuses it. Items are handed out in order; after an error no new item begins, and the error
/// of the earliest failing item is returned, so the outcome does not depend on timing.
///
/// # Errors
/// Those of `work`.
pub fn for_each_in_parallel<I, S>(
    threads: usize,
    items: I,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I::Item) -> Result<()> + Sync,
) -> Result<()>
where
    I: ExactSizeIterator + Send,
{
    let threads = if threads == 0 { available_threads() } else { threads };
    let threads = if cfg!(feature = "parallel") { threads.min(items.len()) } else { 1 };
    if threads <= 1 {
        let mut scratch = scratch();
        let mut items = items;
        return items.try_for_each(|item| work(&mut scratch, item));
    }
    let queue = Mutex::new(items.enumerate());
    let failure = Mutex::new(None::<(usize, crate::Error)>);
    let lock = "a thread of ours never panics while it holds a lock";
    let run = || {
        let mut scratch = scratch();
        loop {
            if failure.lock().expect(lock).is_some() {
                return;
            }
            let Some((index, item)) = queue.lock().expect(lock).next() else { return };
            if let Err(error) = work(&mut scratch, item) {
                let mut first = failure.lock().expect(lock);
                if first.as_ref().is_none_or(|(i, _)| index < *i) {
                    *first = Some((index, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where no more threads are to be had, those that there are do the work.
            if std::thread::Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    match failure.into_inner().expect(lock) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Rule};

    #[test]
    fn every_item_once_and_the_first_error() {
        for threads in [1, 2, 7] {
            let seen = Mutex::new(vec![0; 100]);
            for_each_in_parallel(
                threads,
                0..100,
                || (),
                |(), i| {
                    seen.lock().unwrap()[i] += 1;
                    Ok(())
                },
            )
            .unwrap();
            assert!(seen.into_inner().unwrap().iter().all(|&n| n == 1));
            let error = for_each_in_parallel(
                threads,
                0..100u32,
                || (),
                |(), i| {
                    if i >= 17 { Err(Error::new(Rule::Argument).at(i.into())) } else { Ok(()) }
                },
            )
            .unwrap_err();
            assert_eq!(error.offset(), Some(17));
        }
    }
}
