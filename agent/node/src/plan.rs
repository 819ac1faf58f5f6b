//! Decides the next step for one pod from its object in the API server and from what enrolment has done so far. Pure:
//! it must not know how a step is carried out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use isthmus_proto::enroll::Decision;

use crate::pod::Pod;

/// How far the enrolment of a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrolmentState {
    /// Nothing was done for the pod.
    NotEnrolled,
    /// Its packet rules are in place or may be, and a later step is missing. The pod fails closed: redirected traffic
    /// finds no agent, so nothing leaks as plaintext.
    Partial,
    /// Every step is done.
    Enrolled,
    /// It cannot be captured, runs out of the mesh by the setting, and is marked.
    Uncaptured,
}

/// The next step for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Desired and actual state agree.
    None,
    /// Enrol the pod in the mesh.
    Enrol,
    /// Withdraw the pod from the mesh.
    Withdraw(WithdrawReason),
    /// The pod is enrolled and its addresses have changed: update the probe sets.
    SyncProbes,
    /// The pod is not enrolled, but its annotation claims so.
    ClearAnnotation,
}

/// Why a pod is withdrawn, which decides what must be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithdrawReason {
    /// Its labels, or its namespace's, no longer select it. It runs on, so its rules must be removed.
    OptedOut,
    /// Its containers have ended for good; its network namespace may be gone.
    Terminated,
    /// The object is deleted, so there is no annotation to remove either.
    Deleted,
}

