//! JSON written piece by piece, looking as `serde_json` would print the whole: what has been written leaves in chunks,
//! so that neither the text nor anybody's patience is held for longer than one of them takes.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

/// Bytes of a chunk, give or take one object.
const CHUNK: usize = 16 << 10;
/// Objects looked at without any text coming of it before others may run.
const LOOKS: usize = 512;

/// The writer. Nothing is awaited but in [`Json::breathe`], [`Json::look`] and [`Json::finish`].
pub(super) struct Json {
    text: Vec<u8>,
    scratch: Vec<u8>,
    depth: usize,
    /// Whether the innermost list or object has no item yet.
    empty: bool,
    looks: usize,
    out: mpsc::Sender<Bytes>,
}

impl Json {
    pub(super) fn new(out: mpsc::Sender<Bytes>) -> Self {
        Self { text: Vec::with_capacity(CHUNK), scratch: Vec::new(), depth: 0, empty: true, looks: 0, out }
    }

    /// Begins a list (`[`) or an object (`{`), as a value or, in a list, as an item.
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
        // Our values have text keys only, so this cannot fail; were one to, it would show as null.
        if serde_json::to_writer_pretty(&mut self.scratch, value).is_err() {
            self.scratch.clear();
            self.scratch.extend_from_slice(b"null");
        }
        let scratch = std::mem::take(&mut self.scratch);
        // A line break inside of a text is escaped, so what breaks a line is layout.
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

    /// Hands over what was written when it is enough, and lets others run.
    pub(super) async fn breathe(&mut self) {
        if self.text.len() >= CHUNK {
            self.send().await;
            tokio::task::yield_now().await;
        }
    }

    /// Lets others run when many objects were looked at.
    pub(super) async fn look(&mut self) {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS) {
            tokio::task::yield_now().await;
        }
    }

    /// Hands over the rest.
    pub(super) async fn finish(mut self) {
        self.text.push(b'\n');
        self.send().await;
    }

    async fn send(&mut self) {
        // Who reads drives us: when it is gone, so are we.
        let chunk = std::mem::replace(&mut self.text, Vec::with_capacity(CHUNK));
        let _ = self.out.send(chunk.into()).await;
    }
}
