use super::*;

fn uid(name: &str) -> PodUid {
    name.into()
}

fn queue() -> (Reconcile<&'static str>, Instant) {
    (Reconcile::new(8), Instant::now())
}

#[test]
fn touches_of_one_pod_are_one_turn() {
    let (mut queue, now) = queue();
    queue.touch(&uid("a"));
    queue.touch(&uid("a"));
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Look)));
    assert_eq!(queue.next(now), None);
    queue.done(&uid("a"), Outcome::Settled, now);
    assert_eq!(queue.next(now), None);
    assert!(queue.entries.is_empty(), "a settled pod leaves nothing behind");
}

#[test]
fn a_touch_during_a_turn_is_another_turn_afterwards() {
    let (mut queue, now) = queue();
    queue.touch(&uid("a"));
    assert!(queue.next(now).is_some());
    queue.touch(&uid("a"));
    assert_eq!(queue.next(now), None, "one turn at a time per pod");
    queue.done(&uid("a"), Outcome::Settled, now);
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Look)));
}

#[test]
fn the_plugins_request_comes_first_but_not_into_a_running_turn() {
    let (mut queue, now) = queue();
    for name in ["a", "b", "c"] {
        queue.touch(&uid(name));
    }
    queue.add(&uid("d"), "request");
    assert_eq!(queue.next(now), Some((uid("d"), Turn::Add("request"))));
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Look)));
    queue.add(&uid("a"), "late");
    assert_eq!(queue.next(now), Some((uid("b"), Turn::Look)));
    queue.done(&uid("a"), Outcome::Settled, now);
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Add("late"))));
}

#[test]
fn a_touched_pod_that_the_plugin_asks_for_gets_both_turns() {
    let (mut queue, now) = queue();
    queue.touch(&uid("a"));
    queue.add(&uid("a"), "request");
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Add("request"))));
    queue.done(&uid("a"), Outcome::Settled, now);
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Look)));
}

#[test]
fn failures_wait_longer_and_longer_up_to_five_seconds() {
    let (mut queue, mut now) = queue();
    queue.touch(&uid("a"));
    let mut waits = Vec::new();
    for _ in 0..14 {
        assert_eq!(queue.next(now), Some((uid("a"), Turn::Look)));
        queue.done(&uid("a"), Outcome::Retry, now);
        assert_eq!(queue.next(now), None, "not before its time");
        let at = queue.wake_at().unwrap();
        waits.push(at - now);
        now = at;
    }
    assert!((Duration::from_millis(4)..=Duration::from_millis(6)).contains(&waits[0]), "{waits:?}");
    assert!(waits[5] > waits[2] * 3, "{waits:?}");
    assert!((Duration::from_secs(4)..=Duration::from_secs(6)).contains(&waits[13]), "{waits:?}");

    assert!(queue.next(now).is_some());
    queue.done(&uid("a"), Outcome::Settled, now);
    assert_eq!(queue.wake_at(), None);
}

#[test]
fn news_cut_the_wait_short() {
    let (mut queue, now) = queue();
    queue.touch(&uid("a"));
    queue.next(now);
    queue.done(&uid("a"), Outcome::Retry, now);
    queue.touch(&uid("a"));
    assert_eq!(queue.wake_at(), None);
    assert_eq!(queue.next(now), Some((uid("a"), Turn::Look)));
}

#[test]
fn the_limit_holds_across_pods() {
    let mut queue = Reconcile::<()>::new(2);
    let now = Instant::now();
    for name in ["a", "b", "c"] {
        queue.touch(&uid(name));
    }
    assert!(queue.next(now).is_some() && queue.next(now).is_some());
    assert_eq!(queue.next(now), None);
    queue.done(&uid("a"), Outcome::Settled, now);
    queue.done(&uid("a"), Outcome::Settled, now);
    assert_eq!(queue.next(now), Some((uid("c"), Turn::Look)));
    assert_eq!(queue.next(now), None, "a turn that is reported twice frees one place");
}
