//! An rtnetlink connection inside a network namespace, for the duration of one call. `rtnetlink` is asynchronous and
//! needs a runtime; each call runs its own on a thread of its own, so that callers may block inside or outside of a
//! runtime.

use std::io;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::Handle;

use crate::Error;
use crate::netns::Netns;

/// Attempts of a dump that concurrent changes interrupt.
const MAX_DUMPS: usize = 16;

/// Runs `work` with a connection inside the namespace.
pub(super) fn within<T: Send>(
    netns: &Netns,
    work: impl AsyncFnOnce(Handle) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let failed = |cause: io::Error| Error::new("open netlink socket in", netns.id(), cause);
    netns.run_thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        runtime.block_on(async {
            // The receiver of unsolicited messages must live as long: the connection ends when it is dropped.
            let (mut connection, handle, _others) = rtnetlink::new_connection().map_err(failed)?;
            // The final message of a dump carries the flag that says whether the dump was interrupted.
            connection.set_forward_done(true);
            // Biased, because a request whose connection has ended resolves as if it had succeeded.
            tokio::select! {
                biased;
                () = connection => Err(failed(io::ErrorKind::ConnectionAborted.into())),
                done = work(handle) => done,
            }
        })
    })?
}

/// Sends a dump request and receives all of its answers. Repeated when the objects changed meanwhile
/// (`NLM_F_DUMP_INTR`), which `rtnetlink`'s own list calls do not report.
pub(super) async fn dump(
    handle: &Handle,
    request: RouteNetlinkMessage,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    for _ in 0..MAX_DUMPS {
        if let Some(found) = dump_once(handle.clone(), request.clone()).await? {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the objects change faster than they can be listed"))
}

async fn dump_once(
    mut handle: Handle,
    request: RouteNetlinkMessage,
) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    let mut answers = handle.request(request).map_err(cause)?;
    let (mut found, mut interrupted) = (Vec::new(), false);
    while let Some(answer) = answers.next().await {
        interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => found.push(message),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The kernel's answer as an I/O error with its number.
pub(super) fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(refused) => refused.to_io(),
        other => io::Error::other(other),
    }
}

/// The result of a request for which some error numbers mean that there is nothing to do.
pub(super) fn tolerate(done: Result<(), rtnetlink::Error>, tolerated: &[Errno]) -> io::Result<()> {
    match done.map_err(cause) {
        Err(e) if tolerated.iter().any(|errno| e.raw_os_error() == Some(*errno as i32)) => Ok(()),
        done => done,
    }
}
