//! The raw traffic secrets of one handshake. rustls hands out keys, from which the secret of the next KeyUpdate cannot be
//! derived; only its key log shows the secrets themselves.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::KeyLog;
use zeroize::Zeroizing;

/// The two secrets of application data of one connection.
#[derive(Default)]
pub(super) struct CapturedSecrets {
    client: OnceLock<Zeroizing<Vec<u8>>>,
    server: OnceLock<Zeroizing<Vec<u8>>>,
}

/// A key log that belongs to one connection. What it sees also goes to the log that was configured before.
#[derive(Debug)]
pub(super) struct CapturingKeyLog {
    secrets: Arc<CapturedSecrets>,
    configured: Arc<dyn KeyLog>,
}

// === impl CapturedSecrets ===

impl CapturedSecrets {
    pub(super) fn client(&self) -> Option<&[u8]> {
        self.client.get().map(|secret| secret.as_slice())
    }

    pub(super) fn server(&self) -> Option<&[u8]> {
        self.server.get().map(|secret| secret.as_slice())
    }

    fn slot(&self, label: &str) -> Option<&OnceLock<Zeroizing<Vec<u8>>>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&self.server),
            _ => None,
        }
    }
}

impl fmt::Debug for CapturedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedSecrets").finish_non_exhaustive()
    }
}

// === impl CapturingKeyLog ===

impl CapturingKeyLog {
    pub(super) fn new(secrets: Arc<CapturedSecrets>, configured: Arc<dyn KeyLog>) -> Self {
        Self { secrets, configured }
    }
}

impl KeyLog for CapturingKeyLog {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        if let Some(slot) = self.secrets.slot(label) {
            // A second secret for the same label cannot be; were there one, the keys would not match it.
            let _ = slot.set(Zeroizing::new(secret.to_vec()));
        }
        if self.configured.will_log(label) {
            self.configured.log(label, client_random, secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        self.secrets.slot(label).is_some() || self.configured.will_log(label)
    }
}
