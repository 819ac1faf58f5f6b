//! Who we are and who they are: keys, CSRs, certificates, their renewal, the TLS configurations made from them, and the
//! proof of a peer's identity.
//!
//! It decides nothing about traffic. It learns certificates from a [`Signer`], which a higher crate implements, and hands
//! them out through a [`CertSource`]. Nothing here touches a socket.

pub mod cert;
pub mod csr;
pub mod fake;
pub mod manager;
pub mod metrics;
pub mod peer;
pub mod provider;
pub mod schedule;
pub mod source;
pub mod trust;
pub mod verify;

use std::sync::Arc;
use std::time::SystemTime;

pub use cert::{CertError, Certificate, Described};
pub use manager::{Config, Entry, Manager, State};
pub use metrics::Metrics;
pub use peer::PeerIdentity;
pub use provider::{KeyExchange, install_crypto_provider, nameless_peer};
pub use source::{CertSource, FetchError, SignError, Signer};
pub use trust::{PeerRole, Trust, Vouched};
pub use verify::{VerifyError, is_revocation, rejection};

/// Where the time of day comes from; tests put a paused clock here.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}
