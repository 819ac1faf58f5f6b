use std::time::{Duration, UNIX_EPOCH};

use isthmus_kit::logs::LogCapture;
use isthmus_kit::pki::{Ca, Spec};
use tokio::time::Instant;
use tracing::Level;

use super::*;
use crate::fake::FakeSigner;
use crate::metrics::Metrics;
use crate::schedule::Limits;
use crate::source::SignError;
use crate::trust::Trust;

/// A request that arrived at the CA; the test answers it.
struct PendingRequest {
    id: SpiffeId,
    csr: String,
    ttl: Duration,
    answer: oneshot::Sender<Result<Vec<String>, SignError>>,
}

/// A CA whose every answer is the test's.
struct ScriptedCa(mpsc::UnboundedSender<PendingRequest>);

impl Signer for ScriptedCa {
    fn sign(
        &self,
        id: &SpiffeId,
        csr: String,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(PendingRequest { id: id.clone(), csr, ttl, answer });
        Box::pin(async move { answered.await.expect("the script answers or keeps the request") })
    }
}

struct TestManager {
    manager: Manager,
    asked: mpsc::UnboundedReceiver<PendingRequest>,
    fake: FakeSigner,
    clock: Clock,
    tasks: Tasks,
}

const TTL: Duration = Duration::from_secs(3600);

fn test() -> TestManager {
    let start = Instant::now();
    let clock: Clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + start.elapsed());
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let limits = Limits { jitter: 0.0, ..Limits::default() };
    let config = Config { ttl: TTL, limits, clock: Arc::clone(&clock), ..Config::default() };
    let manager = Manager::new(Arc::new(ScriptedCa(calls)), config, &tasks);
    TestManager { manager, asked, fake: FakeSigner::with_clock(Arc::clone(&clock)), clock, tasks }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/n/sa/{name}").parse().unwrap()
}

fn refused() -> SignError {
    SignError::Refused { code: "PermissionDenied".to_owned(), message: "not yours".to_owned() }
}

impl TestManager {
    /// The next request, or `None` when there is none for `within` of the paused clock.
    async fn next_within(&mut self, within: Duration) -> Option<PendingRequest> {
        tokio::time::timeout(within, self.asked.recv()).await.ok().flatten()
    }

    async fn next(&mut self) -> PendingRequest {
        self.next_within(Duration::from_secs(1)).await.expect("a request")
    }

    async fn sign(&self, asked: PendingRequest) {
        let chain = self.fake.sign(&asked.id, asked.csr, asked.ttl).await;
        asked.answer.send(chain).expect("the manager waits");
    }

    fn states(&self) -> Vec<String> {
        self.manager.snapshot().iter().map(|entry| entry.state.to_string()).collect()
    }

    /// Lets everything run that can run without time passing.
    async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
}

/// Polls a future once; it must not be ready.
macro_rules! pending {
    ($future:expr) => {
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready($future.as_mut().poll(cx).is_pending())).await
        )
    };
}

#[tokio::test(start_paused = true)]
async fn first_reader_waits_and_later_readers_get_the_published_certificate() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut first = manager.certificate(&id("a"));
    pending!(first);
    let asked = test.next().await;
    assert_eq!((asked.id.clone(), asked.ttl), (id("a"), TTL));
    assert_eq!(test.states(), ["Initializing"]);
    test.sign(asked).await;
    let certificate = first.await.unwrap();
    assert_eq!(certificate.identity(), &id("a"));
    assert_eq!(test.states(), ["Available"]);
    let again = manager.certificate(&id("a")).await.unwrap();
    assert!(Arc::ptr_eq(&certificate, &again));
    assert!(test.asked.try_recv().is_err(), "the CA was not asked again");
}

#[tokio::test(start_paused = true)]
async fn eight_requests_are_in_flight_and_a_waiting_connection_is_next() {
    let mut test = test();
    for n in 0..10 {
        test.manager.prefetch(&id(&format!("p{n}")));
    }
    let mut under_way = Vec::new();
    for _ in 0..8 {
        under_way.push(test.next().await);
    }
    assert!(test.asked.try_recv().is_err(), "no ninth");
    let manager = test.manager.clone();
    let mut urgent = manager.certificate(&id("urgent"));
    pending!(urgent);
    test.settle().await;
    test.sign(under_way.remove(0)).await;
    let asked = test.next().await;
    assert_eq!(asked.id, id("urgent"));
    test.sign(asked).await;
    assert_eq!(urgent.await.unwrap().identity(), &id("urgent"));
}