/// The next step for a pod. `pod` is `None` when it is deleted, `decision` when its Kubernetes namespace is not known
/// yet; `enrolled_ips` are the addresses that it was enrolled with.
#[must_use]
pub fn next_step(
    pod: Option<&Pod>,
    decision: Option<Decision>,
    state: EnrolmentState,
    enrolled_ips: &[IpAddr],
) -> Step {
    use EnrolmentState::{Enrolled, NotEnrolled};
    let withdraw = |reason| if state == NotEnrolled { Step::None } else { Step::Withdraw(reason) };
    let Some(pod) = pod else { return withdraw(WithdrawReason::Deleted) };
    if pod.terminated {
        return withdraw(WithdrawReason::Terminated);
    }
    match (decision, state) {
        (None, _) => Step::None,
        (Some(Decision::Skip(_)), NotEnrolled) if pod.redirection().is_some() => Step::ClearAnnotation,
        (Some(Decision::Skip(_)), _) => withdraw(WithdrawReason::OptedOut),
        // The kubelet reports the address in a later update.
        (Some(Decision::Enrol), _) if pod.ips.is_empty() => Step::None,
        (Some(Decision::Enrol), EnrolmentState::Uncaptured) => Step::None,
        (Some(Decision::Enrol), Enrolled) => {
            let (now, then): (BTreeSet<_>, BTreeSet<_>) =
                (pod.ips.iter().collect(), enrolled_ips.iter().collect());
            if now == then { Step::None } else { Step::SyncProbes }
        }
        (Some(Decision::Enrol), _) => Step::Enrol,
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
    fn the_next_step_follows_from_decision_and_state() {
        use EnrolmentState::{Enrolled, NotEnrolled, Partial};
        use WithdrawReason::{Deleted, OptedOut, Terminated};
        let (with, without) = (pod("a", "10.0.0.5"), pod("a", ""));
        let ended = Pod { terminated: true, ..with.clone() };
        let mut annotated = with.clone();
        annotated.annotations.insert(REDIRECTION.to_owned(), "enabled".to_owned());
        let (same, other): (Vec<IpAddr>, Vec<IpAddr>) = (with.ips.clone(), vec!["10.0.0.6".parse().unwrap()]);
        let withdraw = Step::Withdraw;
        let rows = [
            ("selected", Some(&with), ENROL, NotEnrolled, &same, Step::Enrol),
            ("selected, partial", Some(&with), ENROL, Partial, &same, Step::Enrol),
            ("enrolled", Some(&with), ENROL, Enrolled, &same, Step::None),
            ("enrolled, other address", Some(&with), ENROL, Enrolled, &other, Step::SyncProbes),
            ("no address yet", Some(&without), ENROL, NotEnrolled, &same, Step::None),
            ("enrolled by the plugin, no address yet", Some(&without), ENROL, Enrolled, &same, Step::None),
            ("marked as not captured", Some(&with), ENROL, EnrolmentState::Uncaptured, &same, Step::None),
            ("marked, opted out", Some(&with), SKIP, EnrolmentState::Uncaptured, &same, withdraw(OptedOut)),
            ("namespace unknown", Some(&with), None, NotEnrolled, &same, Step::None),
            ("namespace unknown, enrolled", Some(&with), None, Enrolled, &same, Step::None),
            ("not selected", Some(&with), SKIP, NotEnrolled, &same, Step::None),
            ("stale annotation", Some(&annotated), SKIP, NotEnrolled, &same, Step::ClearAnnotation),
            ("opted out", Some(&with), SKIP, Enrolled, &same, withdraw(OptedOut)),
            ("opted out, partial", Some(&with), SKIP, Partial, &same, withdraw(OptedOut)),
            ("terminated", Some(&ended), ENROL, Enrolled, &same, withdraw(Terminated)),
            ("terminated, never enrolled", Some(&ended), ENROL, NotEnrolled, &same, Step::None),
            ("deleted", None, None, Enrolled, &same, withdraw(Deleted)),
            ("deleted, partial", None, None, Partial, &same, withdraw(Deleted)),
            ("deleted, never enrolled", None, None, NotEnrolled, &same, Step::None),
        ];
        for (what, pod, decision, state, ips, want) in rows {
            assert_eq!(next_step(pod, decision, state, ips), want, "{what}");
        }
    }

    /// Random changes of a pod, and steps that fail: in the end state and annotation are as the pod wants it, and no step
    /// undoes another one for ever.
    #[test]
    fn random_events_end_in_the_desired_state() {
        isthmus_kit::random::sequences(500, |random| {
            let (mut state, mut ips) = (EnrolmentState::NotEnrolled, Vec::<IpAddr>::new());
            let (mut object, mut decision) = (Some(pod("a", "10.0.0.5")), ENROL);
            let mut rules = false;
            for round in 0..random.usize(2..60) {
                match (random.u8(..8), &mut object) {
                    (0, _) => decision = [None, ENROL, SKIP][random.usize(..3)],
                    (1, object) => *object = None,
                    (2, Some(pod)) => pod.terminated = true,
                    (3, Some(pod)) => pod.ips = vec![IpAddr::from([10, 0, 0, random.u8(..3)])],
                    (4, Some(pod)) => pod.ips.clear(),
                    (5, object) => *object = Some(pod("a", "10.0.0.6")),
                    _ => {}
                }
                // Steps until there is none, which some of them fail before.
                for number in 0.. {
                    assert!(number < 20, "steps without an end in round {round}");
                    let works = random.u8(..4) > 0;
                    match next_step(object.as_ref(), decision, state, &ips) {
                        Step::None => break,
                        Step::Enrol => {
                            (rules, state) = (true, EnrolmentState::Partial);
                            if let (true, Some(pod)) = (works, &mut object) {
                                state = EnrolmentState::Enrolled;
                                ips.clone_from(&pod.ips);
                                pod.annotations.insert(REDIRECTION.to_owned(), "enabled".to_owned());
                            }
                        }
                        Step::Withdraw(reason) => {
                            assert!(state != EnrolmentState::NotEnrolled);
                            assert_eq!(reason == WithdrawReason::Deleted, object.is_none());
                            state = EnrolmentState::Partial;
                            if works {
                                (rules, state) = (false, EnrolmentState::NotEnrolled);
                                if let Some(pod) = &mut object {
                                    pod.annotations.remove(REDIRECTION);
                                }
                            }
                        }
                        Step::SyncProbes if works => {
                            ips.clone_from(&object.as_ref().expect("a pod").ips);
                        }
                        Step::ClearAnnotation if works => {
                            object.as_mut().expect("a pod").annotations.remove(REDIRECTION);
                        }
                        Step::SyncProbes | Step::ClearAnnotation => {}
                    }
                }
                let lives = object.as_ref().is_some_and(|pod| !pod.terminated);
                match decision {
                    _ if !lives => assert!(!rules && state == EnrolmentState::NotEnrolled),
                    Some(Decision::Skip(_)) => {
                        assert!(!rules && object.as_ref().is_some_and(|pod| pod.redirection().is_none()));
                    }
                    Some(Decision::Enrol) if object.as_ref().is_some_and(|pod| !pod.ips.is_empty()) => {
                        assert!(rules && state == EnrolmentState::Enrolled);
                    }
                    _ => {}
                }
            }
        });
    }
}
