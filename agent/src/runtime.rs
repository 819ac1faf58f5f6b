//! The two tokio runtimes: a single-threaded one for the control plane, certificates and HTTP endpoints, and a
//! multi-threaded one for connections. A large push or a slow scrape on the first does not delay the second.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// The runtime of everything but connections.
pub(crate) fn control() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The runtime of connections.
pub(crate) fn data(threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("isthmus-data")
        .enable_all()
        .build()
}
