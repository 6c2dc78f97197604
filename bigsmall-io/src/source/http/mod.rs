//! Files on HTTP servers.

mod answer;
pub(crate) mod client;
pub(crate) mod file;
pub(crate) mod folder;
pub(crate) mod options;
#[cfg(feature = "hub")]
pub(crate) mod refused;
