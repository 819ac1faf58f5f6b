//! Response compression: negotiation by `Accept-Encoding` (RFC 9110, 12.5.3), and the encoders.

use std::fmt;
use std::io::{self, BufWriter, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

/// Content coding of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Zstd,
    Brotli,
    Gzip,
    Deflate,
}

/// Fast rather than small: clients are in the same cluster.
const ZSTD_LEVEL: i32 = 1;
const BROTLI_QUALITY: u32 = 1;
/// Binary logarithm of brotli's window. Its default of 4 MiB is more memory than one text is worth.
const BROTLI_WINDOW: u32 = 18;
/// Bytes that brotli collects before it compresses them.
const BROTLI_BUFFER: usize = 16 * 1024;

/// The preference among codings that a client likes equally.
const PREFERENCE: [Encoding; 4] = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip, Encoding::Deflate];

impl Encoding {
    /// The coding with the greatest weight among those that the client accepts. Identity when it accepts none: that is
    /// better for it than an error, also where it refuses identity.
    pub(super) fn of(accepted: &str) -> Self {
        let mut best = (Self::Identity, weight(accepted, "identity").unwrap_or(0));
        // The least preferred first: of equal weights, the last one wins.
        for encoding in PREFERENCE.into_iter().rev() {
            let weight = encoding
                .name()
                .and_then(|name| weight(accepted, name).or_else(|| weight(accepted, "*")))
                .unwrap_or(0);
            if weight > 0 && weight >= best.1 {
                best = (encoding, weight);
            }
        }
        best.0
    }

    /// The value of `Content-Encoding`; none for identity.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Zstd => Some("zstd"),
            Self::Brotli => Some("br"),
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }

    /// Compresses the text that `write` produces.
    pub(super) fn encode(self, write: impl FnOnce(&mut Text<'_>) -> fmt::Result) -> io::Result<Vec<u8>> {
        let mut stream = Stream::new(self)?;
        Text::write_to(stream.writer(), write)?;
        stream.finish()
    }
}

/// A streaming encoder.
pub(super) enum Stream {
    Identity(Vec<u8>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
}

impl Stream {
    /// # Errors
    /// When there is no memory for the encoder.
    pub(super) fn new(encoding: Encoding) -> io::Result<Self> {
        let (out, level) = (Vec::new(), Compression::fast());
        Ok(match encoding {
            Encoding::Identity => Self::Identity(out),
            Encoding::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?),
            Encoding::Brotli => {
                let stream = brotli::CompressorWriter::new(out, BROTLI_BUFFER, BROTLI_QUALITY, BROTLI_WINDOW);
                Self::Brotli(Box::new(stream))
            }
            Encoding::Gzip => Self::Gzip(GzEncoder::new(out, level)),
            Encoding::Deflate => Self::Deflate(ZlibEncoder::new(out, level)),
        })
    }

    /// Compresses a piece; returns the output so far, often nothing.
    pub(super) fn push(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        self.writer().write_all(text)?;
        Ok(std::mem::take(match self {
            Self::Identity(out) => out,
            Self::Zstd(out) => out.get_mut(),
            Self::Brotli(out) => out.get_mut(),
            Self::Gzip(out) => out.get_mut(),
            Self::Deflate(out) => out.get_mut(),
        }))
    }

    /// Ends the stream and returns its rest.
    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity(out) => Ok(out),
            Self::Zstd(out) => out.finish(),
            Self::Brotli(out) => Ok(out.into_inner()),
            Self::Gzip(out) => out.finish(),
            Self::Deflate(out) => out.finish(),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Identity(out) => out,
            Self::Zstd(out) => out,
            Self::Brotli(out) => out,
            Self::Gzip(out) => out,
            Self::Deflate(out) => out,
        }
    }
}

/// The weight that the client gives to one coding, in thousandths; `None` when it does not mention it. An entry whose
/// weight is malformed is as good as absent.
fn weight(accepted: &str, name: &str) -> Option<u16> {
    accepted.split(',').find_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let coding = parts.next()?;
        // RFC 9110, 8.4.1.3: the old name of gzip.
        let coding = if coding.eq_ignore_ascii_case("x-gzip") { "gzip" } else { coding };
        if !coding.eq_ignore_ascii_case(name) {
            return None;
        }
        parts.next().map_or(Some(1000), thousandths)
    })
}

