use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::{NamespacedHostname, Workload};

use super::*;

const GATEWAY: &str = "gw";

fn pick(role: Role, uid: &str, of: usize) -> Pick {
    let hostname = if role == Role::Endpoint { "web" } else { "istio" };
    Pick {
        role,
        service: Some(NamespacedHostname { namespace: "ns".into(), hostname: hostname.into() }),
        port: 80,
        workload: Arc::new(Workload { uid: uid.into(), ..Workload::default() }),
        of,
    }
}

fn alone(role: Role, uid: &str) -> Pick {
    Pick { service: None, ..pick(role, uid, 1) }
}

fn to() -> SocketAddr {
    "10.0.0.1:15008".parse().unwrap()
}

struct Run {
    experience: PodRetryState,
    tries: RetryState,
}

impl Run {
    fn new(retry: Retry) -> Self {
        let mut experience = PodRetryState::new(&retry, Instant::now());
        let tries = RetryState::begin(retry, &mut experience, Instant::now());
        Self { experience, tries }
    }

    fn again(&mut self) {
        let limits = self.tries.limits;
        self.tries = RetryState::begin(limits, &mut self.experience, Instant::now());
    }

    fn miss(&mut self, cause: Option<Cause>, depth: Hop, picks: &[Pick]) -> Result<(), GiveUpReason> {
        self.tries.next(Protection::Direct).unwrap();
        let missed = FailedAttempt { cause, depth, to: to(), picks };
        self.tries.missed(&missed, &mut self.experience, Instant::now()).0
    }

    fn is_out(&self, pick: &Pick) -> bool {
        let service = pick.service.clone().unwrap();
        self.experience.ejections.is_out(&service, pick.port, &pick.workload.uid, Instant::now())
    }

    fn tried(&self) -> (Vec<&str>, Vec<&str>) {
        (
            self.tries.tried.iter().map(WorkloadUid::as_str).collect(),
            self.tries.tried_stand_ins.iter().map(WorkloadUid::as_str).collect(),
        )
    }
}

