//! The traffic secret of one direction and what is derived from it (RFC 8446, sections 7.1 to 7.3).

use std::fmt;

use aws_lc_rs::aead::NONCE_LEN;
use aws_lc_rs::hkdf::{KeyType, Prk};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{Error, Result, Suite};

/// The longest secret: the output of SHA-384.
const MAX_SECRET: usize = 48;
/// The longest key: that of AES-256 and ChaCha20.
const MAX_KEY: usize = 32;

/// The traffic secret of one direction, with the suite that it belongs to. Its memory is cleared when it is dropped, and
/// `Debug` shows no byte of it.
pub struct TrafficSecret {
    suite: Suite,
    bytes: [u8; MAX_SECRET],
}

/// Key and initialization vector, as records use them.
pub(crate) struct KeyMaterial {
    key: Zeroizing<[u8; MAX_KEY]>,
    key_len: usize,
    pub(crate) iv: Zeroizing<[u8; NONCE_LEN]>,
}

/// A length, as HKDF wants it.
struct OutputLen(usize);

// === impl TrafficSecret ===

impl TrafficSecret {
    /// A secret of `suite`, for one that was taken out of a session before.
    ///
    /// # Errors
    ///
    /// [`Error::SecretLength`] when `bytes` is not as long as the suite's hash.
    pub fn new(suite: Suite, bytes: &[u8]) -> Result<Self> {
        if bytes.len() != suite.secret_len() {
            return Err(Error::SecretLength);
        }
        let mut secret = Self { suite, bytes: [0; MAX_SECRET] };
        secret.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(secret)
    }

    /// The suite that the secret belongs to.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The secret itself, to be handed to another process. The caller clears what it copies.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.bytes[..self.suite.secret_len()]
    }

    /// Key and initialization vector for records.
    pub(crate) fn key_material(&self) -> Result<KeyMaterial> {
        let mut material = KeyMaterial {
            key: Zeroizing::default(),
            key_len: self.suite.key_len(),
            iv: Zeroizing::default(),
        };
        self.expand(b"key", &mut material.key[..material.key_len])?;
        self.expand(b"iv", &mut material.iv[..])?;
        Ok(material)
    }

    /// The secret after a KeyUpdate.
    pub(crate) fn next(&self) -> Result<Self> {
        let mut next = Self { suite: self.suite, bytes: [0; MAX_SECRET] };
        self.expand(b"traffic upd", &mut next.bytes[..self.suite.secret_len()])?;
        Ok(next)
    }

    /// HKDF-Expand-Label with an empty context.
    fn expand(&self, label: &[u8], out: &mut [u8]) -> Result<()> {
        const PREFIX: &[u8] = b"tls13 ";
        let output_len = u16::try_from(out.len()).map_err(|_| Error::Crypto)?.to_be_bytes();
        let label_len = [u8::try_from(PREFIX.len() + label.len()).map_err(|_| Error::Crypto)?];
        let context_len = [0];
        let info = [&output_len[..], &label_len, PREFIX, label, &context_len];
        Prk::new_less_safe(self.suite.hkdf(), self.expose())
            .expand(&info, OutputLen(out.len()))
            .and_then(|output| output.fill(out))
            .map_err(|_| Error::Crypto)
    }
}

impl Drop for TrafficSecret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficSecret").field("suite", &self.suite).finish_non_exhaustive()
    }
}

// === impl KeyMaterial ===

impl KeyMaterial {
    pub(crate) fn key(&self) -> &[u8] {
        &self.key[..self.key_len]
    }
}

impl KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}
