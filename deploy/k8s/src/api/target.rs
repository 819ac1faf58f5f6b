//! From a request's path and query to what it is about.

use std::collections::HashMap;

use super::error::Error;
use crate::manifest::Kind;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// `/version`.
    Version,
    /// `/api`, `/apis` and what hangs below them without naming a collection.
    Discovery(String),
    /// The objects of a kind in one namespace or in all.
    Collection(&'static Kind, Option<String>),
    /// One object.
    Object { kind: &'static Kind, namespace: String, name: String, part: Part },
    /// `serviceaccounts/<name>/token`.
    Token { namespace: String, account: String },
    /// `tokenreviews`.
    TokenReview,
}

/// Which part of an object a request may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but the status.
    Main,
    /// The status, labels and annotations.
    Status,
}

/// The parameters of a query.
#[derive(Debug, Default)]
pub(super) struct Query(HashMap<String, String>);

// === impl Target ===

impl Target {
    /// Reads a path.
    ///
    /// # Errors
    /// When nothing is served there.
    pub(super) fn parse(path: &str) -> Result<Self, Error> {
        let none = || Error::NoSuchPath(path.to_owned());
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => return Ok(Self::Health),
            ["version"] => return Ok(Self::Version),
            ["api" | "apis"] | ["api" | "apis", _] | ["apis", _, _] => {
                return Ok(Self::Discovery(format!("/{}", segments.join("/"))));
            }
            ["apis", "authentication.k8s.io", "v1", "tokenreviews"] => {
                return Ok(Self::TokenReview);
            }
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(none()),
        };
        let kind = |plural: &str| Kind::at(group, version, plural).ok_or_else(none);
        let object = |kind, namespace: &str, name: &str, part| {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            Ok(Self::Object { kind, namespace, name, part })
        };
        match rest {
            ["namespaces", name] => object(kind("namespaces")?, "", name, Part::Main),
            ["namespaces", name, "status"] => object(kind("namespaces")?, "", name, Part::Status),
            ["namespaces", namespace, rest @ ..] => match rest {
                ["serviceaccounts", account, "token"] => {
                    Ok(Self::Token { namespace: (*namespace).to_owned(), account: (*account).to_owned() })
                }
                [plural] => Ok(Self::Collection(kind(plural)?, Some((*namespace).to_owned()))),
                [plural, name] => object(kind(plural)?, namespace, name, Part::Main),
                [plural, name, "status"] => object(kind(plural)?, namespace, name, Part::Status),
                _ => Err(none()),
            },
            [plural] => Ok(Self::Collection(kind(plural)?, None)),
            [plural, name, rest @ ..] if !kind(plural)?.namespaced => match rest {
                [] => object(kind(plural)?, "", name, Part::Main),
                ["status"] => object(kind(plural)?, "", name, Part::Status),
                _ => Err(none()),
            },
            _ => Err(none()),
        }
    }
}

// === impl Query ===

impl Query {
    /// Reads a query string.
    pub(super) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(decoded).collect())
    }

    /// A parameter's value, or the empty string.
    pub(super) fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// Whether a boolean parameter is set.
    pub(super) fn is(&self, key: &str) -> bool {
        matches!(self.get(key), "1" | "true")
    }

    /// A number, if the parameter is given.
    ///
    /// # Errors
    /// When it is no number.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.get(key) {
            "" => Ok(None),
            text => {
                let bad = |_| Error::BadRequest(format!("query parameter {key}: {text:?} is no number"));
                text.parse().map(Some).map_err(bad)
            }
        }
    }
}

fn decoded((key, value): (&str, &str)) -> (String, String) {
    (percent_decode(key), percent_decode(value))
}

/// `%xx` and `+`; what is malformed stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_and_objects() {
        let pods = Kind::named("Pod").unwrap();
        let object = |kind, namespace: &str, name: &str, part| Target::Object {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            part,
        };
        for (path, target) in [
            ("/api/v1/pods", Target::Collection(pods, None)),
            ("/api/v1/namespaces/a/pods", Target::Collection(pods, Some("a".to_owned()))),
            ("/api/v1/namespaces/a/pods/p", object(pods, "a", "p", Part::Main)),
            ("/api/v1/namespaces/a/pods/p/status", object(pods, "a", "p", Part::Status)),
            ("/api/v1/namespaces/a", object(Kind::named("Namespace").unwrap(), "", "a", Part::Main)),
            ("/api/v1/nodes/n/status", object(Kind::named("Node").unwrap(), "", "n", Part::Status)),
            (
                "/apis/apps/v1/namespaces/a/deployments/d",
                object(Kind::named("Deployment").unwrap(), "a", "d", Part::Main),
            ),
            ("/apis/authentication.k8s.io/v1/tokenreviews", Target::TokenReview),
            ("/apis/apps/v1", Target::Discovery("/apis/apps/v1".to_owned())),
            ("/healthz", Target::Health),
        ] {
            assert_eq!(Target::parse(path).unwrap(), target, "{path}");
        }
        for path in ["/", "/api/v1/cronjobs", "/api/v1/pods/p", "/api/v1/namespaces/a/pods/p/log"] {
            assert!(matches!(Target::parse(path), Err(Error::NoSuchPath(_))), "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=app%3Dsleep%2Ca+in+%28b%29&watch=1&bad=%zz");
        assert_eq!(query.get("labelSelector"), "app=sleep,a in (b)");
        assert!(query.is("watch") && !query.is("follow"));
        assert_eq!(query.get("bad"), "%zz");
        assert!(query.number("labelSelector").is_err());
    }
}
