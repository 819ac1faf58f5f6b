//! A connection to the kernel's routing tables inside one namespace, for the length of one call. `rtnetlink` needs a
//! runtime, so each call has its own on a thread of its own: callers may block, in a runtime or out of one.

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

/// How often a dump that others disturb is tried.
const MAX_DUMPS: usize = 16;

/// Does `work` over a connection inside the namespace.
pub(super) fn within<T: Send>(
    netns: &Netns,
    work: impl AsyncFnOnce(Handle) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let failed = |cause: io::Error| Error::new("open netlink socket in", netns.id(), cause);
    netns.run_thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        runtime.block_on(async {
            // Held to the end: with nobody to tell about other messages the connection would close early.
            let (mut connection, handle, _others) = rtnetlink::new_connection().map_err(failed)?;
            // The end of a dump says whether the dump was disturbed.
            connection.set_forward_done(true);
            // A request whose connection is gone looks as if it had succeeded, so that comes first.
            tokio::select! {
                biased;
                () = connection => Err(failed(io::ErrorKind::ConnectionAborted.into())),
                done = work(handle) => done,
            }
        })
    })?
}

/// Everything that a dump request lists. Asked again when the listed things changed meanwhile, which the lists of
/// `rtnetlink` itself do not tell.
pub(super) async fn dump(
    handle: &Handle,
    request: RouteNetlinkMessage,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    for _ in 0..MAX_DUMPS {
        if let Some(found) = dump_once(handle.clone(), request.clone()).await? {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "changes faster than it can be listed"))
}

async fn dump_once(
    mut handle: Handle,
    request: RouteNetlinkMessage,
) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    let mut answers = handle.request(request).map_err(cause)?;
    let (mut found, mut disturbed) = (Vec::new(), false);
    while let Some(answer) = answers.next().await {
        disturbed |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => found.push(message),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Done(_) => return Ok((!disturbed).then_some(found)),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The kernel's answer, so that its number can be asked for.
pub(super) fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(refused) => refused.to_io(),
        other => io::Error::other(other),
    }
}

/// The outcome of a request, where some refusals mean that the work is done already.
pub(super) fn tolerate(done: Result<(), rtnetlink::Error>, fine: &[Errno]) -> io::Result<()> {
    match done.map_err(cause) {
        Err(e) if fine.iter().any(|errno| e.raw_os_error() == Some(*errno as i32)) => Ok(()),
        done => done,
    }
}
