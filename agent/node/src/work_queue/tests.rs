use super::*;

fn uid(name: &str) -> PodUid {
    name.into()
}

fn queue() -> (WorkQueue<&'static str>, Instant) {
    (WorkQueue::new(8), Instant::now())
}

#[test]
fn changes_of_one_pod_coalesce() {
    let (mut queue, now) = queue();
    queue.enqueue(&uid("a"));
    queue.enqueue(&uid("a"));
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Reconcile)));
    assert_eq!(queue.pop(now), None);
    queue.finish(&uid("a"), Outcome::Done, now);
    assert_eq!(queue.pop(now), None);
    assert!(queue.entries.is_empty(), "a pod that is done leaves no entry behind");
}

#[test]
fn a_change_during_work_requeues_the_pod() {
    let (mut queue, now) = queue();
    queue.enqueue(&uid("a"));
    assert!(queue.pop(now).is_some());
    queue.enqueue(&uid("a"));
    assert_eq!(queue.pop(now), None, "one worker per pod");
    queue.finish(&uid("a"), Outcome::Done, now);
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Reconcile)));
}

#[test]
fn a_plugin_request_is_first_but_never_concurrent_with_other_work() {
    let (mut queue, now) = queue();
    for name in ["a", "b", "c"] {
        queue.enqueue(&uid(name));
    }
    queue.enqueue_request(&uid("d"), "request");
    assert_eq!(queue.pop(now), Some((uid("d"), WorkItem::Add("request"))));
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Reconcile)));
    queue.enqueue_request(&uid("a"), "late");
    assert_eq!(queue.pop(now), Some((uid("b"), WorkItem::Reconcile)));
    queue.finish(&uid("a"), Outcome::Done, now);
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Add("late"))));
}

#[test]
fn a_plugin_request_does_not_replace_a_pending_reconcile() {
    let (mut queue, now) = queue();
    queue.enqueue(&uid("a"));
    queue.enqueue_request(&uid("a"), "request");
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Add("request"))));
    queue.finish(&uid("a"), Outcome::Done, now);
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Reconcile)));
}

#[test]
fn retries_back_off_exponentially_up_to_five_seconds() {
    let (mut queue, mut now) = queue();
    queue.enqueue(&uid("a"));
    let mut waits = Vec::new();
    for _ in 0..14 {
        assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Reconcile)));
        queue.finish(&uid("a"), Outcome::Requeue, now);
        assert_eq!(queue.pop(now), None, "not before the backoff is over");
        let at = queue.next_retry().unwrap();
        waits.push(at - now);
        now = at;
    }
    assert!((Duration::from_millis(4)..=Duration::from_millis(6)).contains(&waits[0]), "{waits:?}");
    assert!(waits[5] > waits[2] * 3, "{waits:?}");
    assert!((Duration::from_secs(4)..=Duration::from_secs(6)).contains(&waits[13]), "{waits:?}");

    assert!(queue.pop(now).is_some());
    queue.finish(&uid("a"), Outcome::Done, now);
    assert_eq!(queue.next_retry(), None);
}

#[test]
fn a_change_cancels_the_backoff() {
    let (mut queue, now) = queue();
    queue.enqueue(&uid("a"));
    queue.pop(now);
    queue.finish(&uid("a"), Outcome::Requeue, now);
    queue.enqueue(&uid("a"));
    assert_eq!(queue.next_retry(), None);
    assert_eq!(queue.pop(now), Some((uid("a"), WorkItem::Reconcile)));
}

#[test]
fn the_limit_holds_across_pods() {
    let mut queue = WorkQueue::<()>::new(2);
    let now = Instant::now();
    for name in ["a", "b", "c"] {
        queue.enqueue(&uid(name));
    }
    assert!(queue.pop(now).is_some() && queue.pop(now).is_some());
    assert_eq!(queue.pop(now), None);
    queue.finish(&uid("a"), Outcome::Done, now);
    queue.finish(&uid("a"), Outcome::Done, now);
    assert_eq!(queue.pop(now), Some((uid("c"), WorkItem::Reconcile)));
    assert_eq!(queue.pop(now), None, "finishing twice frees one worker");
}
