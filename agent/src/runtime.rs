//! The two runtimes: a single-threaded one for control plane, certificates and HTTP endpoints, a multi-threaded one for
//! data. A push or a slow scrape on the first is never felt by a connection on the second.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// The runtime of everything that is not a connection.
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
