//! What lies between those who log and the reader of the log: a bounded queue and one thread that writes. Logging never
//! waits for the reader; lines that find no room are dropped, counted, and their number is told when there is room again.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// Lines that wait or are being written.
pub(super) const LINES: usize = 10_000;
/// Bytes of them; a line of the access log has about 500.
const BYTES: usize = 16 << 20;
/// A buffer that grew beyond this while the reader stood still is given back afterwards.
const KEPT: usize = 1 << 20;

/// The queue. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    /// Something was pushed.
    pushed: Condvar,
    /// Everything was written.
    written: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct Held {
    /// Whole lines.
    text: Vec<u8>,
    /// How many lines `text` has.
    lines: usize,
    /// How many lines and bytes the thread is writing now.
    writing: (usize, usize),
    /// Dropped and not told yet.
    untold: u64,
}

// === impl Queue ===

impl Queue {
    /// Starts the thread that writes; `lost` makes the line that tells how many were dropped.
    pub(super) fn start(
        &self,
        out: impl Write + Send + 'static,
        lost: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<()> {
        let queue = self.clone();
        let run = move || queue.write_all(out, lost);
        std::thread::Builder::new().name("isthmus-log".to_owned()).spawn(run).map(drop)
    }

    /// Takes a line, or drops and counts it.
    pub(super) fn push(&self, line: &str) {
        let mut held = self.lock();
        let full = held.lines + held.writing.0 >= LINES
            || held.text.len() + held.writing.1 + line.len() > BYTES
            // Later lines must not stand before the line that tells of those lost earlier.
            || held.untold > 0;
        if full {
            held.untold += 1;
            self.0.dropped.inc();
        } else {
            held.text.extend_from_slice(line.as_bytes());
            held.lines += 1;
        }
        drop(held);
        self.0.pushed.notify_one();
    }

    /// Waits until everything was written, at most so long; whether it was.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let busy = |held: &mut Held| held.lines + held.writing.0 > 0 || held.untold > 0;
        let waited = self.0.written.wait_timeout_while(self.lock(), patience, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How many lines were dropped since the start.
    pub(super) fn dropped(&self) -> Counter {
        self.0.dropped.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // A panic cannot leave the queue half changed.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut out: impl Write, lost: impl Fn(u64) -> String) {
        let mut batch = Vec::new();
        loop {
            let (lines, untold) = self.take(&mut batch);
            if untold > 0 {
                batch.extend_from_slice(lost(untold).as_bytes());
            }
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                // Nobody will ever read them.
                self.0.dropped.inc_by(lines as u64);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            self.done();
        }
    }

    /// Waits for lines and takes all of them, with the number of those that were dropped after them.
    fn take(&self, batch: &mut Vec<u8>) -> (usize, u64) {
        let idle = |held: &mut Held| held.lines == 0 && held.untold == 0;
        let held = self.0.pushed.wait_while(self.lock(), idle);
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut held.text, batch);
        held.writing = (std::mem::take(&mut held.lines), batch.len());
        (held.writing.0, std::mem::take(&mut held.untold))
    }

    fn done(&self) {
        let mut held = self.lock();
        held.writing = (0, 0);
        let idle = held.lines == 0 && held.untold == 0;
        drop(held);
        if idle {
            self.0.written.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