/// Who is not chosen again, who not if there are others, and who is out for other connections.
#[tokio::test(start_paused = true)]
async fn the_one_that_did_it_is_to_blame() {
    use Cause::{GoAway, Refused, TlsTimeout, Unavailable};
    let endpoint = || vec![pick(Role::Endpoint, "a", 4)];
    let waypoint = || vec![pick(Role::Waypoint, "wp", 4)];
    let far = |gateways| vec![pick(Role::Endpoint, "far", 4), pick(Role::Gateway, GATEWAY, gateways)];
    type Case = (Cause, Hop, Vec<Pick>, &'static [&'static str], &'static [&'static str], Option<usize>);
    let table: [Case; 13] = [
        (Refused, Hop::Outer, endpoint(), &["a"], &[], Some(0)),
        (TlsTimeout, Hop::Outer, endpoint(), &["a"], &[], Some(0)),
        (GoAway, Hop::Outer, endpoint(), &["a"], &[], Some(0)),
        (Unavailable, Hop::Outer, endpoint(), &["a"], &[], Some(0)),
        (Refused, Hop::Outer, waypoint(), &["wp"], &[], Some(0)),
        (Unavailable, Hop::Outer, waypoint(), &["wp"], &[], None),
        (Refused, Hop::Outer, far(2), &[GATEWAY], &["far"], Some(1)),
        (Refused, Hop::Outer, far(1), &[GATEWAY], &["far"], Some(0)),
        (Unavailable, Hop::Outer, far(2), &[], &["far"], Some(0)),
        (Unavailable, Hop::Inner, far(2), &[], &["far"], None),
        (TlsTimeout, Hop::Inner, far(2), &[], &["far"], None),
        (Refused, Hop::Outer, vec![alone(Role::Endpoint, "a")], &["a"], &[], None),
        (Refused, Hop::Outer, vec![pick(Role::Endpoint, "a", 1)], &["a"], &[], None),
    ];
    for (cause, depth, picks, tried, stand_ins, out) in table {
        let mut run = Run::new(Retry::default());
        assert_eq!(run.miss(Some(cause), depth, &picks), Ok(()));
        assert_eq!(run.tried(), (tried.to_vec(), stand_ins.to_vec()), "{cause:?} {depth:?} {picks:?}");
        for (at, pick) in picks.iter().enumerate().filter(|(_, pick)| pick.service.is_some()) {
            assert_eq!(run.is_out(pick), out == Some(at), "{cause:?} {depth:?} {pick:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_far_end_decided_is_final_and_nobody_is_to_blame() {
    let mut run = Run::new(Retry::default());
    let picks = [pick(Role::Endpoint, "a", 4)];
    assert_eq!(run.miss(None, Hop::Outer, &picks), Err(GiveUpReason::NotRetryable));
    assert!(!run.is_out(&picks[0]));
    assert_eq!(run.tried(), (vec![], vec![]));
    assert_eq!(run.tries.story(), (1, ""));
}

#[tokio::test(start_paused = true)]
async fn tries_time_and_budget_are_limits() {
    let retry = Retry { tries: 3, window: Duration::from_secs(20), ..Retry::default() };
    let endpoint = |uid: u32| [pick(Role::Endpoint, &uid.to_string(), 100)];
    let refused = Some(Cause::Refused);
    let mut run = Run::new(retry);
    for uid in 0..2 {
        assert_eq!(run.miss(refused, Hop::Outer, &endpoint(uid)), Ok(()));
    }
    assert_eq!(run.miss(refused, Hop::Outer, &endpoint(2)), Err(GiveUpReason::RetryState));

    // A black hole takes 10 s: one is tried past, two are not.
    let mut run = Run::new(retry);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(run.miss(Some(Cause::ConnectTimeout), Hop::Outer, &endpoint(0)), Ok(()));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(run.miss(Some(Cause::ConnectTimeout), Hop::Outer, &endpoint(1)), Err(GiveUpReason::Time));

    let mut run = Run::new(Retry { reserve: 1, percent: 0, ..retry });
    let outcomes: Vec<_> = (0..12)
        .map(|uid| {
            run.again();
            run.miss(refused, Hop::Outer, &endpoint(uid))
        })
        .collect();
    assert!(outcomes[..10].iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(outcomes[10..], [Err(GiveUpReason::Budget); 2]);
    tokio::time::advance(Duration::from_secs(1)).await;
    run.again();
    assert_eq!(run.miss(refused, Hop::Outer, &endpoint(20)), Ok(()));

    let mut run = Run::new(Retry { tries: 1, ..retry });
    assert_eq!(run.miss(refused, Hop::Outer, &endpoint(0)), Err(GiveUpReason::RetryState));
    // A destination out of the mesh is the only one of its kind.
    let mut run = Run::new(retry);
    assert_eq!(run.miss(refused, Hop::Outer, &[]), Err(GiveUpReason::NobodyElse));
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_never_less_protected_than_the_first_try() {
    use Protection::{Direct, Plain, Waypoint};
    let table = [
        (Plain, Plain, true),
        (Plain, Direct, true),
        (Plain, Waypoint, true),
        (Direct, Plain, false),
        (Direct, Direct, true),
        (Direct, Waypoint, true),
        (Waypoint, Plain, false),
        (Waypoint, Direct, false),
        (Waypoint, Waypoint, true),
    ];
    for (first, next, may) in table {
        let mut run = Run::new(Retry::default());
        assert!(!run.tries.must_be_tunnelled());
        assert_eq!(run.tries.next(first), Ok(()));
        assert_eq!(run.tries.must_be_tunnelled(), first != Plain);
        assert_eq!(
            run.tries.next(next),
            if may { Ok(()) } else { Err(GiveUpReason::Weaker) },
            "{first:?} {next:?}"
        );
        // Nor does a better one in between lower the bar.
        assert_eq!(run.tries.next(first), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_story_says_who_refused_why_and_who_is_out() {
    let mut run = Run::new(Retry::default());
    let far = [pick(Role::Endpoint, "far", 1), pick(Role::Gateway, GATEWAY, 2)];
    assert_eq!(run.miss(Some(Cause::Refused), Hop::Outer, &[pick(Role::Endpoint, "a", 2)]), Ok(()));
    assert_eq!(run.miss(Some(Cause::TlsTimeout), Hop::Outer, &far), Ok(()));
    let last = run.miss(Some(Cause::Unavailable), Hop::Outer, &[pick(Role::Endpoint, "b", 2)]);
    assert_eq!(last, Err(GiveUpReason::RetryState));
    let want = "10.0.0.1:15008 refused, endpoint a ejected for 1s; \
                10.0.0.1:15008 tls timeout, gateway gw ejected for 1s; \
                10.0.0.1:15008 status 503, endpoint b not ejected: half of 2 at most";
    assert_eq!(run.tries.story(), (3, want));
}

#[tokio::test(start_paused = true)]
async fn who_is_reached_again_is_forgiven() {
    let mut run = Run::new(Retry::default());
    let picks = [pick(Role::Endpoint, "a", 2)];
    let _ = run.miss(Some(Cause::Refused), Hop::Outer, &picks);
    assert!(run.is_out(&picks[0]));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!run.is_out(&picks[0]));
    run.tries.reached(&picks, &mut run.experience, Instant::now());
    assert!(run.experience.ejections.is_empty());
}
