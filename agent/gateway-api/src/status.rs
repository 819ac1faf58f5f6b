//! Conditions, and how they are merged into what an object's status says already: conditions of other types stay, and
//! the time of a transition changes only when the status does. Pure.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::objects::{ObjectName, text};

/// A condition that we report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// A status that differs from the stored one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StatusPatch {
    pub(crate) kind: Kind,
    pub(crate) name: ObjectName,
    /// The version that it was computed from: if the object has changed since, the patch is refused and computed anew.
    pub(crate) resource_version: String,
    /// The fields of `status` that are written.
    pub(crate) status: Value,
}

/// When a status is computed, and of which generation of the object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed<'a> {
    pub(crate) generation: i64,
    /// RFC 3339.
    pub(crate) now: &'a str,
}

impl Condition {
    pub(crate) fn is_true(kind: &'static str, reason: &'static str) -> Self {
        Self { kind, status: true, reason, message: String::new() }
    }

    pub(crate) fn is_false(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: false, reason, message: message.into() }
    }

    /// The same with a text for people.
    pub(crate) fn saying(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    fn json(&self, before: Option<&Value>, observed: Observed<'_>) -> Value {
        let status = if self.status { "True" } else { "False" };
        let same = before.filter(|before| text(before, "/status") == status);
        let since = same.map(|before| text(before, "/lastTransitionTime")).filter(|since| !since.is_empty());
        json!({
            "type": self.kind, "status": status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": since.unwrap_or(observed.now), "observedGeneration": observed.generation,
        })
    }
}

/// The list of conditions with ours in it; others stay where they are.
pub(crate) fn merged(before: Option<&Value>, ours: &[Condition], observed: Observed<'_>) -> Value {
    let mut all = before.and_then(Value::as_array).cloned().unwrap_or_default();
    for condition in ours {
        match all.iter_mut().find(|one| text(one, "/type") == condition.kind) {
            Some(stored) => *stored = condition.json(Some(stored), observed),
            None => all.push(condition.json(None, observed)),
        }
    }
    Value::Array(all)
}

/// The fields that differ from the stored status; `None` when none does.
pub(crate) fn difference(before: &Value, wanted: Value) -> Option<Value> {
    let Value::Object(wanted) = wanted else { return None };
    let differs = wanted.into_iter().filter(|(field, value)| before.get(field) != Some(value));
    let differs: serde_json::Map<_, _> = differs.collect();
    (!differs.is_empty()).then_some(Value::Object(differs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_changes_its_time_and_nothing_else_does() {
        let first = Observed { generation: 1, now: "t1" };
        let ours = [Condition::is_true("Accepted", "Accepted")];
        let foreign = json!([{"type": "Foreign", "status": "True", "lastTransitionTime": "t0"}]);
        let stored = merged(Some(&foreign), &ours, first);
        assert_eq!((text(&stored, "/0/type"), text(&stored, "/1/lastTransitionTime")), ("Foreign", "t1"));
        assert_eq!(stored[0], foreign[0], "another controller's condition was touched");

        let later = Observed { generation: 2, now: "t2" };
        let same = merged(Some(&stored), &ours, later);
        assert_eq!(text(&same, "/1/lastTransitionTime"), "t1");
        assert_eq!(same[1]["observedGeneration"], 2);
        let failed = merged(Some(&same), &[Condition::is_false("Accepted", "Invalid", "why")], later);
        assert_eq!((text(&failed, "/1/status"), text(&failed, "/1/lastTransitionTime")), ("False", "t2"));
    }

    #[test]
    fn only_fields_that_differ_are_written() {
        let before = json!({"a": 1, "b": [1], "other": true});
        assert_eq!(difference(&before, json!({"a": 1, "b": [1]})), None);
        assert_eq!(difference(&before, json!({"a": 2, "b": [1]})), Some(json!({"a": 2})));
        assert_eq!(difference(&Value::Null, json!({"a": []})), Some(json!({"a": []})));
    }
}
