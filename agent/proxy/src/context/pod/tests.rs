//! Authorization and recheck of a pod's connections, without sockets.

use isthmus_identity::{CertSource, FetchError};
use isthmus_model::{Action, PodRef, Policy, Scope as Reach, TrustDomains};
use isthmus_rt::BoxFuture;
use isthmus_state::{Batch, Options, State};

use super::*;
use crate::config::Config;
use crate::telemetry::Metrics;

struct NoCerts;

impl CertSource for NoCerts {
    fn certificate(&self, id: &SpiffeId) -> BoxFuture<'_, Result<Arc<Certificate>, FetchError>> {
        let stopped = FetchError::Stopped(id.clone());
        Box::pin(async { Err(stopped) })
    }
}

fn ctx(state: &State) -> PodContext {
    let proxy = Arc::new(ProxyContext {
        state: state.clone(),
        certs: Arc::new(NoCerts),
        host_resolver: Arc::new(crate::host_resolver::NoHostResolver),
        network: "east".into(),
        cluster_id: "east".into(),
        settings: Settings::default(),
        config: Config::default(),
        metrics: Arc::new(Metrics::default()),
        threads: Threads::current(),
        scheduler: isthmus_rt::fair::FairScheduler::default(),
    });
    let pod = PodRef {
        uid: "1".into(),
        name: "helloworld".into(),
        namespace: "sample".into(),
        service_account: "helloworld".into(),
    };
    PodContext::new(proxy, pod, Sockets::host(), false)
}

fn helloworld() -> Workload {
    Workload {
        uid: "east//Pod/sample/helloworld".into(),
        name: "helloworld".into(),
        namespace: "sample".into(),
        service_account: "helloworld".into(),
        ..Workload::default()
    }
}

/// A policy that applies to the workloads that reference it, and matches all clients.
fn attached(action: Action) -> Policy {
    Policy {
        name: "late".into(),
        namespace: "sample".into(),
        scope: Reach::WorkloadSelector,
        action,
        rules: vec![Vec::new()],
        dry_run: false,
    }
}

fn facts() -> Facts {
    Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 80).into() }
}

fn put(state: &State, workload: Workload, policies: Vec<Policy>) {
    state.apply(Batch {
        upsert_workloads: vec![workload],
        upsert_policies: policies.into_iter().map(|policy| (policy.key(), policy)).collect(),
        ..Batch::default()
    });
}

/// The pod, with a reference to [`attached`].
fn naming() -> Workload {
    Workload { authorization_policies: vec![attached(Action::Deny).key()], ..helloworld() }
}

#[tokio::test(start_paused = true)]
async fn a_missing_policy_denies_new_connections_after_the_policy_deadline() {
    let state = State::new(Options::default());
    let ctx = ctx(&state);
    put(&state, naming(), vec![]);
    let start = Instant::now();
    // Unrelated updates do not extend the wait.
    let updates = async {
        for at in 0..4 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let other = Workload { uid: format!("east//Pod/other/{at}").into(), ..Workload::default() };
            put(&state, other, vec![]);
        }
    };
    let decided = async {
        let refused = ctx.authorize(&naming(), &facts()).await.unwrap_err();
        (start.elapsed(), refused)
    };
    let ((after, refused), ()) = tokio::join!(decided, updates);
    assert_eq!(after, Duration::from_secs(5));
    assert_eq!(refused.policy, Some("sample/late".into()));
    assert_eq!(
        refused.to_string(),
        "policy sample/late applies to the workload but the control plane has not sent it yet"
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_waits_for_a_missing_policy_which_then_decides() {
    for (action, passes) in [(Action::Allow, true), (Action::Deny, false)] {
        let state = State::new(Options::default());
        let ctx = ctx(&state);
        put(&state, naming(), vec![]);
        let start = Instant::now();
        let arrival = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            put(&state, naming(), vec![attached(action)]);
        };
        let (naming, facts) = (naming(), facts());
        let (authorized, ()) = tokio::join!(ctx.authorize(&naming, &facts), arrival);
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert_eq!(authorized.is_ok(), passes, "{action:?}");
    }
    // A DENY policy that is present decides without waiting.
    let state = State::new(Options::default());
    let ctx = ctx(&state);
    let deny = Policy { name: "other".into(), scope: Reach::Namespace, ..attached(Action::Deny) };
    put(&state, naming(), vec![deny.clone()]);
    let start = Instant::now();
    let refused = ctx.authorize(&naming(), &facts()).await.unwrap_err();
    assert_eq!((start.elapsed(), refused.policy), (Duration::ZERO, Some(deny.key())));
}

/// An open connection over HBONE or in plaintext.
fn open(ctx: &PodContext, peer: Option<&str>, protocol: crate::types::Carrier) -> crate::tracker::Tracked {
    let conn = crate::tracker::Connection {
        src: ([10, 0, 0, 1], 1).into(),
        original_dst: None,
        actual_dst: ([10, 0, 0, 2], 80).into(),
        protocol,
    };
    let peer = peer.map(|peer| peer.parse().unwrap());
    ctx.connections().inbound(conn, Facts { peer, ..facts() })
}

