//! The `isthmus` binary: see [`isthmus::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    isthmus::cli::main(std::env::args().skip(1), &isthmus::config::source::Environment)
}
