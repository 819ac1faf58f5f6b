//! Why a tunnel ended, shared by its owner, its transport and its streams.
//!
//! The HTTP/2 engine keeps no more of an I/O error than its kind and text, and tells streams of a closed connection only
//! "broken pipe". What is known better is recorded here before the engine wakes the streams.

use std::io;
use std::sync::OnceLock;

use crate::error::{StreamError, TunnelError};
use crate::reason::Reason;

/// Why a tunnel ended, once it has.
#[derive(Debug, Default)]
pub(crate) struct CloseReason(OnceLock<TunnelError>);

impl CloseReason {
    /// Records why the tunnel ended and returns the reason in force: the first one that was recorded.
    pub(crate) fn record(&self, error: TunnelError) -> &TunnelError {
        self.0.get_or_init(|| error)
    }

    /// Records an error of the transport if it carries a typed reason. Others reach the owner through the engine.
    pub(crate) fn record_io(&self, error: &io::Error) {
        if let Some(reason) = TunnelError::typed_cause(error) {
            self.record(reason);
        }
    }

    pub(crate) fn get(&self) -> Option<&TunnelError> {
        self.0.get()
    }

    /// Translates the engine's error of one stream.
    pub(crate) fn stream_error(&self, error: h2::Error) -> StreamError {
        if error.is_reset() {
            return StreamError::Reset(error.reason().map_or(Reason::INTERNAL_ERROR, Reason::from));
        }
        StreamError::Lost(self.tunnel_error(error))
    }

    /// Translates the engine's error of the connection, as one of its streams sees it.
    pub(crate) fn tunnel_error(&self, error: h2::Error) -> TunnelError {
        if let Some(known) = self.get() {
            return known.clone();
        }
        let vague = error.get_io().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe);
        if vague { TunnelError::Closed } else { TunnelError::from_h2(error) }
    }
}
