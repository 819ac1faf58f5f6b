//! The `isthmus` binary: see [`isthmus::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    isthmus::cli::main(std::env::args(), &isthmus::config::source::Environment)
}
