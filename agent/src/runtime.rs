//! The tokio runtimes: a single-threaded one for the control plane, certificates and HTTP endpoints, and one for
//! connections. A large push or a slow scrape on the first does not delay the second.

use std::io;

use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};
use tokio::sync::oneshot;

const THREAD_NAME: &str = "isthmus-data";

/// The runtime of connections.
pub(crate) struct DataRuntime {
    handle: Handle,
    threads: Threads,
}

enum Threads {
    /// Its runtime is dropped with this.
    One {
        _stop: oneshot::Sender<()>,
    },
    Several(Runtime),
}

/// The runtime of everything but connections.
pub(crate) fn control() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// A runtime of several threads.
pub(crate) fn several(threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).thread_name(THREAD_NAME).enable_all().build()
}

// === impl DataRuntime ===

impl DataRuntime {
    /// Starts it. One thread is a scheduler of its own kind: tasks run in the order in which they were woken. The one of
    /// several threads runs a task that was just woken next, so that the owner of a tunnel would write after each message
    /// instead of after all that are ready.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        if threads > 1 {
            let runtime = several(threads)?;
            return Ok(Self { handle: runtime.handle().clone(), threads: Threads::Several(runtime) });
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            // Resolves when the sender is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(run)?;
        Ok(Self { handle, threads: Threads::One { _stop: stop } })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Ends it without waiting for its tasks.
    pub(crate) fn shutdown(self) {
        if let Threads::Several(runtime) = self.threads {
            runtime.shutdown_background();
        }
    }
}
