//! Who refused lately and is not chosen for a while. Pure: time is an argument.
//!
//! An endpoint is out of one port of one service, so that a port that nobody listens on harms no other. Each time it
//! refuses again it is out for longer. At most half of those that a choice is made from are out at once: what is wrong
//! with more of them is not theirs, and the only one there is, is never out. Kept by pod: what one pod cannot reach,
//! by a network policy or its own doing, another may.

use std::collections::HashMap;
use std::time::Duration;

use isthmus_model::{NamespacedHostname, WorkloadUid};
use tokio::time::Instant;

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EjectionConfig {
    /// The first time; each further time twice as long.
    pub(crate) first: Duration,
    /// But no longer than this. As long after its end, it is forgotten.
    pub(crate) longest: Duration,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) service: NamespacedHostname,
    pub(crate) port: u16,
}

/// What became of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Out for so long.
    Out(Duration),
    /// It was out already: others found the same at the same time.
    Already,
    /// Half of them are out.
    Limit,
}

/// Everybody who is out, or was.
#[derive(Debug)]
pub(crate) struct Ejections {
    terms: EjectionConfig,
    groups: HashMap<Group, HashMap<WorkloadUid, Entry>>,
    /// When it was last looked for what can be forgotten.
    swept: Instant,
}

#[derive(Debug)]
struct Entry {
    until: Instant,
    strikes: u32,
}

impl Ejections {
    pub(crate) fn new(terms: EjectionConfig, now: Instant) -> Self {
        Self { terms, groups: HashMap::new(), swept: now }
    }

    /// Whether nobody is out, nor was.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether it is out now.
    pub(crate) fn is_out(
        &self,
        service: &NamespacedHostname,
        port: u16,
        uid: &WorkloadUid,
        now: Instant,
    ) -> bool {
        // Names are shared: this allocates nothing.
        let group = self.groups.get(&Group { service: service.clone(), port });
        group.and_then(|group| group.get(uid)).is_some_and(|entry| entry.until > now)
    }

    /// It refused; it was chosen from `of`.
    pub(crate) fn refused(&mut self, group: &Group, uid: &WorkloadUid, of: usize, now: Instant) -> Verdict {
        self.sweep(now);
        let held = self.groups.get(group);
        let out = held.map_or(0, |held| held.values().filter(|entry| entry.until > now).count());
        let before = held.and_then(|held| held.get(uid));
        if before.is_some_and(|entry| entry.until > now) {
            return Verdict::Already;
        }
        if out + 1 > of / 2 {
            return Verdict::Limit;
        }
        let strikes = before.map_or(0, |entry| entry.strikes);
        let time = self.terms.first.saturating_mul(1 << strikes.min(20)).min(self.terms.longest);
        let entry = Entry { until: now + time, strikes: strikes.saturating_add(1) };
        self.groups.entry(group.clone()).or_default().insert(uid.clone(), entry);
        Verdict::Out(time)
    }

    /// It was reached: one refusal is made up for. Whoever is out stays out for its time.
    pub(crate) fn reached(&mut self, group: &Group, uid: &WorkloadUid, now: Instant) {
        let Some(held) = self.groups.get_mut(group) else { return };
        let Some(entry) = held.get_mut(uid).filter(|entry| entry.until <= now) else { return };
        entry.strikes = entry.strikes.saturating_sub(1);
        if entry.strikes == 0 {
            held.remove(uid);
        }
        if held.is_empty() {
            self.groups.remove(group);
        }
    }

    /// Forgets what is long past.
    fn sweep(&mut self, now: Instant) {
        let longest = self.terms.longest;
        if now.duration_since(self.swept) < longest {
            return;
        }
        self.swept = now;
        self.groups.retain(|_, held| {
            held.retain(|_, entry| entry.until + longest > now);
            !held.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: EjectionConfig =
        EjectionConfig { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

    fn group(port: u16) -> Group {
        Group { service: NamespacedHostname { namespace: "ns".into(), hostname: "web".into() }, port }
    }

    fn is_out(ejections: &Ejections, port: u16, uid: &str, now: Instant) -> bool {
        ejections.is_out(&group(port).service, port, &uid.into(), now)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn who_refuses_again_is_out_for_longer_and_who_is_reached_for_less() {
        let mut ejections = Ejections::new(TERMS, Instant::now());
        let (group, uid) = (group(80), "a".into());
        for time in [1, 2, 4, 8, 16, 32, 60, 60] {
            let now = Instant::now();
            assert_eq!(ejections.refused(&group, &uid, 2, now), Verdict::Out(seconds(time)));
            // Those that failed at the same time do not make it worse, nor do those that were on the way make it good.
            assert_eq!(ejections.refused(&group, &uid, 2, now), Verdict::Already);
            ejections.reached(&group, &uid, now);
            assert!(is_out(&ejections, 80, "a", now));
            tokio::time::advance(seconds(time) - Duration::from_millis(1)).await;
            assert!(is_out(&ejections, 80, "a", Instant::now()));
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!is_out(&ejections, 80, "a", Instant::now()));
        }
        for _ in 0..5 {
            ejections.reached(&group, &uid, Instant::now());
        }
        assert_eq!(ejections.refused(&group, &uid, 2, Instant::now()), Verdict::Out(seconds(8)));
        tokio::time::advance(seconds(9)).await;
        for _ in 0..4 {
            ejections.reached(&group, &uid, Instant::now());
        }
        assert!(ejections.is_empty(), "{ejections:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_half_are_out() {
        let now = Instant::now();
        // Of so many, so many.
        for (of, limit) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)] {
            let mut ejections = Ejections::new(TERMS, now);
            let verdicts: Vec<_> = (0..of)
                .map(|uid| ejections.refused(&group(80), &uid.to_string().as_str().into(), of, now))
                .collect();
            let out = verdicts.iter().filter(|verdict| **verdict == Verdict::Out(seconds(1))).count();
            assert_eq!(out, limit, "of {of}: {verdicts:?}");
            assert!(verdicts[limit..].iter().all(|verdict| *verdict == Verdict::Limit), "{verdicts:?}");
        }
        // When the first is back the next may be out.
        let mut ejections = Ejections::new(TERMS, now);
        assert_eq!(ejections.refused(&group(80), &"a".into(), 2, now), Verdict::Out(seconds(1)));
        tokio::time::advance(seconds(1)).await;
        assert_eq!(ejections.refused(&group(80), &"b".into(), 2, Instant::now()), Verdict::Out(seconds(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_port_of_one_service_says_nothing_of_others() {
        let now = Instant::now();
        let mut ejections = Ejections::new(TERMS, now);
        ejections.refused(&group(80), &"a".into(), 2, now);
        assert!(is_out(&ejections, 80, "a", now));
        assert!(!is_out(&ejections, 81, "a", now) && !is_out(&ejections, 80, "b", now));
        let other = NamespacedHostname { namespace: "ns".into(), hostname: "other".into() };
        assert!(!ejections.is_out(&other, 80, &"a".into(), now));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_past_is_forgotten() {
        let mut ejections = Ejections::new(TERMS, Instant::now());
        for uid in 0..100 {
            ejections.refused(&group(uid), &"a".into(), 2, Instant::now());
        }
        tokio::time::advance(seconds(62)).await;
        assert_eq!(ejections.refused(&group(7), &"a".into(), 2, Instant::now()), Verdict::Out(seconds(1)));
        assert_eq!(ejections.groups.len(), 1);
    }
}
