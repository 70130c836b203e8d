//! The binary: one verb, one function.

use std::process::ExitCode;

use clap::Parser;

/// Small allocations from many threads are what a proxy does all day.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate_control::cli::main(tidegate_control::cli::Cli::parse())
}
