//! Copying between an application's TCP connection and a stream, or between two TCP connections, until both directions
//! have ended.
//!
//! Each side's close is passed on as it happened: a FIN becomes END_STREAM and vice versa, direction by direction; a RST
//! of the application becomes RST_STREAM(CONNECT_ERROR); a reset of a stream that had not ended becomes a RST towards the
//! application, and so does dropping the copy half way. A truncated stream never looks complete, a complete one never
//! looks truncated.

pub(crate) mod outcome;
mod plain;
mod read_buffer;
mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub use self::outcome::{CopyError, CopyOutcome, Side};
pub(crate) use self::plain::DirectionParts;
pub use self::plain::{PlainControl, PlainParts};
pub use crate::byte_counter::ByteCounter;
use crate::stream::Stream;
use crate::tunnel::{CopyParts, StreamRef};

/// Copies between an application's connection and a stream. Dropping the future resets both. The connection is closed at
/// the end: the caller keeps no `Arc` of it, but may keep a `Weak`. It ends early, without closing anything, when the
/// stream's tunnel is taken apart: see [`crate::handover`].
pub async fn tunnel(
    tcp: impl Into<Arc<TcpStream>>,
    stream: Stream,
    counter: Arc<dyn ByteCounter>,
) -> CopyOutcome {
    run(tunnel::Copy::new(tcp.into(), stream, counter)).await
}

/// Goes on with a connection that was copied before its tunnel was taken apart.
pub(crate) fn resume(
    stream: StreamRef,
    parts: CopyParts,
    counter: Arc<dyn ByteCounter>,
) -> io::Result<impl Future<Output = CopyOutcome>> {
    Ok(run(tunnel::Copy::resumed(stream, parts, counter)?))
}

async fn run(mut copy: tunnel::Copy) -> CopyOutcome {
    let (outcome, linger) = poll_fn(|cx| copy.poll(cx)).await;
    if outcome.is_handed_over() {
        return outcome;
    }
    let (tcp, place) = copy.ends();
    drop(copy);
    // What lingers keeps its stream, so that a peer that ends one after another has no more of them than it may have open.
    if linger
        && let Ok(tcp) = Arc::try_unwrap(tcp)
        && let Some(_permit) = place.core.linger()
    {
        place.core.lock().linger(place.id);
        // Boxed, as in `plain`: it is rare, and its buffer would be part of every copy's future.
        Box::pin(discard_until_closed(tcp)).await;
    }
    drop(place);
    outcome
}

/// Copies between two TCP connections. Dropping the future resets both. It ends early, without closing anything, when it is
/// taken apart through `control`: see [`crate::handover`].
pub async fn plain(
    local: TcpStream,
    remote: TcpStream,
    counter: &impl ByteCounter,
    control: &PlainControl,
) -> CopyOutcome {
    run_plain(plain::Copy::new(local, remote), counter, control).await
}

/// Goes on with a copy between two TCP connections that was taken apart.
///
/// # Errors
/// When a socket cannot be used: both connections are reset.
pub async fn resume_plain(
    parts: PlainParts,
    counter: &impl ByteCounter,
    control: &PlainControl,
) -> io::Result<CopyOutcome> {
    Ok(run_plain(plain::Copy::resumed(parts)?, counter, control).await)
}

async fn run_plain(mut copy: plain::Copy, counter: &impl ByteCounter, control: &PlainControl) -> CopyOutcome {
    let ended = control.end_on_drop();
    let (outcome, linger) = poll_fn(|cx| copy.poll(cx, counter, control)).await;
    drop(ended);
    for (tcp, side) in copy.into_both() {
        if linger == Some(side) {
            Box::pin(discard_until_closed(tcp)).await;
        }
    }
    outcome
}

/// How long an application may continue to send after its receiver stopped reading, and how much: one that goes on and on
/// is reset.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Reads and discards until an application that was sent a FIN closes its side. Closing a socket with unread data makes
/// the kernel send a RST, which can overtake data that the application has not read yet.
async fn discard_until_closed(mut tcp: TcpStream) {
    let mut scratch = [0; 4096];
    let mut discard = pin!(async {
        let mut left = LINGER_BYTES;
        while let Ok(n @ 1..) = tcp.read(&mut scratch).await
            && left > n
        {
            left -= n;
        }
    });
    let _ = tokio::time::timeout(LINGER, &mut discard).await;
}
