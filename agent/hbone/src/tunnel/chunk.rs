//! Buffers of the data path, kept per thread: a tunnel that is idle holds none.
//!
//! Knows sizes only. Buffers are zeroed once, when they are made.

use std::cell::RefCell;

/// Room for one full record and a little more: what a tunnel with small messages needs.
const SMALL: usize = 32 * 1024;
/// Room for 16 full records: larger pieces earn nothing, smaller ones cost a tenth of the throughput.
pub(super) const LARGE: usize = 16 * 16_432;
/// What one read of a tunnel takes at most, besides a record that was begun before.
const RECEIVE: usize = 256 * 1024 + 17 * 1024;

/// Buffers of each size that a thread keeps: as many as its tunnels use at a time, as those that are busy give them back
/// with each turn.
const KEPT_SMALL: usize = 64;
const KEPT_LARGE: usize = 8;

#[derive(Default)]
struct Kept {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    receive: Option<Box<[u8]>>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// How large a buffer should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// For messages.
    Small,
    /// For bulk.
    Large,
}

/// A buffer for records that are to be sent; at least one full record fits.
pub(super) fn take(size: Size) -> Box<[u8]> {
    let kept = KEPT.with_borrow_mut(|kept| match size {
        Size::Small => kept.small.pop(),
        Size::Large => kept.large.pop(),
    });
    kept.unwrap_or_else(|| match size {
        Size::Small => vec![0; SMALL].into_boxed_slice(),
        Size::Large => vec![0; LARGE].into_boxed_slice(),
    })
}

/// Gives a buffer back.
pub(super) fn give_back(buffer: Box<[u8]>) {
    KEPT.with_borrow_mut(|kept| {
        let (buffers, most) = match buffer.len() {
            SMALL => (&mut kept.small, KEPT_SMALL),
            _ => (&mut kept.large, KEPT_LARGE),
        };
        if buffers.len() < most {
            buffers.push(buffer);
        }
    });
}

/// Runs with the thread's receive buffer. Nested, which no caller does, it would make another one.
pub(super) fn with_receive_buffer<T>(run: impl FnOnce(&mut [u8]) -> T) -> T {
    let kept = KEPT.with_borrow_mut(|kept| kept.receive.take());
    let mut buffer = kept.unwrap_or_else(|| vec![0; RECEIVE].into_boxed_slice());
    let outcome = run(&mut buffer);
    KEPT.with_borrow_mut(|kept| kept.receive = Some(buffer));
    outcome
}
