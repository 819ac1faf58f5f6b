//! Heads of messages: validation of field lists (RFC 9113 §8.2, §8.3, §8.5), and typed access to them.
//!
//! Knows nothing of frames and streams, nor of what an authority or a label means.

use crate::fields::Fields;

/// Why a message is malformed. It costs its stream, not the connection (RFC 9113 §8.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A name that is empty, not in lower case, or no token.
    #[error("invalid field name")]
    Name,
    /// A value with control characters, or with white space at its ends.
    #[error("invalid field value")]
    Value,
    /// A field of HTTP/1 connections.
    #[error("connection-specific field")]
    ConnectionSpecific,
    /// A pseudo header that is unknown, not of this kind of message, or behind a regular field.
    #[error("misplaced or unknown pseudo header")]
    Pseudo,
    /// A pseudo header that occurs twice.
    #[error("duplicate pseudo header")]
    Duplicate,
    /// A pseudo header that is required is missing or empty.
    #[error("missing pseudo header")]
    Missing,
    /// A CONNECT with `:scheme` or `:path`.
    #[error("CONNECT with scheme or path")]
    ConnectTarget,
    /// A `:status` that is no three-digit number, or 101.
    #[error("invalid status")]
    Status,
    /// An interim response or a second head that ends, or does not end, the stream.
    #[error("misplaced head")]
    Misplaced,
}

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// All fields, pseudo headers first.
    pub fields: Fields,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// All fields, with `:status` first.
    pub fields: Fields,
}

const REQUEST_PSEUDO: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];
const RESPONSE_PSEUDO: [&[u8]; 1] = [b":status"];
const CONNECTION_SPECIFIC: [&[u8]; 5] =
    [b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"];

// === impl RequestHead ===

impl RequestHead {
    /// Checks the fields of a request. A CONNECT without an authority is left to the caller, who can answer why.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn new(fields: Fields) -> Result<Self, Malformed> {
        check(&fields, &REQUEST_PSEUDO)?;
        let head = Self { fields };
        if head.is_connect() {
            if head.path().is_some() || head.scheme().is_some() {
                return Err(Malformed::ConnectTarget);
            }
            return Ok(head);
        }
        let required = [Some(head.method()), head.scheme(), head.path()];
        let complete = required.iter().all(|text| text.is_some_and(|text| !text.is_empty()));
        if complete { Ok(head) } else { Err(Malformed::Missing) }
    }

    /// Whether this is a CONNECT.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.method() == "CONNECT"
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.text(":method").unwrap_or_default()
    }

    /// The authority: the target of a CONNECT.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.text(":authority")
    }

    /// The scheme; never of a CONNECT.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        self.text(":scheme")
    }

    /// The path with its query; never of a CONNECT.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.text(":path")
    }

    /// The value of a field, if it is text.
    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    /// Checks the fields of a response.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn new(fields: Fields) -> Result<Self, Malformed> {
        check(&fields, &RESPONSE_PSEUDO)?;
        let status = match fields.get(":status").ok_or(Malformed::Missing)? {
            [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                [a, b, c].into_iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
            }
            _ => return Err(Malformed::Status),
        };
        // There is no protocol to switch to in HTTP/2 (RFC 9113 §8.6).
        if status == 101 { Err(Malformed::Status) } else { Ok(Self { status, fields }) }
    }

    /// Whether another head follows.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// Checks trailers, in which no pseudo header is allowed.
///
/// # Errors
/// When they are malformed.
pub(crate) fn check_trailers(fields: &Fields) -> Result<(), Malformed> {
    check(fields, &[])
}

fn check(fields: &Fields, allowed: &[&[u8]]) -> Result<(), Malformed> {
    let (mut seen, mut regular) = ([false; 4], false);
    for (name, value) in fields.iter() {
        if name.first() == Some(&b':') {
            let at = allowed.iter().position(|known| *known == name).filter(|_| !regular);
            let seen = at.and_then(|at| seen.get_mut(at)).ok_or(Malformed::Pseudo)?;
            if std::mem::replace(seen, true) {
                return Err(Malformed::Duplicate);
            }
            if !value.iter().all(|byte| (0x21..=0x7e).contains(byte)) {
                return Err(Malformed::Value);
            }
            continue;
        }
        regular = true;
        if !is_valid_name(name) {
            return Err(Malformed::Name);
        }
        if !is_valid_value(value) {
            return Err(Malformed::Value);
        }
        if CONNECTION_SPECIFIC.contains(&name) || (name == b"te" && value != b"trailers") {
            return Err(Malformed::ConnectionSpecific);
        }
    }
    Ok(())
}

/// Whether a regular field may have this name: a token in lower case.
#[must_use]
pub fn is_valid_name(name: &[u8]) -> bool {
    let token =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(token)
}

/// Whether a field may have this value: no control characters but tabs, and no white space at its ends.
#[must_use]
pub fn is_valid_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let control = |byte: &u8| *byte < 0x20 && *byte != b'\t' || *byte == 0x7f;
    !blank(value.first()) && !blank(value.last()) && !value.iter().any(control)
}
