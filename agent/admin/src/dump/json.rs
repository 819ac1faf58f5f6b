//! A streaming JSON writer with the layout of `serde_json::to_string_pretty`. The text leaves in chunks, which bounds both
//! memory and the time between yields to the runtime.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

/// Bytes of a chunk, give or take one object.
const CHUNK: usize = 16 << 10;
/// Objects visited between two yields, whether they were written or not.
const OBJECTS: usize = 512;

/// The writer. Nothing awaits but [`Json::send_if_full`], [`Json::yield_if_long`] and [`Json::finish`].
pub(super) struct Json {
    text: Vec<u8>,
    scratch: Vec<u8>,
    depth: usize,
    /// Whether the innermost list or object has no item yet.
    empty: bool,
    objects: usize,
    out: mpsc::Sender<Bytes>,
}

impl Json {
    pub(super) fn new(out: mpsc::Sender<Bytes>) -> Self {
        Self { text: Vec::with_capacity(CHUNK), scratch: Vec::new(), depth: 0, empty: true, objects: 0, out }
    }

    /// Begins a list (`[`) or an object (`{`).
    pub(super) fn open(&mut self, bracket: u8) {
        self.text.push(bracket);
        self.depth += 1;
        self.empty = true;
    }

    /// Ends it with `]` or `}`.
    pub(super) fn close(&mut self, bracket: u8) {
        self.depth -= 1;
        if !self.empty {
            self.line();
        }
        self.text.push(bracket);
        self.empty = false;
    }

    /// Begins an item of a list.
    pub(super) fn item(&mut self) {
        if !self.empty {
            self.text.push(b',');
        }
        self.empty = false;
        self.line();
    }

    /// Begins a member of an object.
    pub(super) fn key(&mut self, key: &str) {
        self.item();
        self.value(&key);
        self.text.extend_from_slice(b": ");
    }

    /// Writes a value.
    pub(super) fn value(&mut self, value: &impl Serialize) {
        self.scratch.clear();
        // Cannot fail: our values have string keys only. If it did, the value would be shown as null.
        if serde_json::to_writer_pretty(&mut self.scratch, value).is_err() {
            self.scratch.clear();
            self.scratch.extend_from_slice(b"null");
        }
        let scratch = std::mem::take(&mut self.scratch);
        // Line breaks inside strings are escaped, so every newline here is layout.
        for (at, line) in scratch.split(|byte| *byte == b'\n').enumerate() {
            if at > 0 {
                self.line();
            }
            self.text.extend_from_slice(line);
        }
        self.scratch = scratch;
    }

    /// Writes the members of a value that is an object.
    pub(super) fn members(&mut self, value: &impl Serialize) {
        if let Ok(Value::Object(members)) = serde_json::to_value(value) {
            for (key, value) in &members {
                self.key(key);
                self.value(value);
            }
        }
    }

    fn line(&mut self) {
        self.text.push(b'\n');
        self.text.resize(self.text.len() + 2 * self.depth, b' ');
    }

    /// Sends the text if it fills a chunk, and yields.
    pub(super) async fn send_if_full(&mut self) {
        if self.text.len() >= CHUNK {
            self.send().await;
            tokio::task::yield_now().await;
        }
    }

    /// Yields after many objects.
    pub(super) async fn yield_if_long(&mut self) {
        self.objects += 1;
        if self.objects.is_multiple_of(OBJECTS) {
            tokio::task::yield_now().await;
        }
    }

    /// Sends the rest.
    pub(super) async fn finish(mut self) {
        self.text.push(b'\n');
        self.send().await;
    }

    async fn send(&mut self) {
        // The reader polls this future, so it is dropped together with the reader.
        let chunk = std::mem::replace(&mut self.text, Vec::with_capacity(CHUNK));
        let _ = self.out.send(chunk.into()).await;
    }
}
