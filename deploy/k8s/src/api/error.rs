//! What the API server refuses, as Kubernetes Status objects that name what was wrong.

use http::StatusCode;
use serde_json::{Value, json};

use crate::manifest::Kind;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such object.
    #[error("{plural} {name:?} not found", plural = .0.plural, name = .1)]
    NotFound(&'static Kind, String),
    /// There is nothing under this path.
    #[error("the server could not find the requested resource: {0}")]
    NoSuchPath(String),
    /// The path does not take this method.
    #[error("{0} is not allowed on {1}")]
    Method(String, String),
    /// An object of this name exists.
    #[error("{plural} {name:?} already exists", plural = .0.plural, name = .1)]
    AlreadyExists(&'static Kind, String),
    /// The object is not the one that the writer has seen.
    #[error("operation cannot be fulfilled on {plural} {name:?}: {problem}", plural = .0.plural, name = .1, problem = .2)]
    Conflict(&'static Kind, String, String),
    /// A field of the object is wrong.
    #[error("{kind} {name:?} is invalid: {field}: {problem}", kind = .0.kind, name = .1, field = .2, problem = .3)]
    Invalid(&'static Kind, String, String, String),
    /// The object may not be created now.
    #[error("{plural} {name:?} is forbidden: {problem}", plural = .0.plural, name = .1, problem = .2)]
    Forbidden(&'static Kind, String, String),
    /// The request itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// The caller could not be authenticated.
    #[error("Unauthorized: {0}")]
    Unauthorized(String),
    /// The changes since this version are forgotten.
    #[error("too old resource version: {0} ({1})")]
    Expired(u64, u64),
    /// A patch of a type that is not understood.
    #[error("the body of the request was in an unknown format: {0:?}")]
    MediaType(String),
}

// === impl Error ===

impl Error {
    /// An [`Error::Invalid`].
    pub(crate) fn invalid(
        kind: &'static Kind,
        name: &str,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Invalid(kind, name.to_owned(), field.into(), problem.into())
    }

    /// The HTTP status and the machine-readable reason.
    pub(crate) fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound(..) | Self::NoSuchPath(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Method(..) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::AlreadyExists(..) => (StatusCode::CONFLICT, "AlreadyExists"),
            Self::Conflict(..) => (StatusCode::CONFLICT, "Conflict"),
            Self::Invalid(..) => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            Self::Forbidden(..) => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Expired(..) => (StatusCode::GONE, "Expired"),
            Self::MediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
        }
    }

    /// The Kubernetes Status.
    pub(crate) fn status(&self) -> Value {
        let (code, reason) = self.code();
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "details": self.details(), "code": code.as_u16(),
        })
    }

    fn details(&self) -> Value {
        match self {
            Self::NotFound(kind, name)
            | Self::AlreadyExists(kind, name)
            | Self::Conflict(kind, name, _)
            | Self::Forbidden(kind, name, _) => {
                json!({"name": name, "group": kind.group, "kind": kind.plural})
            }
            Self::Invalid(kind, name, field, problem) => json!({
                "name": name, "group": kind.group, "kind": kind.kind,
                "causes": [{"reason": "FieldValueInvalid", "field": field, "message": problem}],
            }),
            _ => json!({}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_the_object_and_the_field() {
        let pods = Kind::named("Pod").unwrap();
        let status = Error::NotFound(pods, "p".to_owned()).status();
        assert_eq!(status["message"], "pods \"p\" not found");
        assert_eq!((&status["code"], &status["reason"]), (&404.into(), &"NotFound".into()));
        let status = Error::invalid(pods, "p", "spec.x", "is odd").status();
        assert_eq!(status["message"], "Pod \"p\" is invalid: spec.x: is odd");
        assert_eq!(status["details"]["causes"][0]["field"], "spec.x");
    }
}
