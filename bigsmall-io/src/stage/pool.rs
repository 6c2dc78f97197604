//! Reusable buffers. Their number bounds the memory of a job.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, PoisonError};

use bigsmall_format::internal::set_len;

use crate::error::Result;
use crate::stage::lock::lock;

/// A bounded number of buffers.
pub(crate) struct Pool {
    state: Mutex<Spare>,
    returned: Condvar,
}

struct Spare {
    buffers: Vec<Vec<u8>>,
    /// How many more may be allocated.
    unmade: usize,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Self {
        let spare = Spare { buffers: Vec::new(), unmade: limit };
        Pool { state: Mutex::new(spare), returned: Condvar::new() }
    }

    /// Waits for a buffer and gives it the length `len`; its contents are unspecified.
    pub(crate) fn take(&self, len: usize) -> Result<Buffer<'_>> {
        let mut state = lock(&self.state);
        let bytes = loop {
            if let Some(bytes) = state.buffers.pop() {
                break bytes;
            }
            if state.unmade > 0 {
                state.unmade -= 1;
                break Vec::new();
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let mut buffer = Buffer { bytes, pool: self };
        set_len(&mut buffer, len)?;
        Ok(buffer)
    }
}

/// A buffer that returns to its pool when it is dropped.
pub(crate) struct Buffer<'a> {
    bytes: Vec<u8>,
    pool: &'a Pool,
}

impl Deref for Buffer<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        lock(&self.pool.state).buffers.push(std::mem::take(&mut self.bytes));
        self.pool.returned.notify_one();
    }
}
