//! What to do about one pod, from what the API server says and what was done so far. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use isthmus_proto::enroll::Decision;

use crate::pod::Pod;

/// What was done for a pod so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Out,
    /// Its rules are in or may be, something after them is missing. Closed, not leaking.
    Partial,
    /// Everything.
    In,
}

/// The next step for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// All is as it should be.
    Nothing,
    /// Put it into the mesh.
    Enrol,
    /// Take it out of the mesh.
    Withdraw(Leaving),
    /// Its addresses changed.
    SyncProbes,
    /// It is out, but its annotation still says otherwise.
    ClearAnnotation,
}

/// Why a pod is taken out, which says what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It runs on, without the mesh: its rules must go.
    Live,
    /// It has ended; its namespace may be gone already.
    Ended,
    /// It is deleted; nothing is left that could carry an annotation.
    Deleted,
}

/// The next step for a pod. `pod` is `None` when it is deleted, `decision` when its namespace is not known.
#[must_use]
pub fn plan(pod: Option<&Pod>, decision: Option<Decision>, standing: Standing, held: &[IpAddr]) -> Plan {
    let Some(pod) = pod else {
        return if standing == Standing::Out { Plan::Nothing } else { Plan::Withdraw(Leaving::Deleted) };
    };
    if pod.terminated {
        return if standing == Standing::Out { Plan::Nothing } else { Plan::Withdraw(Leaving::Ended) };
    }
    match (decision, standing) {
        (None, _) => Plan::Nothing,
        (Some(Decision::Skip(_)), Standing::Out) if pod.redirection().is_some() => Plan::ClearAnnotation,
        (Some(Decision::Skip(_)), Standing::Out) => Plan::Nothing,
        (Some(Decision::Skip(_)), _) => Plan::Withdraw(Leaving::Live),
        // The address comes with a later update.
        (Some(Decision::Enrol), _) if pod.ips.is_empty() => Plan::Nothing,
        (Some(Decision::Enrol), Standing::In) => {
            let (now, then): (BTreeSet<_>, BTreeSet<_>) = (pod.ips.iter().collect(), held.iter().collect());
            if now == then { Plan::Nothing } else { Plan::SyncProbes }
        }
        (Some(Decision::Enrol), _) => Plan::Enrol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use isthmus_proto::enroll::{REDIRECTION, Reason};

    const ENROL: Option<Decision> = Some(Decision::Enrol);
    const SKIP: Option<Decision> = Some(Decision::Skip(Reason::NotSelected));

    #[test]
    fn row_by_row() {
        use Standing::{In, Out, Partial};
        let (with, without) = (pod("a", "10.0.0.5"), pod("a", ""));
        let ended = Pod { terminated: true, ..with.clone() };
        let mut annotated = with.clone();
        annotated.annotations.insert(REDIRECTION.to_owned(), "enabled".to_owned());
        let (same, other): (Vec<IpAddr>, Vec<IpAddr>) = (with.ips.clone(), vec!["10.0.0.6".parse().unwrap()]);
        let leave = Plan::Withdraw;
        let rows = [
            ("wanted and out", Some(&with), ENROL, Out, &same, Plan::Enrol),
            ("half way", Some(&with), ENROL, Partial, &same, Plan::Enrol),
            ("in", Some(&with), ENROL, In, &same, Plan::Nothing),
            ("in, other address", Some(&with), ENROL, In, &other, Plan::SyncProbes),
            ("no address yet", Some(&without), ENROL, Out, &same, Plan::Nothing),
            ("in by the plugin, API has no address yet", Some(&without), ENROL, In, &same, Plan::Nothing),
            ("namespace unknown", Some(&with), None, Out, &same, Plan::Nothing),
            ("namespace unknown, in", Some(&with), None, In, &same, Plan::Nothing),
            ("not wanted", Some(&with), SKIP, Out, &same, Plan::Nothing),
            ("not wanted, annotation left over", Some(&annotated), SKIP, Out, &same, Plan::ClearAnnotation),
            ("not wanted any more", Some(&with), SKIP, In, &same, leave(Leaving::Live)),
            ("not wanted any more, half way", Some(&with), SKIP, Partial, &same, leave(Leaving::Live)),
            ("ended", Some(&ended), ENROL, In, &same, leave(Leaving::Ended)),
            ("ended, never in", Some(&ended), ENROL, Out, &same, Plan::Nothing),
            ("deleted", None, None, In, &same, leave(Leaving::Deleted)),
            ("deleted half way", None, None, Partial, &same, leave(Leaving::Deleted)),
            ("deleted, never in", None, None, Out, &same, Plan::Nothing),
        ];
        for (what, pod, decision, standing, held, want) in rows {
            assert_eq!(plan(pod, decision, standing, held), want, "{what}");
        }
    }
}
