//! The runtimes: a single-threaded one for the control plane, certificates and HTTP endpoints, and the data threads for
//! connections. A large push or a slow scrape on the first does not delay the second.

use std::io;

use isthmus_rt::threads::{RunningThreads, Threads};
use tokio::runtime::{Builder, Runtime};

const THREAD_NAME: &str = "isthmus-data";

/// The threads that carry connections. Each runs its tasks in the order in which they were woken, so that the owner of a
/// tunnel writes after all streams that are ready; none takes over a task of another.
pub(crate) struct DataRuntime {
    threads: Threads,
    running: RunningThreads,
}

/// The runtime of everything but connections.
pub(crate) fn control() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The runtime of the node role, which carries no connections: several threads that share all work.
pub(crate) fn node() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

// === impl DataRuntime ===

impl DataRuntime {
    /// Starts so many threads.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let (threads, running) = Threads::start(THREAD_NAME, count)?;
        Ok(Self { threads, running })
    }

    pub(crate) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Ends them without waiting for their tasks.
    pub(crate) fn shutdown(self) {
        drop(self.running);
    }
}
