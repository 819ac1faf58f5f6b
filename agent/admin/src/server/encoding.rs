//! Response compression: negotiation by `Accept-Encoding`, and the encoders.

use std::fmt;
use std::io::{self, BufWriter, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

/// Content coding of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Encoding {
    /// The preferred coding among those that the client accepts. Weights are ignored, except that `q=0` excludes one.
    pub(super) fn of(accepted: &str) -> Self {
        let takes = |name: &str| accepted.split(',').any(|entry| accepts(entry, name));
        if takes("gzip") {
            Self::Gzip
        } else if takes("deflate") {
            Self::Deflate
        } else {
            Self::Identity
        }
    }

    /// The value of `Content-Encoding`; none for identity.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }

    /// Compresses the text that `write` produces.
    pub(super) fn encode(self, write: impl FnOnce(&mut Text<'_>) -> fmt::Result) -> io::Result<Vec<u8>> {
        // Fast rather than small: clients are in the same cluster.
        let level = Compression::fast();
        match self {
            Self::Identity => {
                let mut out = Vec::new();
                Text::write_to(&mut out, write)?;
                Ok(out)
            }
            Self::Gzip => {
                let mut out = GzEncoder::new(Vec::new(), level);
                Text::write_to(&mut out, write)?;
                out.finish()
            }
            Self::Deflate => {
                let mut out = ZlibEncoder::new(Vec::new(), level);
                Text::write_to(&mut out, write)?;
                out.finish()
            }
        }
    }
}

/// A streaming encoder.
pub(super) enum Stream {
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
}

impl Stream {
    /// `None` for identity.
    pub(super) fn new(encoding: Encoding) -> Option<Self> {
        match encoding {
            Encoding::Identity => None,
            Encoding::Gzip => Some(Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast()))),
            Encoding::Deflate => Some(Self::Deflate(ZlibEncoder::new(Vec::new(), Compression::fast()))),
        }
    }

    /// Compresses a piece; returns the output so far, often nothing.
    pub(super) fn push(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(out) => {
                out.write_all(text)?;
                Ok(std::mem::take(out.get_mut()))
            }
            Self::Deflate(out) => {
                out.write_all(text)?;
                Ok(std::mem::take(out.get_mut()))
            }
        }
    }

    /// Ends the stream and returns its rest.
    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(out) => out.finish(),
            Self::Deflate(out) => out.finish(),
        }
    }
}

fn accepts(entry: &str, name: &str) -> bool {
    let (coding, weight) = entry.split_once(';').unwrap_or((entry, ""));
    let coding = coding.trim();
    let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0_f32));
    (coding.eq_ignore_ascii_case(name) || coding == "*") && !refused
}

/// Adapts `fmt::Write` to an encoder.
pub(super) struct Text<'a> {
    out: BufWriter<&'a mut dyn Write>,
    error: Option<io::Error>,
}

impl<'a> Text<'a> {
    fn write_to(out: &'a mut dyn Write, write: impl FnOnce(&mut Text<'_>) -> fmt::Result) -> io::Result<()> {
        let mut text = Self { out: BufWriter::with_capacity(32 << 10, out), error: None };
        let written = write(&mut text);
        match text.error.take() {
            Some(error) => Err(error),
            None => written.map_err(io::Error::other).and_then(|()| text.out.flush()),
        }
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_takes_is_chosen() {
        for (accepted, chosen) in [
            ("", Encoding::Identity),
            ("br, zstd", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("deflate, GZIP;q=0.5", Encoding::Gzip),
            ("gzip;q=0, deflate", Encoding::Deflate),
            ("gzip; q=0.0", Encoding::Identity),
            ("*", Encoding::Gzip),
            ("identity", Encoding::Identity),
        ] {
            assert_eq!(Encoding::of(accepted), chosen, "{accepted}");
        }
    }
}
