//! Small networks of namespaces, and the harness of tests that need one.
//!
//! A test that makes namespaces must become root of a user namespace before any thread starts, which libtest does not
//! allow. So such a test binary has `harness = false` and this `main`:
//!
//! ```no_run
//! use isthmus_kit::lab;
//!
//! fn pods_can_talk() -> anyhow::Result<()> {
//!     let lan = lab::Lan::new()?;
//!     let (a, b) = (lan.host()?, lan.host()?);
//!     anyhow::ensure!(a.v4 != b.v4);
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     lab::main(&lab::tests![pods_can_talk])
//! }
//! ```
//!
//! Each test runs in a process and in a user, network and PID namespace of its own, as root inside, whichever user runs
//! the binary. When the process ends, for whatever reason, the kernel removes everything that the test created. Where
//! namespaces are forbidden, the test fails with the reason.

mod harness;
mod lan;

pub use harness::{Body, main, main_with_programs};
pub use lan::{Host, Lan, block_on, echo, exchange, in_ns, veth};

/// The table of tests for [`main`], named as their functions.
#[macro_export]
#[doc(hidden)]
macro_rules! __lab_tests {
    ($($test:path),* $(,)?) => {
        [$((stringify!($test), $test as $crate::lab::Body)),*]
    };
}

pub use crate::__lab_tests as tests;
