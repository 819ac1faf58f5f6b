//! Small texts that Kubernetes objects are made of: times, uids, random suffixes and hashes.

use std::hash::{DefaultHasher, Hasher as _};
use std::time::SystemTime;

/// The letters of generated names: no vowels, so no words.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// RFC 3339 in whole seconds of UTC.
pub(super) fn time(time: SystemTime) -> String {
    let micros = isthmus_rt::log::timestamp(time);
    format!("{}Z", micros.split('.').next().unwrap_or_default())
}

/// A random UUID (version 4).
pub(super) fn uuid() -> String {
    uuid_of(fastrand::u128(..))
}

/// A UUID that is always the same for the same text.
pub(super) fn uuid_for(text: &str) -> String {
    let (high, low) = (hash(&(text, 0_u8)), hash(&(text, 1_u8)));
    uuid_of(u128::from(high) << 64 | u128::from(low))
}

/// The five letters at the end of a pod's name.
pub(super) fn random_suffix() -> String {
    (0..5).map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())])).collect()
}

/// A short name for a content, as in `pod-template-hash`.
pub(super) fn short_hash(content: &str) -> String {
    let mut rest = hash(&content);
    let base = ALPHABET.len() as u64;
    let letter = |_| {
        let at = usize::try_from(rest % base).unwrap_or_default();
        rest /= base;
        char::from(ALPHABET[at])
    };
    (0..10).map(letter).collect()
}

/// A hash that is the same in every run of this build.
pub(super) fn hash(content: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

fn uuid_of(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_of_version_4() {
        let uuid = uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
        assert_eq!(uuid_for("a"), uuid_for("a"));
        assert_ne!(uuid_for("a"), uuid_for("b"));
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(time(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        assert_eq!(short_hash("x").len(), 10);
    }
}
