//! Whole model folders.

mod card;
pub(crate) mod walk;
