//! Outlier ejection: an endpoint that failed is not chosen for a while. Pure: time is an argument.
//!
//! Ejections count per endpoint group, that is per port of a service, so that a port on which nothing listens does not
//! harm the others. The time doubles with each ejection in a row. At most half of a group's endpoints are ejected at
//! once: when more of them fail, the cause is not theirs; so the only endpoint of a service is never ejected. Kept per
//! pod: what one pod cannot reach, because of a network policy or its own doing, another one may.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_state::{EjectedEndpoints, Ejection, EndpointGroup, EndpointId};
use tokio::time::Instant;

/// For how long endpoints are ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EjectionConfig {
    /// The first time; each further time twice as long.
    pub(crate) first: Duration,
    /// The longest time. When as much has passed since its end, an ejection is forgotten.
    pub(crate) longest: Duration,
}

/// What a failure led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EjectionOutcome {
    /// The endpoint is ejected for this long.
    Ejected(Duration),
    /// It was ejected already: concurrent connections found the same failure.
    AlreadyEjected,
    /// Half of the group is ejected.
    AtLimit,
}

/// The ejections of one pod, over or not.
#[derive(Debug)]
pub(crate) struct Ejections {
    config: EjectionConfig,
    /// Shared with the decisions that are being made. They are over within microseconds, so a change rarely has to copy
    /// it.
    groups: Arc<EjectedEndpoints>,
    /// When forgotten entries were last removed.
    swept: Instant,
}

impl Ejections {
    pub(crate) fn new(config: EjectionConfig, now: Instant) -> Self {
        Self { config, groups: Arc::default(), swept: now }
    }

    /// The ejections for a decision that is made outside the pod's lock; `None` when there are none.
    pub(crate) fn snapshot(&self) -> Option<Arc<EjectedEndpoints>> {
        (!self.groups.is_empty()).then(|| Arc::clone(&self.groups))
    }

    fn get(&self, group: &EndpointGroup, endpoint: &EndpointId) -> Option<Ejection> {
        self.groups.get(group)?.get(endpoint).copied()
    }

    /// The endpoint failed; it was one of `of`.
    pub(crate) fn record_failure(
        &mut self,
        group: &EndpointGroup,
        endpoint: &EndpointId,
        of: usize,
        now: Instant,
    ) -> EjectionOutcome {
        self.sweep(now);
        let before = self.get(group, endpoint);
        if before.is_some_and(|ejection| ejection.until > now) {
            return EjectionOutcome::AlreadyEjected;
        }
        let ejected = self.groups.get(group).map_or(0, |group| {
            let ejected = group.values().filter(|ejection| ejection.until > now);
            ejected.count()
        });
        if ejected + 1 > of / 2 {
            return EjectionOutcome::AtLimit;
        }
        let strikes = before.map_or(0, |ejection| ejection.strikes);
        let time = self.config.first.saturating_mul(1 << strikes.min(20)).min(self.config.longest);
        let ejection = Ejection { until: now + time, strikes: strikes.saturating_add(1) };
        let groups = Arc::make_mut(&mut self.groups);
        groups.entry(group.clone()).or_default().insert(endpoint.clone(), ejection);
        EjectionOutcome::Ejected(time)
    }

    /// The endpoint was connected to: one strike is taken back. An ejection that is not over stays.
    pub(crate) fn record_success(&mut self, group: &EndpointGroup, endpoint: &EndpointId, now: Instant) {
        // Looked up first: nearly all endpoints have no entry, and nothing is to be copied for them.
        if self.get(group, endpoint).is_none_or(|ejection| ejection.until > now) {
            return;
        }
        let groups = Arc::make_mut(&mut self.groups);
        let Some(endpoints) = groups.get_mut(group) else { return };
        let Some(ejection) = endpoints.get_mut(endpoint) else { return };
        ejection.strikes = ejection.strikes.saturating_sub(1);
        if ejection.strikes == 0 {
            endpoints.remove(endpoint);
        }
        if endpoints.is_empty() {
            groups.remove(group);
        }
    }

