use std::time::UNIX_EPOCH;

use isthmus_kit::logs::LogCapture;
use isthmus_kit::pki::{Ca, Spec};
use tokio::time::Instant;
use tracing::Level;

use super::*;
use crate::fake::FakeSigner;
use crate::source::SignError;

/// A request that arrived at the CA; the test answers it.
struct Asked {
    id: SpiffeId,
    csr: String,
    ttl: Duration,
    answer: oneshot::Sender<Result<Vec<String>, SignError>>,
}

/// A CA whose every answer is the test's.
struct Scripted(mpsc::UnboundedSender<Asked>);

impl Signer for Scripted {
    fn sign(
        &self,
        id: &SpiffeId,
        csr: String,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(Asked { id: id.clone(), csr, ttl, answer });
        Box::pin(async move { answered.await.expect("the script answers or keeps the request") })
    }
}

struct World {
    manager: Manager,
    asked: mpsc::UnboundedReceiver<Asked>,
    fake: FakeSigner,
    clock: Clock,
    tasks: Tasks,
}

const TTL: Duration = Duration::from_secs(3600);

fn world() -> World {
    let start = Instant::now();
    let clock: Clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + start.elapsed());
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let limits = Limits { jitter: 0.0, ..Limits::default() };
    let config = Config { ttl: TTL, limits, clock: Arc::clone(&clock), ..Config::default() };
    let manager = Manager::new(Arc::new(Scripted(calls)), config, &tasks);
    World { manager, asked, fake: FakeSigner::with_clock(Arc::clone(&clock)), clock, tasks }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/n/sa/{name}").parse().unwrap()
}

fn refused() -> SignError {
    SignError::Refused { code: "PermissionDenied".to_owned(), message: "not yours".to_owned() }
}

impl World {
    /// The next request, or `None` when there is none for `within` of the paused clock.
    async fn next_within(&mut self, within: Duration) -> Option<Asked> {
        tokio::time::timeout(within, self.asked.recv()).await.ok().flatten()
    }

    async fn next(&mut self) -> Asked {
        self.next_within(Duration::from_secs(1)).await.expect("a request")
    }