#[tokio::test(start_paused = true)]
async fn certificate_is_renewed_at_half_life() {
    let mut test = test();
    test.manager.prefetch(&id("a"));
    let asked = test.next().await;
    test.sign(asked).await;
    let old = test.manager.certificate(&id("a")).await.unwrap();
    assert!(test.next_within(TTL / 2 - Duration::from_secs(30)).await.is_none(), "too early");
    let asked = test.next_within(Duration::from_secs(60)).await.expect("a renewal");
    let during = test.manager.certificate(&id("a")).await.unwrap();
    assert!(Arc::ptr_eq(&old, &during), "the old one serves while the new one is signed");
    test.sign(asked).await;
    test.settle().await;
    let new = test.manager.certificate(&id("a")).await.unwrap();
    assert!(new.not_after() > old.not_after());
}

#[tokio::test(start_paused = true)]
async fn current_certificate_is_used_while_renewal_fails_until_it_expires() {
    let mut test = test();
    test.manager.prefetch(&id("a"));
    let asked = test.next().await;
    test.sign(asked).await;
    test.settle().await;
    let old = test.manager.certificate(&id("a")).await.unwrap();
    let mut failures = 0;
    loop {
        let asked = test.next_within(TTL).await.expect("it keeps trying");
        let expired = (test.clock)() >= old.not_after();
        asked.answer.send(Err(refused())).expect("the manager waits");
        test.settle().await;
        failures += 1;
        if expired {
            break;
        }
        assert_eq!(test.states(), ["Available"]);
        assert!(test.manager.certificate(&id("a")).await.is_ok());
    }
    assert!(failures > 10, "{failures} tries in half an hour");
    assert_eq!(test.states(), ["Unavailable: CA refused: PermissionDenied: not yours"]);
    assert!(test.manager.certificate(&id("a")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn failed_signing_fails_waiting_readers_and_later_ones_at_once() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = test.next().await;
    asked.answer.send(Err(refused())).expect("the manager waits");
    let error = waiter.await.unwrap_err();
    let reason = refused().to_string();
    assert_eq!(error, FetchError::Unavailable { identity: id("a"), reason });
    assert!(error.to_string().contains("spiffe://cluster.local/ns/n/sa/a"), "{error}");
    let before = Instant::now();
    assert_eq!(manager.certificate(&id("a")).await.unwrap_err(), error);
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(test.asked.try_recv().is_err(), "the CA was not asked");
    // The worker retries about a second later.
    let asked = test.next_within(Duration::from_millis(1300)).await.expect("a retry");
    test.sign(asked).await;
    test.settle().await;
    assert!(manager.certificate(&id("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn signing_request_times_out_at_the_deadline() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let _silent = test.next().await;
    let before = Instant::now();
    let error = waiter.await.unwrap_err();
    assert_eq!(before.elapsed().as_secs(), 10);
    assert!(error.to_string().contains("within 10s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn leaf_for_another_identity_is_refused() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = test.next().await;
    let chain = test.fake.sign(&id("b"), asked.csr, asked.ttl).await;
    asked.answer.send(chain).expect("the manager waits");
    let error = waiter.await.unwrap_err().to_string();
    assert!(error.contains(&id("a").to_string()) && error.contains(&id("b").to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn expired_leaf_is_refused() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = test.next().await;
    let ca = Ca::new("root").unwrap();
    let mut spec = Spec { uris: vec![id("a").to_string()], ..Spec::default() };
    spec.not_before = (test.clock)() - TTL;
    spec.not_after = (test.clock)() - Duration::from_secs(1);
    let leaf = ca.sign(&asked.csr, &spec).unwrap();
    asked.answer.send(Ok(vec![leaf, ca.root_pem()])).expect("the manager waits");
    assert!(waiter.await.unwrap_err().to_string().contains("expired at 2027-01-15T07:59:59Z"));
}

#[tokio::test(start_paused = true)]
async fn forgetting_an_identity_fails_its_readers_and_ignores_late_answers() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = test.next().await;
    manager.forget(&id("a"));
    assert_eq!(waiter.await.unwrap_err(), FetchError::Forgotten(id("a")));
    test.sign(asked).await;
    test.settle().await;
    assert!(manager.snapshot().is_empty());
    assert!(test.next_within(2 * TTL).await.is_none(), "nothing is renewed any more");
}

#[tokio::test(start_paused = true)]
async fn panicking_request_counts_as_a_failure() {
    let mut test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    // Dropping the answer makes the scripted CA panic.
    drop(test.next().await);
    assert!(waiter.await.unwrap_err().to_string().contains("ended without an answer"));
    let asked = test.next_within(Duration::from_millis(1300)).await.expect("a retry");
    test.sign(asked).await;
    test.settle().await;
    assert!(manager.certificate(&id("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn shutdown_fails_waiting_and_later_readers() {
    let test = test();
    let manager = test.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    test.tasks.abort_all().await;
    assert_eq!(waiter.await.unwrap_err(), FetchError::Stopped(id("a")));
    assert_eq!(manager.certificate(&id("b")).await.unwrap_err(), FetchError::Stopped(id("b")));
}

#[tokio::test(start_paused = true)]
async fn signing_results_are_counted() {
    let registry = isthmus_rt::metrics::Registry::default();
    let tasks = Tasks::new("test");
    let config = Config { metrics: Metrics::register(&registry), ..Config::default() };
    let manager = Manager::new(Arc::new(FakeSigner::new()), config, &tasks);
    manager.certificate(&id("a")).await.unwrap();
    let text = registry.encode().unwrap();
    assert!(text.contains("isthmus_certificate_signings_total{result=\"ok\"} 1"), "{text}");
}

/// The lines of one level so far.
fn at(log: &LogCapture, level: Level) -> Vec<String> {
    log.events().iter().filter(|event| event.level == level).map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn outage_logs_one_warning_per_reason_and_one_line_at_its_end() {
    let log = LogCapture::start(|metadata| *metadata.level() <= Level::INFO);
    let mut test = test();
    for name in ["a", "b", "c"] {
        test.manager.prefetch(&id(name));
        let asked = test.next().await;
        test.sign(asked).await;
    }
    test.settle().await;
    for _ in 0..12 {
        let asked = test.next_within(TTL).await.expect("it keeps trying");
        asked.answer.send(Err(refused())).expect("the manager waits");
        test.settle().await;
    }
    let warned = at(&log, Level::WARN);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("renewal failed") && warned[0].contains("not yours"), "{warned:?}");
    // A new reason is logged, a known one is not logged again.
    for reason in ["gone", "not yours"] {
        let asked = test.next_within(TTL).await.expect("it keeps trying");
        let (code, message) = ("PermissionDenied".to_owned(), reason.to_owned());
        asked.answer.send(Err(SignError::Refused { code, message })).expect("the manager waits");
        test.settle().await;
    }
    assert_eq!(at(&log, Level::WARN).len(), 2, "{:?}", at(&log, Level::WARN));
    let asked = test.next_within(TTL).await.expect("it keeps trying");
    test.sign(asked).await;
    test.settle().await;
    let info = at(&log, Level::INFO);
    assert!(info.len() == 1 && info[0].contains("failures=14"), "{info:?}");
}

#[tokio::test(start_paused = true)]
async fn renewal_has_the_lowest_priority() {
    let mut test = test();
    for n in 0..9 {
        test.manager.prefetch(&id(&format!("old{n}")));
        let asked = test.next().await;
        test.sign(asked).await;
    }
    test.settle().await;
    // All are due again, and eight may be in flight.
    let mut under_way = Vec::new();
    for _ in 0..8 {
        under_way.push(test.next_within(TTL).await.expect("a refresh"));
    }
    test.manager.prefetch(&id("prefetched"));
    let manager = test.manager.clone();
    let mut waiting = manager.certificate(&id("waiting"));
    pending!(waiting);
    test.settle().await;
    let mut next = Vec::new();
    for asked in under_way.drain(..3) {
        test.sign(asked).await;
        next.push(test.next().await.id);
    }
    let names: Vec<_> = next.iter().map(|id| id.service_account.as_str().to_owned()).collect();
    assert_eq!(names[..2], ["waiting", "prefetched"]);
    assert!(names[2].starts_with("old"), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_renewals_of_a_node() {
    let start = Instant::now();
    let clock: Clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + start.elapsed());
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let config = Config { ttl: TTL, clock: Arc::clone(&clock), ..Config::default() };
    let manager = Manager::new(Arc::new(ScriptedCa(calls)), config, &tasks);
    let fake = FakeSigner::with_clock(Arc::clone(&clock));
    let mut test = TestManager { manager, asked, fake, clock, tasks };
    for n in 0..8 {
        test.manager.prefetch(&id(&format!("p{n}")));
        let asked = test.next().await;
        test.sign(asked).await;
    }
    let mut renewals = Vec::new();
    for _ in 0..8 {
        let asked = test.next_within(TTL).await.expect("a refresh");
        renewals.push(start.elapsed());
        test.sign(asked).await;
    }
    let (first, last) = (renewals[0], renewals[7]);
    assert!(first >= TTL.mul_f64(0.44) && last <= TTL.mul_f64(0.56), "{renewals:?}");
    assert!(last - first > Duration::from_secs(10), "{renewals:?}");
}

#[tokio::test(start_paused = true)]
async fn expired_root_is_warned_of_once_and_certificates_stay_in_use() {
    let log = LogCapture::start(|metadata| *metadata.level() <= Level::INFO);
    let registry = isthmus_rt::metrics::Registry::default();
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    // The kit's roots are valid until 4096; this clock is past that.
    let start = Instant::now();
    let clock: Clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(70_000_000_000) + start.elapsed());
    let config =
        Config { clock: Arc::clone(&clock), metrics: Metrics::register(&registry), ..Config::default() };
    let manager = Manager::new(Arc::new(ScriptedCa(calls)), config, &tasks);
    let mut test = TestManager { manager, asked, fake: FakeSigner::new(), clock, tasks };
    let ca = Ca::new("root").unwrap();
    for name in ["a", "b"] {
        let manager = test.manager.clone();
        let id = id(name);
        let mut waiter = manager.certificate(&id);
        pending!(waiter);
        let asked = test.next().await;
        let mut spec = Spec { uris: vec![asked.id.to_string()], ..Spec::default() };
        spec.not_after = (test.clock)() + TTL;
        let leaf = ca.sign(&asked.csr, &spec).unwrap();
        asked.answer.send(Ok(vec![leaf, ca.root_pem()])).expect("the manager waits");
        waiter.await.unwrap();
    }
    let warned = at(&log, Level::WARN);
    assert!(
        warned.len() == 1 && warned[0].contains("a root certificate of the mesh has expired"),
        "{warned:?}"
    );
    let text = registry.encode().unwrap();
    assert!(text.contains("isthmus_certificate_identities{state=\"available\"} 2"), "{text}");
    assert!(!text.contains("isthmus_mesh_root_expiry_timestamp_seconds 0"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn rotated_root_is_trusted_by_certificates_from_before_the_rotation() {
    use crate::cert::tests::handshake;
    let (old, new) = (Ca::new("old").unwrap(), Ca::new("new").unwrap());
    let trust = Trust::default();
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let config = Config { trust: trust.clone(), ..Config::default() };
    let (clock, fake) = (Arc::clone(&config.clock), FakeSigner::new());
    let manager = Manager::new(Arc::new(ScriptedCa(calls)), config, &tasks);
    let mut test = TestManager { manager, asked, fake, clock, tasks };
    let mut certificates = Vec::new();
    for (name, ca) in [("before", &old), ("after", &new)] {
        let (manager, id) = (test.manager.clone(), id(name));
        let mut waiter = manager.certificate(&id);
        pending!(waiter);
        let asked = test.next().await;
        let spec = Spec { uris: vec![asked.id.to_string()], ..Spec::default() };
        let leaf = ca.sign(&asked.csr, &spec).unwrap();
        asked.answer.send(Ok(vec![leaf, ca.root_pem()])).expect("the manager waits");
        certificates.push(waiter.await.unwrap());
    }
    let [before, after] = certificates.as_slice() else { panic!("two certificates") };
    for (client, server) in [(before, after), (after, before), (before, before)] {
        let client_tls = client.client_tls(std::slice::from_ref(server.identity()));
        let result = handshake(&client_tls, &server.server_tls());
        assert!(result.client.is_ok() && result.server.is_ok(), "{client:?} to {server:?}");
    }
    // Neither certificate came with the other one's root: the handshakes rely on what the manager learned.
    assert_eq!((before.roots().len(), after.roots().len()), (1, 1));
    assert_ne!(before.roots(), after.roots());
}
