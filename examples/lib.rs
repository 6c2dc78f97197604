//! The examples are programs: `cargo run --release -p bigsmall-examples --example NAME -- --help`.
