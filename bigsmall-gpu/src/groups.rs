//! Bind groups, kept from one recording to the next.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::kernels::Kernel;

/// The bind groups of a device, by kernel, parameters and buffers.
///
/// A bind group keeps its buffers alive. So none stays when weights are dropped, or before storage
/// is taken; see `Device::storage`.
pub(crate) type Groups = Recent<GroupKey, wgpu::BindGroup>;

/// Kernel, parameters, and buffers with their bindings.
pub(crate) type GroupKey = (Kernel, Box<[u8]>, Box<[(u32, wgpu::Buffer)]>);

/// Values that were used in the current turn or in the last one. The steps of a model are equal
/// recordings: each is a turn, and finds the values of the one before.
pub(crate) struct Recent<K, V>(Mutex<Turns<K, V>>);

struct Turns<K, V> {
    now: HashMap<K, V>,
    before: HashMap<K, V>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent(Mutex::new(Turns { now: HashMap::new(), before: HashMap::new() }))
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    fn lock(&self) -> MutexGuard<'_, Turns<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a turn, and drops the values that the last one did not use.
    pub(crate) fn turn(&self) {
        let mut turns = self.lock();
        turns.before = std::mem::take(&mut turns.now);
    }

    /// Drops all values.
    pub(crate) fn clear(&self) {
        *self.lock() = Turns { now: HashMap::new(), before: HashMap::new() };
    }

    /// The value of `key`, made if there is none.
    pub(crate) fn get(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<V> {
        let mut turns = self.lock();
        if let Some(value) = turns.now.get(&key) {
            return Ok(value.clone());
        }
        let value = match turns.before.remove(&key) {
            Some(value) => value,
            None => {
                // `make` may call `clear`.
                drop(turns);
                let value = make()?;
                turns = self.lock();
                value
            }
        };
        turns.now.insert(key, value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_turns_do_not_use_is_made_again() {
        let recent = Recent::default();
        let mut made = Vec::new();
        let mut get = |key| {
            let value = recent.get(key, || {
                made.push(key);
                Ok(key * 10)
            });
            assert_eq!(value.ok(), Some(key * 10));
        };
        [1, 2, 1].into_iter().for_each(&mut get);
        recent.turn();
        get(1);
        recent.turn();
        [1, 2].into_iter().for_each(&mut get);
        recent.clear();
        get(1);
        assert_eq!(made, [1, 2, 2, 1]);
    }
}
