//! How objects are shown: whole, or only their metadata when the reader asks for that, as `kube`'s metadata watchers do.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::manifest::Kind;

/// What a reader gets of each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Everything.
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
}

// === impl Shape ===

impl Shape {
    /// What an `Accept` header asks for.
    pub(super) fn asked(accept: &str) -> Self {
        if accept.contains("as=PartialObjectMetadata") { Self::Metadata } else { Self::Full }
    }

    /// One object.
    pub(super) fn of(self, object: &Value) -> Cow<'_, Value> {
        match self {
            Self::Full => Cow::Borrowed(object),
            Self::Metadata => Cow::Owned(json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
            })),
        }
    }

    /// A list of objects at a revision.
    pub(super) fn list<'a>(
        self,
        kind: &Kind,
        revision: u64,
        items: impl Iterator<Item = &'a Value>,
    ) -> Value {
        let items: Vec<Cow<'a, Value>> = items.map(|item| self.of(item)).collect();
        let (kind, api_version) = match self {
            Self::Full => (format!("{}List", kind.kind), kind.api_version()),
            Self::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        json!({
            "kind": kind, "apiVersion": api_version,
            "metadata": {"resourceVersion": revision.to_string()}, "items": items,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_alone_is_shown_when_asked_for() {
        let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let pod = json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {}});
        let shown = Shape::asked(accept).of(&pod).into_owned();
        assert_eq!((shown.get("spec"), &shown["metadata"]["name"]), (None, &"p".into()));
        let list = Shape::Full.list(Kind::named("Pod").unwrap(), 7, std::iter::once(&pod));
        assert_eq!((&list["kind"], &list["metadata"]["resourceVersion"]), (&"PodList".into(), &"7".into()));
    }
}
