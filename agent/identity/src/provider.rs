//! Cryptography of the mesh: aws-lc-rs, TLS 1.3, cipher suites and key exchange groups.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls_pki_types::ServerName;

/// TLS 1.3 only.
pub static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// ALPN of HBONE and of gRPC.
pub const ALPN_H2: &[u8] = b"h2";

/// Policy for key exchange groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 first, with the classical groups for peers that lack it.
    #[default]
    Preferred,
    /// X25519MLKEM768 only (`COMPLIANCE_POLICY=pqc`).
    PostQuantum,
}

impl KeyExchange {
    fn groups(self) -> Vec<&'static dyn SupportedKxGroup> {
        match self {
            Self::Preferred => vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
            ],
            Self::PostQuantum => vec![aws_lc_rs::kx_group::X25519MLKEM768],
        }
    }

    /// The crypto provider of mesh TLS under this policy: AES-GCM suites only.
    #[must_use]
    pub fn provider(self) -> Arc<CryptoProvider> {
        static PREFERRED: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| make(KeyExchange::Preferred));
        static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| make(KeyExchange::PostQuantum));
        Arc::clone(match self {
            Self::Preferred => &PREFERRED,
            Self::PostQuantum => &POST_QUANTUM,
        })
    }
}

fn make(policy: KeyExchange) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: policy.groups(),
        ..aws_lc_rs::default_provider()
    })
}

/// The provider under the default policy.
#[must_use]
pub fn mesh_provider() -> Arc<CryptoProvider> {
    KeyExchange::default().provider()
}

/// Makes aws-lc-rs the process default, for libraries that build their own TLS configurations. May be called more than
/// once.
pub fn install_crypto_provider() {
    // It fails when a default is installed already, which every caller here would have made the same.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// The server name for peers that are verified by identity instead of by name. rustls never sends an address as SNI.
#[must_use]
pub fn nameless_peer() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_group_is_preferred_and_only_aes_gcm_suites_remain() {
        let provider = mesh_provider();
        assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
        let suites: Vec<_> = provider.cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect();
        assert_eq!(
            suites,
            [rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256]
        );
    }

    #[test]
    fn post_quantum_policy_offers_only_the_hybrid_group() {
        let provider = KeyExchange::PostQuantum.provider();
        let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [rustls::NamedGroup::X25519MLKEM768]);
    }
}
