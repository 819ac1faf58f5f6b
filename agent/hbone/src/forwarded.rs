//! The `forwarded` header (RFC 7239) of a CONNECT: the original client and the service it addressed. It proves nothing.

use std::fmt;
use std::net::SocketAddr;

/// `for="10.0.0.1:41000";host=helloworld.sample.svc.cluster.local`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forwarded {
    /// The application's address at the client.
    pub client: Option<SocketAddr>,
    /// The service the client addressed, when it addressed one.
    pub host: Option<String>,
}

impl Forwarded {
    /// Parses a header; parts that do not parse are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        // Only the first element is the client's; later ones are other proxies'.
        for pair in text.split(',').next().unwrap_or_default().split(';') {
            let Some((key, value)) = pair.split_once('=') else { continue };
            let value = value.trim_matches(|c: char| c == '"' || c.is_whitespace());
            match key.trim().to_ascii_lowercase().as_str() {
                "for" => read.client = value.parse().ok(),
                "host" if !value.is_empty() => read.host = Some(value.to_owned()),
                _ => {}
            }
        }
        read
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
        }
        if let Some(host) = &self.host {
            let separator = if self.client.is_some() { ";" } else { "" };
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_ztunnel_does_and_parses_back() {
        let full =
            Forwarded { client: "10.0.0.1:41000".parse().ok(), host: Some("a.b.svc.cluster.local".into()) };
        assert_eq!(full.to_string(), r#"for="10.0.0.1:41000";host=a.b.svc.cluster.local"#);
        let plain = Forwarded { client: "[2001:db8::1]:80".parse().ok(), host: None };
        assert_eq!(plain.to_string(), r#"for="[2001:db8::1]:80""#);
        for one in [full, plain, Forwarded::default()] {
            assert_eq!(Forwarded::parse(&one.to_string()), one);
        }
    }

    #[test]
    fn parts_that_do_not_parse_are_left_out() {
        let read = Forwarded::parse(r#"by=x; FOR="unknown";HOST="svc";=;host="#);
        assert_eq!(read, Forwarded { client: None, host: Some("svc".into()) });
        let quoted = Forwarded::parse("host=\"\t svc\" \"");
        assert_eq!(quoted.host.as_deref(), Some("svc"));
    }
}
