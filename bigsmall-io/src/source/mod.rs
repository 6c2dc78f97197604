//! Where files come from: the local disk or another machine.

pub(crate) mod ahead;
#[cfg(feature = "cloud")]
pub(crate) mod cloud;
pub(crate) mod file;
pub(crate) mod folder;
#[cfg(feature = "http")]
pub(crate) mod http;
#[cfg(feature = "hub")]
mod hub;
pub(crate) mod listing;
pub(crate) mod local;
pub(crate) mod memory;
pub(crate) mod open;
#[cfg(any(feature = "http", feature = "cloud"))]
mod tail;
pub(crate) mod url;
