//! Runtime support for every role: drain, data threads, owned tasks, fair scheduling, readiness, backoff, logs, followed files and
//! the metric registry.
//!
//! It knows tokio and nothing of the mesh. It is the only crate that spawns; [`BoxFuture`] and [`task::Spawnable`] are
//! the only places that ask for `Send`, so that work can later be pinned to one core by changing them here.

pub mod backoff;
pub mod descriptors;
pub mod drain;
pub mod fair;
pub mod file;
pub mod io;
mod latch;
pub mod log;
pub mod metrics;
pub mod ready;
mod spawn;
pub mod task;
pub mod threads;

use std::future::Future;
use std::pin::Pin;

/// A boxed future as the traits between crates return it. The `Send` here is the only one on that path.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
