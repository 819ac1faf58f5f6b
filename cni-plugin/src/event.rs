//! Asks the node role, over its unix socket, to enrol a pod, and waits until the pod's traffic is redirected. One
//! deadline covers the whole exchange. It does not know why a pod belongs to the mesh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_proto::cni::AddEvent;

use crate::http::{self, Client, HttpError, UnixConnector};

/// Name of the socket in the run directory.
pub(crate) const SOCKET: &str = "pluginevent.sock";
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_BODY: u64 = 1 << 20;

/// Why the pod was not enrolled. Each message names the socket; the kubelet shows it in the pod's events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    /// There is no answer.
    #[error(
        "no answer from the node agent on {path}: {error}; check that the `isthmus node` pod of this node is running"
    )]
    Exchange { path: PathBuf, error: HttpError },
    /// The node role refused.
    #[error("the node agent on {path} refused, status {status}: {reason}; its log has the details")]
    Refused { path: PathBuf, status: u16, reason: String },
}

/// Asks the node role to enrol the pod; returns when the pod's traffic is redirected.
///
/// # Errors
/// When there is no answer before the deadline, or with the node role's own reason.
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

fn exchange(path: &Path, event: &AddEvent) -> Result<http::Response, HttpError> {
    let body = serde_json::to_vec(event).map_err(std::io::Error::other)?;
    let client = Client::unix(UnixConnector(path.to_owned()), DEADLINE, MAX_BODY);
    client.post("http://isthmus-node/cmdadd", body)
}