/// `q=0.5` → 500.
fn thousandths(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    let value = value.trim();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if !name.trim().eq_ignore_ascii_case("q") || fraction.len() > 3 || !matches!(whole, "0" | "1") {
        return None;
    }
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let weight = format!("{whole}{fraction:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
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
    use std::fmt::Write as _;
    use std::io::Read;

    use flate2::read::{GzDecoder, ZlibDecoder};

    use super::*;

    const ALL: [Encoding; 5] =
        [Encoding::Identity, Encoding::Zstd, Encoding::Brotli, Encoding::Gzip, Encoding::Deflate];

    #[test]
    fn the_coding_of_the_greatest_weight_is_chosen() {
        for (accepted, chosen) in [
            ("", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("deflate", Encoding::Deflate),
            ("br", Encoding::Brotli),
            ("zstd", Encoding::Zstd),
            // Equal weights: our preference, whatever the order.
            ("gzip, br, deflate, zstd", Encoding::Zstd),
            ("deflate, gzip, br", Encoding::Brotli),
            ("deflate;q=0.5, GZIP;q=0.5", Encoding::Gzip),
            // The client's weights come first.
            ("deflate, gzip;q=0.5", Encoding::Deflate),
            ("zstd;q=0.1, br;q=0.11, gzip;q=0.109", Encoding::Brotli),
            ("zstd ; Q=0.999 , gzip ; q=1.000", Encoding::Gzip),
            ("gzip;q=0.5, identity", Encoding::Identity),
            ("gzip;q=0.5, identity;q=0.4", Encoding::Gzip),
            ("gzip, identity", Encoding::Gzip),
            // Refusals, and what stands for the rest.
            ("gzip;q=0, deflate", Encoding::Deflate),
            ("gzip; q=0.0", Encoding::Identity),
            ("*", Encoding::Zstd),
            ("zstd;q=0, *", Encoding::Brotli),
            ("zstd;q=0, br;q=0.2, *;q=0.1", Encoding::Brotli),
            ("gzip;q=0.3, *;q=0", Encoding::Gzip),
            ("*;q=0", Encoding::Identity),
            ("identity;q=0", Encoding::Identity),
            // Unknown codings and malformed weights.
            ("lz4, compress", Encoding::Identity),
            ("gzip;q=2, zstd;q=nan, br;q=-1, deflate;q=0.1234", Encoding::Identity),
            ("gzip;q=1.001, zstd;q=, br;q, deflate;level=1", Encoding::Identity),
        ] {
            assert_eq!(Encoding::of(accepted), chosen, "{accepted}");
        }
    }

    fn decoded(encoding: Encoding, packed: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        match encoding {
            Encoding::Identity => text.extend_from_slice(packed),
            Encoding::Zstd => text = zstd::decode_all(packed).unwrap(),
            Encoding::Brotli => {
                brotli::Decompressor::new(packed, 4096).read_to_end(&mut text).map(drop).unwrap();
            }
            Encoding::Gzip => GzDecoder::new(packed).read_to_end(&mut text).map(drop).unwrap(),
            Encoding::Deflate => ZlibDecoder::new(packed).read_to_end(&mut text).map(drop).unwrap(),
        }
        text
    }

    #[test]
    fn every_coding_gives_the_text_back() {
        let text: String =
            (0..20_000).map(|line| format!("istio_tcp_connections{{n=\"{line}\"}} 1\n")).collect();
        for encoding in ALL {
            let packed = encoding.encode(|out| out.write_str(&text)).unwrap();
            assert!(decoded(encoding, &packed) == text.as_bytes(), "{encoding:?}");
            let mut stream = Stream::new(encoding).unwrap();
            let mut pieces = Vec::new();
            for piece in text.as_bytes().chunks(10_000) {
                pieces.extend(stream.push(piece).unwrap());
            }
            let early = pieces.len();
            pieces.extend(stream.finish().unwrap());
            assert!(decoded(encoding, &pieces) == text.as_bytes(), "{encoding:?} in pieces");
            assert!(
                early > pieces.len() / 2,
                "{encoding:?} keeps {} of {}",
                pieces.len() - early,
                pieces.len()
            );
            if encoding != Encoding::Identity {
                assert!(packed.len() < text.len() / 4, "{encoding:?}: {} of {}", packed.len(), text.len());
            }
        }
    }

    #[test]
    fn an_error_of_the_writer_is_reported() {
        for encoding in ALL {
            assert!(encoding.encode(|_| Err(fmt::Error)).is_err(), "{encoding:?}");
        }
    }
}