    async fn sign(&self, asked: Asked) {
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
async fn whoever_asks_first_waits_and_the_others_read() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut first = manager.certificate(&id("a"));
    pending!(first);
    let asked = world.next().await;
    assert_eq!((asked.id.clone(), asked.ttl), (id("a"), TTL));
    assert_eq!(world.states(), ["Initializing"]);
    world.sign(asked).await;
    let certificate = first.await.unwrap();
    assert_eq!(certificate.identity(), &id("a"));
    assert_eq!(world.states(), ["Available"]);
    let again = manager.certificate(&id("a")).await.unwrap();
    assert!(Arc::ptr_eq(&certificate, &again));
    assert!(world.asked.try_recv().is_err(), "nobody was asked again");
}

#[tokio::test(start_paused = true)]
async fn eight_requests_are_under_way_and_a_waiting_connection_is_next() {
    let mut world = world();
    for n in 0..10 {
        world.manager.prefetch(&id(&format!("p{n}")));
    }
    let mut under_way = Vec::new();
    for _ in 0..8 {
        under_way.push(world.next().await);
    }
    assert!(world.asked.try_recv().is_err(), "no ninth");
    let manager = world.manager.clone();
    let mut urgent = manager.certificate(&id("urgent"));
    pending!(urgent);
    world.settle().await;
    world.sign(under_way.remove(0)).await;
    let asked = world.next().await;
    assert_eq!(asked.id, id("urgent"));
    world.sign(asked).await;
    assert_eq!(urgent.await.unwrap().identity(), &id("urgent"));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_life() {
    let mut world = world();
    world.manager.prefetch(&id("a"));
    let asked = world.next().await;
    world.sign(asked).await;
    let old = world.manager.certificate(&id("a")).await.unwrap();
    assert!(world.next_within(TTL / 2 - Duration::from_secs(30)).await.is_none(), "too early");
    let asked = world.next_within(Duration::from_secs(60)).await.expect("a renewal");
    let during = world.manager.certificate(&id("a")).await.unwrap();
    assert!(Arc::ptr_eq(&old, &during), "the old one serves while the new one is signed");
    world.sign(asked).await;
    world.settle().await;
    let new = world.manager.certificate(&id("a")).await.unwrap();
    assert!(new.not_after() > old.not_after());
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_is_kept_while_renewal_fails_until_it_expires() {
    let mut world = world();
    world.manager.prefetch(&id("a"));
    let asked = world.next().await;
    world.sign(asked).await;
    world.settle().await;
    let old = world.manager.certificate(&id("a")).await.unwrap();
    let mut failures = 0;
    loop {
        let asked = world.next_within(TTL).await.expect("it keeps trying");
        let expired = (world.clock)() >= old.not_after();
        asked.answer.send(Err(refused())).expect("the manager waits");
        world.settle().await;
        failures += 1;
        if expired {
            break;
        }
        assert_eq!(world.states(), ["Available"]);
        assert!(world.manager.certificate(&id("a")).await.is_ok());
    }
    assert!(failures > 10, "{failures} tries in half an hour");
    assert_eq!(world.states(), ["Unavailable: CA refused: PermissionDenied: not yours"]);
    assert!(world.manager.certificate(&id("a")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_a_valid_one_waiters_get_the_error_and_the_next_fail_fast() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = world.next().await;
    asked.answer.send(Err(refused())).expect("the manager waits");
    let error = waiter.await.unwrap_err();
    let reason = refused().to_string();
    assert_eq!(error, FetchError::Unavailable { identity: id("a"), reason });
    assert!(error.to_string().contains("spiffe://cluster.local/ns/n/sa/a"), "{error}");
    let before = Instant::now();
    assert_eq!(manager.certificate(&id("a")).await.unwrap_err(), error);
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(world.asked.try_recv().is_err(), "nobody was asked");
    // About a second later it is tried again by itself.
    let asked = world.next_within(Duration::from_millis(1300)).await.expect("a retry");
    world.sign(asked).await;
    world.settle().await;
    assert!(manager.certificate(&id("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_silent_ca_is_given_up_after_the_deadline() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let _silent = world.next().await;
    let before = Instant::now();
    let error = waiter.await.unwrap_err();
    assert_eq!(before.elapsed().as_secs(), 10);
    assert!(error.to_string().contains("within 10s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_leaf_for_somebody_else_is_refused() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = world.next().await;
    let chain = world.fake.sign(&id("b"), asked.csr, asked.ttl).await;
    asked.answer.send(chain).expect("the manager waits");
    let error = waiter.await.unwrap_err().to_string();
    assert!(error.contains(&id("a").to_string()) && error.contains(&id("b").to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_has_expired_already_is_refused() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = world.next().await;
    let ca = Ca::new("root").unwrap();
    let mut spec = Spec { uris: vec![id("a").to_string()], ..Spec::default() };
    spec.not_before = (world.clock)() - TTL;
    spec.not_after = (world.clock)() - Duration::from_secs(1);
    let leaf = ca.sign(&asked.csr, &spec).unwrap();
    asked.answer.send(Ok(vec![leaf, ca.root_pem()])).expect("the manager waits");
    assert!(waiter.await.unwrap_err().to_string().contains("expired at 2027-01-15T07:59:59Z"));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_gone_with_its_waiters_and_a_late_answer_does_not_bring_it_back() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    let asked = world.next().await;
    manager.forget(&id("a"));
    assert_eq!(waiter.await.unwrap_err(), FetchError::Forgotten(id("a")));
    world.sign(asked).await;
    world.settle().await;
    assert!(manager.snapshot().is_empty());
    assert!(world.next_within(2 * TTL).await.is_none(), "nothing is renewed any more");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_panics_is_a_failure_like_any_other() {
    let mut world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    // Dropping the answer makes the scripted CA panic.
    drop(world.next().await);
    assert!(waiter.await.unwrap_err().to_string().contains("ended without an answer"));
    let asked = world.next_within(Duration::from_millis(1300)).await.expect("a retry");
    world.sign(asked).await;
    world.settle().await;
    assert!(manager.certificate(&id("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_nobody_waits_for_ever() {
    let world = world();
    let manager = world.manager.clone();
    let mut waiter = manager.certificate(&id("a"));
    pending!(waiter);
    world.tasks.abort_all().await;
    assert_eq!(waiter.await.unwrap_err(), FetchError::Stopped(id("a")));
    assert_eq!(manager.certificate(&id("b")).await.unwrap_err(), FetchError::Stopped(id("b")));
}

#[tokio::test(start_paused = true)]
async fn results_are_counted() {
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
async fn an_outage_is_a_line_when_it_begins_and_one_when_it_ends_however_many_attempts_it_has() {
    let log = LogCapture::start(|metadata| *metadata.level() <= Level::INFO);
    let mut world = world();
    for name in ["a", "b", "c"] {
        world.manager.prefetch(&id(name));
        let asked = world.next().await;
        world.sign(asked).await;
    }
    world.settle().await;
    for _ in 0..12 {
        let asked = world.next_within(TTL).await.expect("it keeps trying");
        asked.answer.send(Err(refused())).expect("the manager waits");
        world.settle().await;
    }
    let warned = at(&log, Level::WARN);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("not renewed") && warned[0].contains("not yours"), "{warned:?}");
    // Another reason is news, and the same one is not again.
    for reason in ["gone", "not yours"] {
        let asked = world.next_within(TTL).await.expect("it keeps trying");
        let (code, message) = ("PermissionDenied".to_owned(), reason.to_owned());
        asked.answer.send(Err(SignError::Refused { code, message })).expect("the manager waits");
        world.settle().await;
    }
    assert_eq!(at(&log, Level::WARN).len(), 2, "{:?}", at(&log, Level::WARN));
    let asked = world.next_within(TTL).await.expect("it keeps trying");
    world.sign(asked).await;
    world.settle().await;
    let said = at(&log, Level::INFO);
    assert!(said.len() == 1 && said[0].contains("failures=14"), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_waits_for_connections_and_for_prefetches() {
    let mut world = world();
    for n in 0..9 {
        world.manager.prefetch(&id(&format!("old{n}")));
        let asked = world.next().await;
        world.sign(asked).await;
    }
    world.settle().await;
    // Every one is due again, and there is room for eight.
    let mut under_way = Vec::new();
    for _ in 0..8 {
        under_way.push(world.next_within(TTL).await.expect("a refresh"));
    }
    world.manager.prefetch(&id("prefetched"));
    let manager = world.manager.clone();
    let mut waiting = manager.certificate(&id("waiting"));
    pending!(waiting);
    world.settle().await;
    let mut next = Vec::new();
    for asked in under_way.drain(..3) {
        world.sign(asked).await;
        next.push(world.next().await.id);
    }
    let names: Vec<_> = next.iter().map(|id| id.service_account.as_str().to_owned()).collect();
    assert_eq!(names[..2], ["waiting", "prefetched"]);
    assert!(names[2].starts_with("old"), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn with_jitter_the_certificates_of_a_node_do_not_renew_in_step() {
    let start = Instant::now();
    let clock: Clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + start.elapsed());
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let config = Config { ttl: TTL, clock: Arc::clone(&clock), ..Config::default() };
    let manager = Manager::new(Arc::new(Scripted(calls)), config, &tasks);
    let fake = FakeSigner::with_clock(Arc::clone(&clock));
    let mut world = World { manager, asked, fake, clock, tasks };
    for n in 0..8 {
        world.manager.prefetch(&id(&format!("p{n}")));
        let asked = world.next().await;
        world.sign(asked).await;
    }
    let mut renewals = Vec::new();
    for _ in 0..8 {
        let asked = world.next_within(TTL).await.expect("a refresh");
        renewals.push(start.elapsed());
        world.sign(asked).await;
    }
    let (first, last) = (renewals[0], renewals[7]);
    assert!(first >= TTL.mul_f64(0.44) && last <= TTL.mul_f64(0.56), "{renewals:?}");
    assert!(last - first > Duration::from_secs(10), "{renewals:?}");
}

#[tokio::test(start_paused = true)]
async fn an_expired_root_is_told_once_and_traffic_goes_on() {
    let log = LogCapture::start(|metadata| *metadata.level() <= Level::INFO);
    let registry = isthmus_rt::metrics::Registry::default();
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    // The kit's roots are valid until 4096; this clock is past that.
    let start = Instant::now();
    let clock: Clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(70_000_000_000) + start.elapsed());
    let config =
        Config { clock: Arc::clone(&clock), metrics: Metrics::register(&registry), ..Config::default() };
    let manager = Manager::new(Arc::new(Scripted(calls)), config, &tasks);
    let mut world = World { manager, asked, fake: FakeSigner::new(), clock, tasks };
    let ca = Ca::new("root").unwrap();
    for name in ["a", "b"] {
        let manager = world.manager.clone();
        let id = id(name);
        let mut waiter = manager.certificate(&id);
        pending!(waiter);
        let asked = world.next().await;
        let mut spec = Spec { uris: vec![asked.id.to_string()], ..Spec::default() };
        spec.not_after = (world.clock)() + TTL;
        let leaf = ca.sign(&asked.csr, &spec).unwrap();
        asked.answer.send(Ok(vec![leaf, ca.root_pem()])).expect("the manager waits");
        waiter.await.unwrap();
    }
    let warned = at(&log, Level::WARN);
    assert!(warned.len() == 1 && warned[0].contains("a root of the mesh has expired"), "{warned:?}");
    let text = registry.encode().unwrap();
    assert!(text.contains("isthmus_certificate_identities{state=\"available\"} 2"), "{text}");
    assert!(!text.contains("isthmus_mesh_root_expiry_timestamp_seconds 0"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_new_root_is_trusted_by_certificates_that_came_before_it_and_the_old_one_for_a_while() {
    use crate::cert::tests::handshake;
    let (old, new) = (Ca::new("old").unwrap(), Ca::new("new").unwrap());
    let trust = Trust::default();
    let (calls, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let config = Config { trust: trust.clone(), ..Config::default() };
    let (clock, fake) = (Arc::clone(&config.clock), FakeSigner::new());
    let manager = Manager::new(Arc::new(Scripted(calls)), config, &tasks);
    let mut world = World { manager, asked, fake, clock, tasks };
    let mut certificates = Vec::new();
    for (name, ca) in [("before", &old), ("after", &new)] {
        let (manager, id) = (world.manager.clone(), id(name));
        let mut waiter = manager.certificate(&id);
        pending!(waiter);
        let asked = world.next().await;
        let spec = Spec { uris: vec![asked.id.to_string()], ..Spec::default() };
        let leaf = ca.sign(&asked.csr, &spec).unwrap();
        asked.answer.send(Ok(vec![leaf, ca.root_pem()])).expect("the manager waits");
        certificates.push(waiter.await.unwrap());
    }
    let [before, after] = certificates.as_slice() else { panic!("two certificates") };
    for (client, server) in [(before, after), (after, before), (before, before)] {
        let config = client.client_config(std::slice::from_ref(server.identity()));
        let verdict = handshake(config, server.server_config());
        assert!(verdict.client.is_ok() && verdict.server.is_ok(), "{client:?} to {server:?}");
    }
    // Without what the manager learnt they would not meet: nothing but its own root came with each.
    assert_eq!((before.roots().len(), after.roots().len()), (1, 1));
    assert_ne!(before.roots(), after.roots());
}
