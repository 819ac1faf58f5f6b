//! Label and field selectors of list and watch requests.

use serde_json::Value;

use super::error::Error;
use crate::manifest::object;

/// The fields that can be selected by.
const FIELDS: [&str; 5] =
    ["metadata.name", "metadata.namespace", "spec.nodeName", "spec.serviceAccountName", "status.phase"];

/// Which objects a reader wants: those that meet every requirement.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<(String, Requirement)>,
    fields: Vec<(String, Requirement)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    /// One of these values.
    In(Vec<String>),
    /// None of these values; being absent will do.
    NotIn(Vec<String>),
    Present,
    Absent,
}

// === impl Selector ===

impl Selector {
    /// Reads the two query parameters; empty ones select everything.
    ///
    /// # Errors
    /// When one is malformed or names a field that cannot be selected by.
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Error> {
        let labels =
            terms(labels).map(|term| requirement(term, "labelSelector")).collect::<Result<_, _>>()?;
        let fields: Vec<_> =
            terms(fields).map(|term| requirement(term, "fieldSelector")).collect::<Result<_, _>>()?;
        if let Some((field, _)) = fields.iter().find(|(field, _)| !FIELDS.contains(&field.as_str())) {
            return Err(Error::BadRequest(format!("fieldSelector: {field:?} is not one of {FIELDS:?}")));
        }
        Ok(Self { labels, fields })
    }

    /// Whether an object is wanted.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let field = |name: &str| Some(object::text(object, &format!("/{}", name.replace('.', "/"))));
        self.labels.iter().all(|(key, requirement)| requirement.met(object::label(object, key)))
            && self.fields.iter().all(|(name, requirement)| requirement.met(field(name)))
    }
}

impl Requirement {
    fn met(&self, value: Option<&str>) -> bool {
        let is_one_of = |values: &[String]| values.iter().any(|wanted| Some(wanted.as_str()) == value);
        match self {
            Self::In(values) => is_one_of(values),
            Self::NotIn(values) => !is_one_of(values),
            Self::Present => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

/// The comma-separated terms; a comma inside parentheses does not separate.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    let parts = text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|term| !term.is_empty())
}

fn requirement(term: &str, what: &str) -> Result<(String, Requirement), Error> {
    let bad = || Error::BadRequest(format!("{what}: cannot read {term:?}"));
    let owned = |text: &str| text.trim().to_owned();
    let (key, requirement) = if let Some((key, values)) = term.split_once(" notin ") {
        (key, Requirement::NotIn(values_of(values).ok_or_else(bad)?))
    } else if let Some((key, values)) = term.split_once(" in ") {
        (key, Requirement::In(values_of(values).ok_or_else(bad)?))
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Requirement::NotIn(vec![owned(value)]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Requirement::In(vec![owned(value)]))
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Requirement::Absent)
    } else {
        (term, Requirement::Present)
    };
    let key = key.trim();
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(is_key) {
        return Err(bad());
    }
    Ok((key.to_owned(), requirement))
}

fn values_of(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let pod = json!({
            "metadata": {"name": "p", "labels": {"app": "sleep", "version": "v1"}},
            "spec": {"nodeName": "n1"},
        });
        for (labels, fields, wanted) in [
            ("", "", true),
            ("app=sleep", "", true),
            ("app==sleep,version!=v2", "", true),
            ("app in (a, sleep),version notin (v2,v3)", "", true),
            ("app in (a,b)", "", false),
            ("app,!track", "", true),
            ("!app", "", false),
            ("track!=x", "", true),
            ("", "spec.nodeName=n1", true),
            ("", "spec.nodeName=n1,metadata.name!=p", false),
            ("", "status.phase=Running", false),
        ] {
            let selector = Selector::parse(labels, fields).unwrap();
            assert_eq!(selector.matches(&pod), wanted, "{labels} {fields}");
        }
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (labels, fields) in [("a in b", ""), ("=x", ""), ("a b", ""), ("", "spec.host=1")] {
            assert!(
                matches!(Selector::parse(labels, fields), Err(Error::BadRequest(_))),
                "{labels} {fields}"
            );
        }
    }
}
