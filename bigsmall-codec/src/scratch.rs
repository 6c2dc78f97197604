//! Memory that outlives a call.

use std::sync::Mutex;

/// Memory of earlier calls, for the next ones, whatever their tensor: as many as threads have
/// worked at once.
pub(crate) type Pool<S> = Mutex<Vec<S>>;

/// Calls `work` with memory of an earlier call.
pub(crate) fn with_scratch<S: Default, T>(pool: &Pool<S>, work: impl FnOnce(&mut S) -> T) -> T {
    let lock = "no thread panics while it holds this lock";
    let mut scratch = pool.lock().expect(lock).pop().unwrap_or_default();
    let result = work(&mut scratch);
    pool.lock().expect(lock).push(scratch);
    result
}