#[tokio::test(start_paused = true)]
async fn a_missing_policy_closes_open_connections_after_its_grace_period_unless_it_arrives() {
    use crate::types::Carrier;
    for arrival in [None, Some(Action::Deny), Some(Action::Allow)] {
        let state = State::new(Options::default());
        let ctx = Arc::new(ctx(&state));
        put(&state, helloworld(), vec![]);
        let tasks = Tasks::new("test");
        tasks.spawn("recheck", Arc::clone(&ctx).recheck_on_changes());
        let mut tunnelled = open(&ctx, Some("spiffe://td/ns/sample/sa/sleep"), Carrier::Hbone);
        let mut plain = open(&ctx, None, Carrier::Tcp);
        let start = Instant::now();
        put(&state, naming(), vec![]);
        if let Some(action) = arrival {
            tokio::time::sleep(Duration::from_secs(29)).await;
            assert_eq!(ctx.connections().snapshot().inbound.len(), 2, "open during the grace period");
            put(&state, naming(), vec![attached(action)]);
        }
        let closed = async { (tunnelled.denied().await, plain.denied().await) };
        match (arrival, tokio::time::timeout(Duration::from_secs(3600), closed).await) {
            (Some(Action::Allow), closed) => assert!(closed.is_err(), "allowed by the policy"),
            (Some(Action::Deny), closed) => {
                let (first, second) = closed.unwrap();
                assert_eq!(start.elapsed(), Duration::from_secs(29));
                assert_eq!(first.to_string(), "explicitly denied by: sample/late");
                assert_eq!(first, second);
            }
            (None, closed) => {
                let (first, second) = closed.unwrap();
                assert_eq!(start.elapsed(), Duration::from_secs(30));
                assert_eq!(
                    first.to_string(),
                    "policy sample/late applies to the workload but the control plane has not sent it yet"
                );
                assert_eq!(first, second);
            }
        }
    }
}

#[tokio::test]
async fn a_policy_attached_after_the_workload_lookup_applies() {
    let state = State::new(Options::default());
    let ctx = ctx(&state);
    let pod = helloworld();
    state.apply(Batch { upsert_workloads: vec![pod.clone()], ..Batch::default() });
    let known = ctx.workload().await.unwrap();
    let facts = facts();
    assert!(ctx.authorize(&known, &facts).await.is_ok());
    let deny = Policy {
        name: "deny".into(),
        namespace: "sample".into(),
        scope: Reach::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Vec::new()],
        dry_run: false,
    };
    let attached = Workload { authorization_policies: vec![deny.key()], ..pod };
    state.apply(Batch {
        upsert_workloads: vec![attached],
        upsert_policies: vec![(deny.key(), deny.clone())],
        ..Batch::default()
    });
    assert_eq!(ctx.authorize(&known, &facts).await.unwrap_err().policy, Some(deny.key()));
    // Without a current version of the workload, the known one decides.
    state.apply(Batch { remove_addresses: vec![known.uid.to_string()], ..Batch::default() });
    assert!(ctx.authorize(&known, &facts).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_removed_trust_domain_alias_closes_the_connections_it_allowed() {
    let state = State::new(Options::default());
    let ctx = Arc::new(ctx(&state));
    let clause = isthmus_model::policy::Match {
        principals: vec![isthmus_model::policy::StringMatch::Exact("old/ns/sample/sa/sleep".into())],
        ..Default::default()
    };
    let only = Policy { rules: vec![vec![vec![clause]]], ..attached(Action::Allow) };
    let mesh = |aliases: &[&str]| {
        let names = aliases.iter().map(|name| (*name).into());
        TrustDomains::new(Some("new".into()), names)
    };
    state.set_trust_domains(mesh(&["old"]));
    put(&state, Workload { trust_domain: "new".into(), ..naming() }, vec![only]);
    let tasks = Tasks::new("test");
    tasks.spawn("recheck", Arc::clone(&ctx).recheck_on_changes());
    let peer = "spiffe://new/ns/sample/sa/sleep";
    let known = Facts { peer: Some(peer.parse().unwrap()), ..facts() };
    assert!(ctx.authorize(&naming(), &known).await.is_ok());
    let mut open = open(&ctx, Some(peer), crate::types::Carrier::Hbone);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ctx.connections().snapshot().inbound.len(), 1);
    let start = Instant::now();
    state.set_trust_domains(mesh(&[]));
    assert_eq!(open.denied().await.to_string(), "allow policies exist, but none allowed");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_tunnels_driver_is_charged_to_the_pod_that_dialled_it() {
    let ctx = ctx(&State::new(Options::default()));
    // The pool's own tasks run first.
    tokio::task::yield_now().await;
    let before = ctx.share().charged();
    let (io, peer) = tokio::io::duplex(1 << 16);
    let settings = Settings::default();
    let tunnel = isthmus_hbone::client::start(io, &settings, ctx.tunnels()).unwrap();
    // Only the task that drives the tunnel notices that the peer closes.
    drop(peer);
    while tunnel.is_alive() {
        tokio::task::yield_now().await;
    }
    assert!(ctx.share().charged() > before);
}
