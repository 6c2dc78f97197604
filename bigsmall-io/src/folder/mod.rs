//! Whole model folders.

pub(crate) mod against;
mod card;
mod check;
pub(crate) mod compress;
pub(crate) mod index;
mod out;
pub(crate) mod restore;
mod twins;
