//! What receives the byte counts of a copy while it runs.

/// Receives byte counts while a copy runs. Called on the data path: it must be cheap and must not block.
pub trait ByteCounter: Send + Sync {
    /// Bytes were copied from the local side to the remote one.
    fn sent(&self, bytes: u64);
    /// Bytes were copied from the remote side to the local one.
    fn received(&self, bytes: u64);
}

/// Ignores the counts.
impl ByteCounter for () {
    fn sent(&self, _: u64) {}
    fn received(&self, _: u64) {}
}
