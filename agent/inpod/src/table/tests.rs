//! The orders of events that matter.

use super::*;

impl Place for u32 {
    type Id = Self;
    fn id(&self) -> Self {
        *self
    }
}

fn uid(text: &str) -> PodUid {
    text.into()
}

fn entry(place: u32) -> Entry<u32> {
    let info = PodInfo { name: "n".into(), namespace: "ns".into(), service_account: "s".into() };
    Entry { info, place }
}

fn running(table: &Table<u32>) -> Vec<&str> {
    table.running().map(|(uid, _)| uid.as_str()).collect()
}

/// A connected table where the named pods run, each in the place of its position, snapshot complete.
fn table(pods: &[&str]) -> Table<u32> {
    let mut table = Table::default();
    table.connected();
    for (place, pod) in (0..).zip(pods) {
        assert_eq!(table.add(&uid(pod), &place), Order::Start);
        table.started(uid(pod), entry(place), true, Instant::now());
    }
    assert_eq!(table.snapshot_sent(), Ok(vec![]));
    table
}

#[test]
fn ready_after_the_snapshot_with_nothing_pending() {
    let mut table = Table::<u32>::default();
    assert!(!table.is_ready());
    table.connected();
    assert!(!table.is_ready());
    table.snapshot_sent().unwrap();
    assert!(table.is_ready());
    table.disconnected();
    assert!(!table.is_ready());
}

#[test]
fn the_same_pod_in_the_same_place_is_not_touched_but_in_another_it_is_restarted() {
    let mut table = table(&["a"]);
    assert_eq!(table.add(&uid("a"), &0), Order::Nothing);
    assert_eq!(table.add(&uid("a"), &9), Order::Restart);
    assert_eq!(running(&table), Vec::<&str>::new());
    table.started(uid("a"), entry(9), true, Instant::now());
    assert_eq!(table.add(&uid("a"), &9), Order::Nothing);
}

#[test]
fn a_new_snapshot_stops_what_it_does_not_name_and_nothing_else() {
    let mut table = table(&["a", "b", "c", "d"]);
    table.disconnected();
    assert_eq!(running(&table), ["a", "b", "c", "d"]);
    table.connected();
    assert_eq!(table.add(&uid("a"), &0), Order::Nothing);
    table.keep(uid("b")).unwrap();
    table.keep(uid("d")).unwrap();
    assert!(!table.del(&uid("d")), "before the end of the snapshot it only takes the name back");
    assert_eq!(table.snapshot_sent().unwrap(), [uid("c"), uid("d")]);
    assert_eq!(running(&table), ["a", "b"]);
}

#[test]
fn del_after_the_snapshot_stops_a_pod_that_runs() {
    let mut table = table(&["a"]);
    assert!(table.del(&uid("a")));
    assert!(!table.del(&uid("a")));
    assert!(table.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_tried_again_every_five_seconds_and_blocks_readiness() {
    let mut table = table(&[]);
    let now = Instant::now();
    assert_eq!(table.add(&uid("a"), &1), Order::Start);
    table.started(uid("a"), entry(1), false, now);
    assert!(!table.is_ready());
    assert_eq!(table.next_retry(), Some(now + RETRY));
    assert_eq!(table.due(now + RETRY - Duration::from_millis(1)), None);
    assert_eq!(table.due(now + RETRY), Some((uid("a"), entry(1))));
    table.started(uid("a"), entry(1), false, now + RETRY);
    assert_eq!(table.next_retry(), Some(now + 2 * RETRY));
    table.started(uid("a"), entry(1), true, now + 2 * RETRY);
    assert!(table.is_ready());
    assert_eq!(table.next_retry(), None);
}

#[tokio::test(start_paused = true)]
async fn a_pending_pod_is_forgotten_when_deleted_unnamed_or_disconnected() {
    let fail = |table: &mut Table<u32>| {
        assert_eq!(table.add(&uid("a"), &1), Order::Start);
        table.started(uid("a"), entry(1), false, Instant::now());
        assert_eq!(table.pending().len(), 1);
    };
    let mut table = table(&[]);
    fail(&mut table);
    assert!(!table.del(&uid("a")));
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
fn requests_out_of_order_are_named() {
    let mut table = table(&[]);
    assert_eq!(table.keep(uid("x")), Err(OutOfOrder::KeepAfterSnapshot(uid("x"))));
    assert_eq!(table.snapshot_sent(), Err(OutOfOrder::SecondSnapshot));
}
