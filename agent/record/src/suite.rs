//! The cipher suites of TLS 1.3 that tunnels use.

use aws_lc_rs::{aead, hkdf};

/// A cipher suite of TLS 1.3: how records are protected, and which hash derives keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`.
    Aes128GcmSha256,
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256GcmSha384,
    /// `TLS_CHACHA20_POLY1305_SHA256`.
    ChaCha20Poly1305Sha256,
}

// === impl Suite ===

impl Suite {
    /// All suites.
    pub const ALL: [Self; 3] = [Self::Aes128GcmSha256, Self::Aes256GcmSha384, Self::ChaCha20Poly1305Sha256];

    /// The suite with this number of IANA's registry, if it is one of ours.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.code() == code)
    }

    /// Its number in IANA's registry.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Aes128GcmSha256 => 0x1301,
            Self::Aes256GcmSha384 => 0x1302,
            Self::ChaCha20Poly1305Sha256 => 0x1303,
        }
    }

    /// Bytes of a traffic secret: the length of the hash.
    #[must_use]
    pub fn secret_len(self) -> usize {
        match self {
            Self::Aes128GcmSha256 | Self::ChaCha20Poly1305Sha256 => 32,
            Self::Aes256GcmSha384 => 48,
        }
    }

    /// How many records one key may seal. RFC 8446, section 5.5, allows AES-GCM 2^24.5 full-size records; ChaCha20 has no
    /// limit below the sequence number's.
    #[must_use]
    pub fn record_limit(self) -> u64 {
        match self {
            Self::Aes128GcmSha256 | Self::Aes256GcmSha384 => 1 << 24,
            Self::ChaCha20Poly1305Sha256 => 1 << 62,
        }
    }

    /// After how many records a key should be updated: early enough that an update that has to wait for its turn comes
    /// in time.
    pub(crate) fn update_after(self) -> u64 {
        self.record_limit() / 2
    }

    pub(crate) fn key_len(self) -> usize {
        self.aead().key_len()
    }

    pub(crate) fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128GcmSha256 => &aead::AES_128_GCM,
            Self::Aes256GcmSha384 => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305Sha256 => &aead::CHACHA20_POLY1305,
        }
    }

    pub(crate) fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128GcmSha256 | Self::ChaCha20Poly1305Sha256 => hkdf::HKDF_SHA256,
            Self::Aes256GcmSha384 => hkdf::HKDF_SHA384,
        }
    }
}
