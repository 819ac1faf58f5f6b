use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::{NamespacedHostname, Workload};
use isthmus_state::HostAddress;

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
        host: None,
    }
}

fn alone(role: Role, uid: &str) -> Pick {
    Pick { service: None, ..pick(role, uid, 1) }
}

fn to() -> SocketAddr {
    "10.0.0.1:15008".parse().unwrap()
}

fn picks(chosen: &[Pick]) -> Picks<'_> {
    match chosen {
        [] => Picks::None,
        [peer] => Picks::Peer(peer),
        [remote, gateway, ..] => Picks::ThroughGateway { remote, gateway },
    }
}

struct TestConnection {
    pod: PodRetryState,
    retry: RetryState,
}

impl TestConnection {
    fn new(config: Retry) -> Self {
        let mut pod = PodRetryState::new(&config, Instant::now());
        let retry = RetryState::start(config, &mut pod, Instant::now());
        Self { pod, retry }
    }

    /// Another connection of the same pod.
    fn next(&mut self) {
        self.retry = RetryState::start(self.retry.config, &mut self.pod, Instant::now());
    }

    fn fail(&mut self, cause: Option<Cause>, hop: Hop, chosen: &[Pick]) -> Result<(), GiveUpReason> {
        self.retry.start_attempt(Protection::Direct);
        let failed = FailedAttempt { cause, hop, to: to(), picks: picks(chosen) };
        self.retry.record_failure(&failed, &mut self.pod, Instant::now()).retry
    }

    fn is_ejected(&self, pick: &Pick) -> bool {
        let ejected = self.pod.ejections.snapshot().unwrap_or_default();
        let group = ejected.get(&pick.group().unwrap());
        let ejection = group.and_then(|endpoints| endpoints.get(&pick.endpoint()));
        ejection.is_some_and(|ejection| ejection.until > Instant::now())
    }

    fn tried(&self) -> (Vec<&str>, Vec<&str>) {
        let Avoid { tried, tried_remote, .. } = self.retry.avoid(None);
        (
            tried.iter().map(WorkloadUid::as_str).collect(),
            tried_remote.iter().map(WorkloadUid::as_str).collect(),
        )
    }
}

