//! A value that one stage owes to others. If the stage ends without giving it, the others are told
//! and do not wait forever.

use std::sync::{Arc, OnceLock};

/// Makes a promise: one side keeps it, the other waits for it.
pub(crate) fn promise<T>() -> (Answer<T>, Promise<T>) {
    let cell = Arc::new(OnceLock::new());
    (Answer(Arc::clone(&cell)), Promise(cell))
}

/// Held by a stage as long as it owes the value. It travels with the work. Dropping it breaks the
/// promise, also in a panic or in a message that nobody receives.
#[derive(Debug)]
pub(crate) struct Answer<T>(Arc<OnceLock<Option<T>>>);

impl<T> Answer<T> {
    /// Gives the value.
    pub(crate) fn keep(self, value: T) {
        let _ = self.0.set(Some(value));
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        // No effect on a kept promise.
        let _ = self.0.set(None);
    }
}

/// Waits for the value; any number of threads may.
#[derive(Debug)]
pub(crate) struct Promise<T>(Arc<OnceLock<Option<T>>>);

impl<T> Promise<T> {
    /// The value; `None` if the promise was broken.
    pub(crate) fn wait(&self) -> Option<&T> {
        self.0.wait().as_ref()
    }

    /// The value, if it is there already.
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.get()?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_kept_reaches_everybody() {
        let (answer, promise) = promise();
        assert_eq!(promise.get(), None);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| promise.wait().copied())).collect();
            answer.keep(7);
            assert!(waiting.into_iter().all(|thread| thread.join().unwrap() == Some(7)));
        });
        assert_eq!(promise.get(), Some(&7));
    }

    #[test]
    fn whoever_leaves_without_an_answer_breaks_the_promise() {
        let (answer, dropped) = promise::<u8>();
        drop(answer);
        assert_eq!(dropped.wait(), None);

        let (answer, panicked) = promise::<u8>();
        let thread = std::thread::spawn(move || {
            let _answer = answer;
            panic!("as a test");
        });
        assert_eq!(panicked.wait(), None);
        assert!(thread.join().is_err());

        let (answer, unread) = promise::<u8>();
        let (to_nobody, nobody) = crossbeam_channel::unbounded();
        to_nobody.send(answer).unwrap();
        drop(nobody);
        assert_eq!(unread.wait(), None);
        assert!(unread.get().is_none());
    }
}
