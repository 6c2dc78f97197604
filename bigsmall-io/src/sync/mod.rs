//! Weights that follow a training run: a publisher writes each step into a folder or an object
//! store, subscribers rebuild it (docs/sync.md).

mod manifest;
#[cfg(feature = "cloud")]
mod objects;
mod open;
mod publisher;
mod step;
mod store;
mod subscriber;
#[cfg(test)]
mod tests;
mod weights;

pub use publisher::{PublishOptions, Published, Publisher};
pub use subscriber::{Subscriber, Update};
pub use weights::Weights;