    /// What is not forgotten yet: whom, for how much longer, and how often in a row.
    pub(super) fn parts(&self, now: Instant) -> Vec<(EndpointGroup, EndpointId, Duration, u32)> {
        let of = |(group, endpoints): (&EndpointGroup, &HashMap<EndpointId, Ejection>)| {
            let part = |(endpoint, ejection): (&EndpointId, &Ejection)| {
                let left = ejection.until.saturating_duration_since(now);
                (group.clone(), endpoint.clone(), left, ejection.strikes)
            };
            endpoints.iter().map(part).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// Adds what another process has learnt of an endpoint, unless this one knows it.
    pub(super) fn merge(
        &mut self,
        group: EndpointGroup,
        endpoint: EndpointId,
        left: Duration,
        strikes: u32,
        now: Instant,
    ) {
        let ejection = Ejection { until: now + left.min(self.config.longest), strikes };
        let groups = Arc::make_mut(&mut self.groups);
        groups.entry(group).or_default().entry(endpoint).or_insert(ejection);
    }

    /// Forgets ejections that ended long ago.
    fn sweep(&mut self, now: Instant) {
        let longest = self.config.longest;
        if now.duration_since(self.swept) < longest {
            return;
        }
        self.swept = now;
        Arc::make_mut(&mut self.groups).retain(|_, endpoints| {
            endpoints.retain(|_, ejection| ejection.until + longest > now);
            !endpoints.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::NamespacedHostname;

    use super::*;

    const CONFIG: EjectionConfig =
        EjectionConfig { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

    fn group(port: u16) -> EndpointGroup {
        EndpointGroup { service: NamespacedHostname { namespace: "ns".into(), hostname: "web".into() }, port }
    }

    fn endpoint(uid: &str) -> EndpointId {
        EndpointId { workload: uid.into(), address: None }
    }

    fn is_ejected(ejections: &Ejections, port: u16, uid: &str, now: Instant) -> bool {
        ejections.get(&group(port), &endpoint(uid)).is_some_and(|ejection| ejection.until > now)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn ejection_time_doubles_and_success_decays_it() {
        let mut ejections = Ejections::new(CONFIG, Instant::now());
        let (group, uid) = (group(80), endpoint("a"));
        for time in [1, 2, 4, 8, 16, 32, 60, 60] {
            let now = Instant::now();
            assert_eq!(
                ejections.record_failure(&group, &uid, 2, now),
                EjectionOutcome::Ejected(seconds(time))
            );
            // Concurrent failures do not prolong it, and concurrent successes do not end it.
            assert_eq!(ejections.record_failure(&group, &uid, 2, now), EjectionOutcome::AlreadyEjected);
            ejections.record_success(&group, &uid, now);
            assert!(is_ejected(&ejections, 80, "a", now));
            tokio::time::advance(seconds(time) - Duration::from_millis(1)).await;
            assert!(is_ejected(&ejections, 80, "a", Instant::now()));
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!is_ejected(&ejections, 80, "a", Instant::now()));
        }
        for _ in 0..5 {
            ejections.record_success(&group, &uid, Instant::now());
        }
        assert_eq!(
            ejections.record_failure(&group, &uid, 2, Instant::now()),
            EjectionOutcome::Ejected(seconds(8))
        );
        tokio::time::advance(seconds(9)).await;
        for _ in 0..4 {
            ejections.record_success(&group, &uid, Instant::now());
        }
        assert!(ejections.snapshot().is_none(), "{ejections:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_half_of_a_group_is_ejected() {
        let now = Instant::now();
        // (endpoints, most that are ejected)
        for (of, limit) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)] {
            let mut ejections = Ejections::new(CONFIG, now);
            let outcomes: Vec<_> = (0..of)
                .map(|uid| ejections.record_failure(&group(80), &endpoint(&uid.to_string()), of, now))
                .collect();
            let out =
                outcomes.iter().filter(|outcome| **outcome == EjectionOutcome::Ejected(seconds(1))).count();
            assert_eq!(out, limit, "of {of}: {outcomes:?}");
            assert!(
                outcomes[limit..].iter().all(|outcome| *outcome == EjectionOutcome::AtLimit),
                "{outcomes:?}"
            );
        }
        // Once the first ejection is over, another endpoint may be ejected.
        let mut ejections = Ejections::new(CONFIG, now);
        assert_eq!(
            ejections.record_failure(&group(80), &endpoint("a"), 2, now),
            EjectionOutcome::Ejected(seconds(1))
        );
        tokio::time::advance(seconds(1)).await;
        assert_eq!(
            ejections.record_failure(&group(80), &endpoint("b"), 2, Instant::now()),
            EjectionOutcome::Ejected(seconds(1))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejection_counts_for_one_port_of_one_service() {
        let now = Instant::now();
        let mut ejections = Ejections::new(CONFIG, now);
        ejections.record_failure(&group(80), &endpoint("a"), 2, now);
        assert!(is_ejected(&ejections, 80, "a", now));
        assert!(!is_ejected(&ejections, 81, "a", now) && !is_ejected(&ejections, 80, "b", now));
        let other = NamespacedHostname { namespace: "ns".into(), hostname: "other".into() };
        assert_eq!(ejections.get(&EndpointGroup { service: other, port: 80 }, &endpoint("a")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn random_outcomes_eject_no_more_than_half_and_nothing_for_ever() {
        isthmus_kit::random::sequences(300, |random| {
            let mut now = Instant::now();
            let (mut ejections, of) = (Ejections::new(CONFIG, now), random.usize(1..9));
            for _ in 0..random.usize(1..300) {
                let (port, uid) = (random.u16(..2), random.usize(..of).to_string());
                match random.u8(..8) {
                    0..4 => {
                        let before = is_ejected(&ejections, port, &uid, now);
                        match ejections.record_failure(&group(port), &endpoint(&uid), of, now) {
                            EjectionOutcome::Ejected(time) => {
                                assert!(!before && time >= CONFIG.first && time <= CONFIG.longest);
                                assert!(is_ejected(&ejections, port, &uid, now));
                            }
                            EjectionOutcome::AlreadyEjected => assert!(before),
                            EjectionOutcome::AtLimit => assert!(!before),
                        }
                    }
                    4..6 => {
                        let before = is_ejected(&ejections, port, &uid, now);
                        ejections.record_success(&group(port), &endpoint(&uid), now);
                        assert_eq!(is_ejected(&ejections, port, &uid, now), before);
                    }
                    _ => now += Duration::from_millis(random.u64(..20_000)),
                }
                let out = (0..of).filter(|uid| is_ejected(&ejections, port, &uid.to_string(), now)).count();
                assert!(out <= of / 2, "{out} of {of}");
                let all = ejections.groups.values().flat_map(HashMap::values);
                assert!(all.into_iter().all(|ejection| ejection.until <= now + CONFIG.longest));
            }
            now += CONFIG.longest * 3;
            ejections.record_failure(&group(9), &endpoint("a"), 2, now);
            assert_eq!(ejections.groups.len(), 1, "old entries are kept");
        });
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_that_ended_long_ago_are_forgotten() {
        let mut ejections = Ejections::new(CONFIG, Instant::now());
        for uid in 0..100 {
            ejections.record_failure(&group(uid), &endpoint("a"), 2, Instant::now());
        }
        tokio::time::advance(seconds(62)).await;
        assert_eq!(
            ejections.record_failure(&group(7), &endpoint("a"), 2, Instant::now()),
            EjectionOutcome::Ejected(seconds(1))
        );
        assert_eq!(ejections.groups.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_keeps_its_ejections_while_the_pods_change() {
        let now = Instant::now();
        let mut ejections = Ejections::new(CONFIG, now);
        assert!(ejections.snapshot().is_none());
        ejections.record_failure(&group(80), &endpoint("a"), 4, now);
        let snapshot = ejections.snapshot().unwrap();
        ejections.record_failure(&group(80), &endpoint("b"), 4, now);
        assert_eq!((snapshot[&group(80)].len(), ejections.groups[&group(80)].len()), (1, 2));
    }
    #[tokio::test(start_paused = true)]
    async fn each_address_of_a_hostname_is_ejected_by_itself() {
        let now = Instant::now();
        let mut ejections = Ejections::new(CONFIG, now);
        let at = |last| EndpointId { address: Some([192, 0, 2, last].into()), ..endpoint("a") };
        assert_eq!(
            ejections.record_failure(&group(80), &at(1), 2, now),
            EjectionOutcome::Ejected(seconds(1))
        );
        assert_eq!(ejections.record_failure(&group(80), &at(2), 2, now), EjectionOutcome::AtLimit);
        assert!(!is_ejected(&ejections, 80, "a", now), "the workload itself is not");
    }
}
