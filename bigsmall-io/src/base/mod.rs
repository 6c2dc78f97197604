//! Bases: files whose tensors other tensors are stored as differences from.

pub(crate) mod find;
pub(crate) mod matches;
pub(crate) mod model;
pub(crate) mod names;
pub(crate) mod tensor;
