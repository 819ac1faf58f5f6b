//! Rendered texts that several readers share: requests that arrive while one is rendered get the same text, which is not older
//! than they are. When all that are being read become too large, the oldest is taken from its slow readers.
//!
//! It must not know what the texts say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::time::Instant;

use super::encoding::Encoding;

/// Bytes of all texts that are being read. One alone may be larger.
const LIMIT: usize = 32 * 1024 * 1024;

/// A text, until it is revoked.
#[derive(Debug)]
pub(super) struct Snapshot(Mutex<Option<Bytes>>);

/// What kind of text a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) encoding: Encoding,
    pub(super) openmetrics: bool,
}

/// The texts that are being read, and when the rendering of each began; the newest last.
#[derive(Debug, Default)]
pub(super) struct Snapshots(VecDeque<(Kind, Instant, Weak<Snapshot>)>);

// === impl Snapshot ===

impl Snapshot {
    /// The text; `None` when it was revoked.
    pub(super) fn text(&self) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Bytes::len)
    }

    /// Frees the text. Readers that are not done get an error.
    fn revoke(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

// === impl Snapshots ===

impl Snapshots {
    /// A text of this kind whose rendering began no earlier than at `asked`.
    pub(super) fn since(&self, kind: Kind, asked: Instant) -> Option<Arc<Snapshot>> {
        let of_kind = self.0.iter().rev().find(|(known, _, _)| *known == kind);
        of_kind.filter(|(_, began, _)| *began >= asked)?.2.upgrade()
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().filter_map(|(_, _, snapshot)| Some(snapshot.upgrade()?.len())).sum()
    }

    /// Adds a new text, at the expense of the oldest ones.
    pub(super) fn add(&mut self, kind: Kind, began: Instant, text: Bytes) -> Arc<Snapshot> {
        self.0.retain(|(_, _, snapshot)| snapshot.strong_count() > 0);
        let mut bytes = text.len() + self.bytes();
        while bytes > LIMIT
            && let Some((_, _, oldest)) = self.0.pop_front()
        {
            if let Some(oldest) = oldest.upgrade() {
                bytes -= oldest.len();
                oldest.revoke();
            }
        }
        let snapshot = Arc::new(Snapshot(Mutex::new(Some(text))));
        self.0.push_back((kind, began, Arc::downgrade(&snapshot)));
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KIND: Kind = Kind { encoding: Encoding::Identity, openmetrics: false };

    #[test]
    fn a_text_is_shared_with_requests_that_arrived_before_it_began() {
        let (mut snapshots, start) = (Snapshots::default(), Instant::now());
        let later = |ms| start + Duration::from_millis(ms);
        let first = snapshots.add(KIND, later(10), Bytes::from_static(b"1"));
        assert!(Arc::ptr_eq(&first, &snapshots.since(KIND, later(10)).unwrap()));
        assert!(snapshots.since(KIND, later(11)).is_none(), "it may be out of date");
        let other = Kind { openmetrics: true, ..KIND };
        assert!(snapshots.since(other, start).is_none(), "another kind of text");
        drop(first);
        assert!(snapshots.since(KIND, start).is_none(), "a text without readers is not held");
    }

    #[test]
    fn slow_readers_lose_the_oldest_text_when_all_are_too_large() {
        let (mut snapshots, start) = (Snapshots::default(), Instant::now());
        let text = Bytes::from(vec![7; LIMIT / 3]);
        let slow: Vec<_> = (0..10).map(|_| snapshots.add(KIND, start, text.slice(..))).collect();
        let kept: Vec<_> = slow.iter().map(|snapshot| snapshot.text().is_some()).collect();
        assert_eq!(kept, [[false; 7].as_slice(), &[true; 3]].concat(), "the newest are kept");
        // A text that is too large by itself is delivered all the same.
        let large = snapshots.add(KIND, start, Bytes::from(vec![7; LIMIT + 1]));
        assert!(large.text().is_some() && slow[9].text().is_none());
    }
}