/// Which workload is not chosen again, which one only when nothing else is left, and which one is ejected.
#[tokio::test(start_paused = true)]
async fn the_workload_at_fault_is_avoided_and_ejected() {
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
    for (cause, depth, picks, tried, tried_remote, out) in table {
        let mut connection = TestConnection::new(Retry::default());
        assert_eq!(connection.fail(Some(cause), depth, &picks), Ok(()));
        assert_eq!(
            connection.tried(),
            (tried.to_vec(), tried_remote.to_vec()),
            "{cause:?} {depth:?} {picks:?}"
        );
        for (at, pick) in picks.iter().enumerate().filter(|(_, pick)| pick.service.is_some()) {
            assert_eq!(connection.is_ejected(pick), out == Some(at), "{cause:?} {depth:?} {pick:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_the_peer_decided_is_not_retried_and_ejects_nothing() {
    let mut connection = TestConnection::new(Retry::default());
    let picks = [pick(Role::Endpoint, "a", 4)];
    assert_eq!(connection.fail(None, Hop::Outer, &picks), Err(GiveUpReason::NotRetryable));
    assert!(!connection.is_ejected(&picks[0]));
    assert_eq!(connection.tried(), (vec![], vec![]));
    assert_eq!(connection.retry.summary(), (1, ""));
}

#[tokio::test(start_paused = true)]
async fn attempts_time_and_budget_limit_retries() {
    let retry = Retry { tries: 3, window: Duration::from_secs(20), ..Retry::default() };
    let endpoint = |uid: u32| [pick(Role::Endpoint, &uid.to_string(), 100)];
    let refused = Some(Cause::Refused);
    let mut connection = TestConnection::new(retry);
    for uid in 0..2 {
        assert_eq!(connection.fail(refused, Hop::Outer, &endpoint(uid)), Ok(()));
    }
    assert_eq!(connection.fail(refused, Hop::Outer, &endpoint(2)), Err(GiveUpReason::AttemptsExhausted));

    // A black hole takes 10 s: after one there is a retry, after two there is none.
    let mut connection = TestConnection::new(retry);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(connection.fail(Some(Cause::ConnectTimeout), Hop::Outer, &endpoint(0)), Ok(()));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(
        connection.fail(Some(Cause::ConnectTimeout), Hop::Outer, &endpoint(1)),
        Err(GiveUpReason::OutOfTime)
    );

    let mut connection = TestConnection::new(Retry { reserve: 1, percent: 0, ..retry });
    let outcomes: Vec<_> = (0..12)
        .map(|uid| {
            connection.next();
            connection.fail(refused, Hop::Outer, &endpoint(uid))
        })
        .collect();
    assert!(outcomes[..10].iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(outcomes[10..], [Err(GiveUpReason::BudgetExhausted); 2]);
    tokio::time::advance(Duration::from_secs(1)).await;
    connection.next();
    assert_eq!(connection.fail(refused, Hop::Outer, &endpoint(20)), Ok(()));

    let mut connection = TestConnection::new(Retry { tries: 1, ..retry });
    assert_eq!(connection.fail(refused, Hop::Outer, &endpoint(0)), Err(GiveUpReason::AttemptsExhausted));
    // A destination outside the mesh has no other endpoint.
    let mut connection = TestConnection::new(retry);
    assert_eq!(connection.fail(refused, Hop::Outer, &[]), Err(GiveUpReason::NoOtherEndpoint));
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_never_less_protected_than_the_first_attempt() {
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
        let mut connection = TestConnection::new(Retry::default());
        let tunnelled_only = |retry: &RetryState| retry.avoid(None).tunnelled_only;
        assert!(!tunnelled_only(&connection.retry) && connection.retry.allows(first));
        connection.retry.start_attempt(first);
        assert_eq!(tunnelled_only(&connection.retry), first != Plain);
        assert_eq!(connection.retry.allows(next), may, "{first:?} {next:?}");
        // The first attempt sets the bar, not a better protected one in between.
        if may {
            connection.retry.start_attempt(next);
        }
        assert!(connection.retry.allows(first));
    }
}

#[tokio::test(start_paused = true)]
async fn the_summary_names_peers_causes_and_ejections() {
    let mut connection = TestConnection::new(Retry::default());
    let far = [pick(Role::Endpoint, "far", 1), pick(Role::Gateway, GATEWAY, 2)];
    assert_eq!(connection.fail(Some(Cause::Refused), Hop::Outer, &[pick(Role::Endpoint, "a", 2)]), Ok(()));
    assert_eq!(connection.fail(Some(Cause::TlsTimeout), Hop::Outer, &far), Ok(()));
    let last = connection.fail(Some(Cause::Unavailable), Hop::Outer, &[pick(Role::Endpoint, "b", 2)]);
    assert_eq!(last, Err(GiveUpReason::AttemptsExhausted));
    let want = "10.0.0.1:15008 refused, endpoint a ejected for 1s; \
                10.0.0.1:15008 tls timeout, gateway gw ejected for 1s; \
                10.0.0.1:15008 status 503, endpoint b not ejected: half of 2 at most";
    assert_eq!(connection.retry.summary(), (3, want));
}

#[tokio::test(start_paused = true)]
async fn success_after_an_ejection_forgets_it() {
    let mut connection = TestConnection::new(Retry::default());
    let chosen = [pick(Role::Endpoint, "a", 2)];
    let _ = connection.fail(Some(Cause::Refused), Hop::Outer, &chosen);
    assert!(connection.is_ejected(&chosen[0]));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!connection.is_ejected(&chosen[0]));
    RetryState::record_success(picks(&chosen), &mut connection.pod, Instant::now());
    assert!(connection.pod.ejections.snapshot().is_none());
}

#[tokio::test(start_paused = true)]
async fn each_address_of_a_hostname_is_tried_and_blamed_by_itself() {
    let mut connection = TestConnection::new(Retry::default());
    let at = |last, untried| {
        let host = HostAddress { address: [192, 0, 2, last].into(), of: 2, untried };
        Pick { host: Some(host), ..pick(Role::Endpoint, "db", 2) }
    };
    assert_eq!(connection.fail(Some(Cause::Refused), Hop::Outer, &[at(1, 1)]), Ok(()));
    assert!(connection.tried().0.is_empty(), "it has another address");
    assert!(connection.is_ejected(&at(1, 1)) && !connection.is_ejected(&at(2, 0)));
    assert_eq!(connection.fail(Some(Cause::Refused), Hop::Outer, &[at(2, 0)]), Ok(()));
    assert_eq!(connection.tried().0, ["db"]);
    assert!(!connection.is_ejected(&at(2, 0)), "half of them at most");
    // The only address is the workload.
    let alone = Pick {
        host: Some(HostAddress { address: [192, 0, 2, 1].into(), of: 1, untried: 0 }),
        ..pick(Role::Endpoint, "alone", 2)
    };
    assert_eq!(alone.endpoint().address, None);
}
