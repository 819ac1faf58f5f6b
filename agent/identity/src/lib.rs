//! Workload identity: keys, CSRs, certificates and their renewal, the TLS configurations made from them, and the
//! verification of peers by SPIFFE identity.
//!
//! It decides nothing about traffic and opens no socket. Certificates come from a [`Signer`], which a higher crate
//! implements, and are handed out through a [`CertSource`]. A [`Certificate`] makes one [`ClientTls`] or [`ServerTls`]
//! per handshake, and only those yield a [`PeerIdentity`].
//!
//! Files import each other downwards only:
//!
//! ```text
//! manager, fake  →  source  →  cert  →  tls  →  verify  →  trust  →  path  →  crl
//!                                        └──────┴→ peer    evidence   └→ provider
//! ```

pub mod cert;
pub mod clock;
mod constraints;
pub mod crl;
pub mod csr;
pub mod evidence;
pub mod fake;
pub mod manager;
pub mod metrics;
mod path;
pub mod peer;
pub mod provider;
pub mod schedule;
pub mod source;
pub mod tls;
pub mod trust;
pub mod verify;

pub use cert::{CertError, CertSummary, Certificate};
pub use clock::{Clock, system_clock};
pub use crl::Revocations;
pub use evidence::PeerEvidence;
pub use manager::{CertState, Config, IdentityEntry, Manager};
pub use metrics::Metrics;
pub use peer::PeerIdentity;
pub use provider::{KeyExchange, install_crypto_provider, nameless_peer};
pub use source::{CertSource, FetchError, SignError, Signer};
pub use tls::{ClientTls, MeshTls, ServerTls};
pub use trust::{RevocationWatch, Trust};
pub use verify::{VerifyError, is_revocation, rejection};
