//! Posts a pod to the node role over its unix socket and waits until the pod is captured. Five seconds for all of it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isthmus_proto::cni::AddEvent;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::http::{self, HttpError, Timed};

/// Name of the socket in the run directory.
pub(crate) const SOCKET: &str = "pluginevent.sock";
const DEADLINE: Duration = Duration::from_secs(5);
const LIMIT: u64 = 1 << 20;

/// Why the pod is not captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    /// Nobody answers.
    #[error("node role at {path}: {error}")]
    Exchange { path: PathBuf, error: HttpError },
    /// It said no.
    #[error("node role at {path}: status {status}: {reason}")]
    Refused { path: PathBuf, status: u16, reason: String },
}

/// Asks for the pod to be captured; returns when it is.
///
/// # Errors
/// When nobody answers in time, or with the node role's own reason.
pub(crate) fn post(run_dir: &Path, event: &AddEvent) -> Result<(), EventError> {
    let path = run_dir.join(SOCKET);
    let response = match exchange(&path, event) {
        Ok(response) => response,
        Err(error) => return Err(EventError::Exchange { path, error }),
    };
    if response.status == 200 {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&response.body).trim().to_owned();
    Err(EventError::Refused { path, status: response.status, reason })
}

/// Whether somebody listens.
///
/// # Errors
/// When the socket is missing or refuses.
pub(crate) fn probe(run_dir: &Path) -> Result<(), EventError> {
    let path = run_dir.join(SOCKET);
    match dial(&path, DEADLINE) {
        Ok(_) => Ok(()),
        Err(error) => Err(EventError::Exchange { path, error: error.into() }),
    }
}

fn exchange(path: &Path, event: &AddEvent) -> Result<http::Response, HttpError> {
    let until = Instant::now() + DEADLINE;
    let body = serde_json::to_vec(event).map_err(io::Error::other)?;
    let stream = Timed::new(dial(path, DEADLINE)?, until, DEADLINE);
    let request = http::Request {
        method: "POST",
        target: "/cmdadd",
        host: "unix",
        headers: &[],
        body: Some(&body),
        limit: LIMIT,
    };
    http::exchange(stream, &request)
}

/// Connects within the deadline: a listener that no longer accepts would otherwise hold us for ever. On a unix socket
/// `connect` waits for the send timeout.
fn dial(path: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::milliseconds(i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}
