//! Memory from product to product.

use std::cell::RefCell;

/// Memory that this thread keeps from one product to the next. If a product begins while another
/// one of this thread waits, it allocates its own memory.
pub(super) struct Kept<T: Default + 'static> {
    pub(super) value: T,
    home: &'static std::thread::LocalKey<RefCell<T>>,
}

impl<T: Default> Kept<T> {
    pub(super) fn take(home: &'static std::thread::LocalKey<RefCell<T>>) -> Self {
        Kept { value: home.take(), home }
    }
}

impl<T: Default> Drop for Kept<T> {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.value));
    }
}

/// Floats whose first one begins a cache line, so that no vector of them lies in two.
#[derive(Default)]
pub(super) struct Floats(Vec<f32>);

impl Floats {
    /// As many as asked for, whatever their values.
    pub(super) fn of_len(&mut self, n: usize) -> &mut [f32] {
        const LINE: usize = 16;
        if self.0.len() < n + LINE {
            self.0 = vec![0.0; n + LINE];
        }
        let skip = self.0.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        &mut self.0[skip..][..n]
    }
}
