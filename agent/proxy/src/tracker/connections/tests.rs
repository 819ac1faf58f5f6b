use super::*;

fn conn(port: u16) -> Connection {
    Connection {
        src: ([10, 0, 0, 1], port).into(),
        original_dst: None,
        actual_dst: ([10, 0, 0, 2], 80).into(),
        protocol: Carrier::Hbone,
    }
}

fn facts(port: u16) -> Facts {
    Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], port).into() }
}

fn refusal() -> Refusal {
    Refusal { policy: Some("ns/p".into()), reason: "refused".into() }
}

/// Whether it was told to close by now.
async fn told(tracked: &mut Tracked) -> bool {
    tokio::select! {
        biased;
        why = tracked.refused() => why == refusal(),
        () = std::future::ready(()) => false,
    }
}

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_change_closes_what_it_refuses_and_nothing_else() {
    let table = Connections::default();
    let (mut kept, mut cut) = (table.inbound(conn(1), facts(80)), table.inbound(conn(2), facts(81)));
    let outbound = table.outbound(conn(3));
    let judge = |facts: &Facts| match facts.destination.port() {
        81 => Verdict::Refused(refusal()),
        _ => Verdict::Allowed,
    };
    assert_eq!(table.recheck(judge, GRACE).await, Rechecked { refused: 1, next: None });
    assert!(told(&mut cut).await);
    assert_eq!(table.snapshot(), ConnectionsSnapshot { inbound: vec![conn(1)], outbound: vec![conn(3)] });
    assert_eq!(table.recheck(judge, GRACE).await.refused, 0, "it is told once");
    assert!(!told(&mut kept).await);
    drop((kept, cut, outbound));
    assert_eq!(table.snapshot(), ConnectionsSnapshot::default());
}

#[tokio::test(start_paused = true)]
async fn what_is_undecided_stays_for_a_while_and_a_verdict_ends_the_wait() {
    let table = Connections::default();
    let mut open = table.inbound(conn(1), facts(80));
    let undecided = |_: &Facts| Verdict::Undecided(refusal());
    let begun = Instant::now();
    let first = table.recheck(undecided, GRACE).await;
    assert_eq!(first, Rechecked { refused: 0, next: Some(begun + GRACE) });
    // One that comes later has its own time.
    tokio::time::advance(GRACE / 2).await;
    let mut later = table.inbound(conn(2), facts(80));
    assert_eq!(table.recheck(undecided, GRACE).await.next, Some(begun + GRACE));
    tokio::time::advance(GRACE / 2).await;
    let second = table.recheck(undecided, GRACE).await;
    assert_eq!(second, Rechecked { refused: 1, next: Some(begun + GRACE * 3 / 2) });
    assert!(told(&mut open).await && !told(&mut later).await);
    // What is allowed once begins anew.
    assert_eq!(table.recheck(|_| Verdict::Allowed, GRACE).await, Rechecked::default());
    let third = table.recheck(undecided, GRACE).await;
    assert_eq!(third, Rechecked { refused: 0, next: Some(begun + GRACE * 2) });
    assert!(!told(&mut later).await);
}

#[tokio::test]
async fn a_long_look_through_the_table_keeps_nobody_waiting() {
    let table = Connections::default();
    let open: Vec<_> = (0..200).map(|port| table.inbound(conn(1), facts(port))).collect();
    let slow = |_: &Facts| {
        let until = std::time::Instant::now() + SLICE / 2;
        while std::time::Instant::now() < until {}
        Verdict::Refused(refusal())
    };
    let turns = std::cell::Cell::new(0);
    let others = async {
        loop {
            turns.set(turns.get() + 1);
            yield_now().await;
        }
    };
    tokio::select! {
        biased;
        done = table.recheck(slow, GRACE) => assert_eq!(done.refused, 200),
        () = others => {}
    }
    // A turn at the latest after every other connection, but for the last.
    assert!(turns.get() >= 50, "{}", turns.get());
    drop(open);
}

#[tokio::test]
async fn connections_that_look_the_same_are_judged_once() {
    let table = Connections::default();
    let open: Vec<_> = (0..1000).map(|at| table.inbound(conn(at), facts(at % 2))).collect();
    let judged = std::cell::Cell::new(0);
    let judge = |_: &Facts| {
        judged.set(judged.get() + 1);
        Verdict::Refused(refusal())
    };
    assert_eq!(table.recheck(judge, GRACE).await.refused, open.len());
    assert_eq!(judged.get(), 2);
}
