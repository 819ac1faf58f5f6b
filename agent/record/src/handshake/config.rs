//! The configuration of one handshake: a copy of the caller's whose key log belongs to this connection alone, so that
//! secrets of two connections cannot be mixed up. A copy is a dozen reference counts, nothing beside a signature.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, ServerConfig};

use super::capture::{CapturedSecrets, CapturingKeyLog};

/// For a client. Tickets that the server sends are not kept, so nothing is resumed.
pub(super) fn client(configured: &ClientConfig) -> (ClientConfig, Arc<CapturedSecrets>) {
    let secrets = Arc::<CapturedSecrets>::default();
    let mut config = configured.clone();
    config.key_log = Arc::new(CapturingKeyLog::new(Arc::clone(&secrets), config.key_log));
    config.enable_secret_extraction = true;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    (config, secrets)
}

/// For a server.
pub(super) fn server(configured: &ServerConfig) -> (ServerConfig, Arc<CapturedSecrets>) {
    let secrets = Arc::<CapturedSecrets>::default();
    let mut config = configured.clone();
    config.key_log = Arc::new(CapturingKeyLog::new(Arc::clone(&secrets), config.key_log));
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    (config, secrets)
}
