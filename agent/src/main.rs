//! The `isthmus` binary: see [`isthmus::cli`].

use std::process::ExitCode;

/// The static programs of the container image have musl's C library, whose allocator is made to be small.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    isthmus::cli::main(std::env::args(), &isthmus::config::source::Environment)
}
