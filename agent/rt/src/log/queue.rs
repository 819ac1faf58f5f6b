//! A bounded queue between the tasks that log and the thread that writes to standard output. Logging never blocks on a slow
//! reader; when the queue is full lines are dropped and counted, and their number is logged once there is room.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// Limit of queued lines, those being written included.
pub(super) const LINES: usize = 10_000;
/// Limit of their bytes; an access log line has about 500.
const BYTES: usize = 16 << 20;
/// How long the writer lets lines collect after a write.
const LULL: Duration = Duration::from_millis(5);
/// Capacity that a buffer keeps after a stall of the reader.
const KEPT: usize = 1 << 20;

/// The queue. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<SharedQueue>);

#[derive(Default)]
struct SharedQueue {
    pending: Mutex<Pending>,
    /// Signals a push.
    pushed: Condvar,
    /// Signals that everything is written.
    written: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct Pending {
    /// Complete lines.
    text: Vec<u8>,
    /// Number of lines in `text`.
    lines: usize,
    /// Lines and bytes that are being written.
    writing: (usize, usize),
    /// Dropped lines that were not reported yet.
    unreported: u64,
    /// The writer waits for a push. Otherwise it looks by itself, and waking it would be a system call for nothing.
    writer_waits: bool,
}

// === impl Queue ===

impl Queue {
    /// Starts the writer thread; `lost` formats the line that reports dropped lines.
    pub(super) fn start(
        &self,
        out: impl Write + Send + 'static,
        lost: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<()> {
        let queue = self.clone();
        let run = move || queue.write_all(out, lost);
        std::thread::Builder::new().name("isthmus-log".to_owned()).spawn(run).map(drop)
    }

    /// Queues a line, or drops and counts it.
    pub(super) fn push(&self, line: &str) {
        let mut pending = self.lock();
        let full = pending.lines + pending.writing.0 >= LINES
            || pending.text.len() + pending.writing.1 + line.len() > BYTES
            // Otherwise later lines would precede the report of earlier dropped ones.
            || pending.unreported > 0;
        if full {
            pending.unreported += 1;
            self.0.dropped.inc();
        } else {
            pending.text.extend_from_slice(line.as_bytes());
            pending.lines += 1;
        }
        let wake = std::mem::take(&mut pending.writer_waits);
        drop(pending);
        if wake {
            self.0.pushed.notify_one();
        }
    }

    /// Waits until everything is written, at most `timeout`; returns whether it is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let busy = |pending: &mut Pending| pending.lines + pending.writing.0 > 0 || pending.unreported > 0;
        let waited = self.0.written.wait_timeout_while(self.lock(), timeout, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Lines dropped since the start.
    pub(super) fn dropped(&self) -> Counter {
        self.0.dropped.clone()
    }

    /// The queued lines, taken out.
    #[cfg(test)]
    pub(super) fn take_all(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.lock()).text;
        String::from_utf8(text).unwrap().split_inclusive('\n').map(str::to_owned).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // A panic cannot leave the queue inconsistent.
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut out: impl Write, lost: impl Fn(u64) -> String) {
        let mut batch = Vec::new();
        loop {
            let (lines, unreported) = self.next_batch(&mut batch);
            if unreported > 0 {
                batch.extend_from_slice(lost(unreported).as_bytes());
            }
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                // Standard output is closed or broken.
                self.0.dropped.inc_by(lines as u64);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            self.batch_written();
            // Lines that come in quick succession are written together.
            std::thread::park_timeout(LULL);
        }
    }

    /// Waits for lines and takes all of them; returns their number and the number dropped after them.
    fn next_batch(&self, batch: &mut Vec<u8>) -> (usize, u64) {
        let idle = |pending: &mut Pending| {
            pending.writer_waits = pending.lines == 0 && pending.unreported == 0;
            pending.writer_waits
        };
        let pending = self.0.pushed.wait_while(self.lock(), idle);
        let mut pending = pending.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut pending.text, batch);
        pending.writing = (std::mem::take(&mut pending.lines), batch.len());
        (pending.writing.0, std::mem::take(&mut pending.unreported))
    }

    fn batch_written(&self) {
        let mut pending = self.lock();
        pending.writing = (0, 0);
        let idle = pending.lines == 0 && pending.unreported == 0;
        drop(pending);
        if idle {
            self.0.written.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
