//! Weights that follow a training run: a trainer publishes every step, two workers rebuild each one
//! beside the weights that they use, verify it, and exchange the two. All three are processes, and
//! with `--kills` they are killed at random moments and started again.
//!
//! `cargo run --release -p bigsmall-examples --example weight_sync -- --kills 200`

mod run;
mod steps;
mod trainer;
mod worker;

use std::path::PathBuf;

use bigsmall_examples::Result;
use clap::{Parser, ValueEnum};

/// Publishes weights step by step to two workers, and compares what they hold with the original.
#[derive(Clone, Parser)]
struct Args {
    /// A folder of safetensors files: the consecutive steps, in the order of their names, over and
    /// over. Without it, steps are simulated: 0.3 % of the weights of `--model`, in bf16, move to a
    /// neighbouring value.
    files: Option<PathBuf>,
    /// The model to simulate steps of.
    #[arg(long, default_value = "target/minilm/model.safetensors")]
    model: PathBuf,
    /// Of the model, only the tensors with this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// How many steps, at least.
    #[arg(long, default_value_t = 12)]
    steps: u64,
    /// How often a process is killed and started again.
    #[arg(long, default_value_t = 0)]
    kills: usize,
    /// Steps from one file with all weights to the next.
    #[arg(long, default_value_t = 8)]
    anchor_every: u64,
    /// Where the steps are published: an empty folder, or a prefix in an object store with the
    /// feature `cloud`. Without it, a temporary folder.
    #[arg(long)]
    place: Option<PathBuf>,
    /// What this process is; the others are started by it.
    #[arg(long, hide = true)]
    role: Option<Role>,
    /// The folder of logs and kept weights.
    #[arg(long, hide = true)]
    scratch: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Trainer,
    WorkerA,
    WorkerB,
}

impl Role {
    const ALL: [Role; 3] = [Role::Trainer, Role::WorkerA, Role::WorkerB];

    fn name(self) -> &'static str {
        match self {
            Role::Trainer => "trainer",
            Role::WorkerA => "worker-a",
            Role::WorkerB => "worker-b",
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    match (args.role, &args.scratch, &args.place) {
        (Some(Role::Trainer), Some(scratch), Some(place)) => trainer::run(&args, place, scratch),
        (Some(role), Some(scratch), Some(place)) => worker::run(role, place, scratch),
        _ => run::run(&args),
    }
}
