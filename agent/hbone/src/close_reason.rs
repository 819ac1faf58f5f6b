//! Why a tunnel ended, shared by its owner and its handles.

use std::sync::OnceLock;

use crate::error::TunnelError;

/// Why a tunnel ended, once it has.
#[derive(Debug, Default)]
pub(crate) struct CloseReason(OnceLock<TunnelError>);

impl CloseReason {
    /// Records why the tunnel ended and returns the reason in force: the first one that was recorded.
    pub(crate) fn record(&self, error: TunnelError) -> &TunnelError {
        self.0.get_or_init(|| error)
    }

    pub(crate) fn get(&self) -> Option<&TunnelError> {
        self.0.get()
    }
}
