//! Sequences of ZDS requests and what they do to the table.

use super::*;

impl NetnsHandle for u32 {
    type Id = Self;
    fn id(&self) -> Self {
        *self
    }
}

fn uid(text: &str) -> PodUid {
    text.into()
}

fn pod(uid: &str) -> PodRef {
    PodRef { uid: uid.into(), namespace: "ns".into(), name: "n".into(), service_account: "s".into() }
}

fn entry(uid: &str, netns: u32) -> Entry<u32> {
    Entry { pod: pod(uid), netns }
}

fn failed(whose: Blame) -> Result<(), (Blame, Arc<str>)> {
    Err((whose, "why".into()))
}

fn running(table: &PodTable<u32>) -> Vec<&str> {
    table.running().map(|(uid, _)| uid.as_str()).collect()
}

/// A connected table after its snapshot, with these pods running, each in the namespace of its index.
fn table(pods: &[&str]) -> PodTable<u32> {
    let mut table = PodTable::default();
    table.connected();
    for (netns, pod) in (0..).zip(pods) {
        assert_eq!(table.add(&uid(pod), &netns), AddAction::Start);
        table.started(entry(pod, netns), Ok(()), Instant::now());
    }
    assert_eq!(table.snapshot_sent(), Ok(vec![]));
    table
}

#[test]
fn the_table_is_ready_after_the_snapshot() {
    let mut table = PodTable::<u32>::default();
    assert!(!table.is_ready());
    table.connected();
    assert!(!table.is_ready());
    table.snapshot_sent().unwrap();
    assert!(table.is_ready());
    table.disconnected();
    assert!(!table.is_ready());
}

#[test]
fn a_known_pod_is_restarted_only_in_another_namespace() {
    let mut table = table(&["a"]);
    assert_eq!(table.add(&uid("a"), &0), AddAction::None);
    assert_eq!(table.add(&uid("a"), &9), AddAction::Restart);
    assert_eq!(running(&table), Vec::<&str>::new());
    table.started(entry("a", 9), Ok(()), Instant::now());
    assert_eq!(table.add(&uid("a"), &9), AddAction::None);
}

#[test]
fn a_snapshot_stops_the_running_pods_that_it_does_not_name() {
    let mut table = table(&["a", "b", "c", "d"]);
    table.disconnected();
    assert_eq!(running(&table), ["a", "b", "c", "d"]);
    table.connected();
    assert_eq!(table.add(&uid("a"), &0), AddAction::None);
    table.keep(uid("b")).unwrap();
    table.keep(uid("d")).unwrap();
    assert!(table.del(&uid("d")).is_none(), "before the end of the snapshot it only strikes the pod");
    assert_eq!(table.snapshot_sent().unwrap(), [pod("c"), pod("d")]);
    assert_eq!(running(&table), ["a", "b"]);
}

#[test]
fn del_after_the_snapshot_stops_a_running_pod() {
    let mut table = table(&["a"]);
    assert_eq!(table.del(&uid("a")), Some(pod("a")));
    assert_eq!(table.del(&uid("a")), None);
    assert!(table.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_retried_with_backoff() {
    for (whose, longest) in [(Blame::Pod, 60), (Blame::Process, 5)] {
        let mut table = table(&[]);
        let mut now = Instant::now();
        assert_eq!(table.add(&uid("a"), &1), AddAction::Start);
        for seconds in [1_u64, 2, 4, 8, 16, 32, 64, 128] {
            let delay = Duration::from_secs(seconds.min(longest));
            assert_eq!(table.started(entry("a", 1), failed(whose), now), Some(delay));
            assert_eq!(table.next_retry(), Some(now + delay));
            assert_eq!(table.due(now + delay - Duration::from_millis(1)), None);
            now += delay;
            assert_eq!(table.due(now), Some(entry("a", 1)));
        }
        // Another namespace is another pod.
        assert_eq!(table.started(entry("a", 2), failed(whose), now), Some(RETRY));
        assert_eq!(table.started(entry("a", 2), Ok(()), now), None);
        assert_eq!(table.next_retry(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_way_in_one_pod_does_not_block_readiness() {
    let mut table = table(&[]);
    let now = Instant::now();
    table.started(entry("a", 1), failed(Blame::Pod), now);
    assert!(table.is_ready());
    assert_eq!(table.pending().map(|(_, reason)| &**reason).collect::<Vec<_>>(), ["why"]);
    table.started(entry("b", 2), failed(Blame::Process), now);
    assert!(!table.is_ready());
    table.started(entry("b", 2), Ok(()), now);
    assert!(table.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_pending_pod_is_forgotten_by_del_snapshot_or_disconnect() {
    let fail = |table: &mut PodTable<u32>| {
        assert_eq!(table.add(&uid("a"), &1), AddAction::Start);
        table.started(entry("a", 1), failed(Blame::Process), Instant::now());
        assert_eq!(table.pending().len(), 1);
    };
    let mut table = table(&[]);
    fail(&mut table);
    assert_eq!(table.del(&uid("a")), None);
    assert!(table.is_ready());

    fail(&mut table);
    table.disconnected();
    assert_eq!(table.next_retry(), None);

    table.connected();
    fail(&mut table);
    table.del(&uid("a"));
    table.snapshot_sent().unwrap();
    assert!(table.is_ready());
}

#[test]
fn an_out_of_order_request_is_an_error() {
    let mut table = table(&[]);
    assert_eq!(table.keep(uid("x")), Err(ProtocolError::KeepAfterSnapshot(uid("x"))));
    assert_eq!(table.snapshot_sent(), Err(ProtocolError::SecondSnapshot));
}
