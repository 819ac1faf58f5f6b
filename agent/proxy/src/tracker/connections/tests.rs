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

/// Whether a recheck has denied the connection by now.
async fn is_denied(tracked: &mut Tracked) -> bool {
    tokio::select! {
        biased;
        reason = tracked.denied() => reason == refusal(),
        () = std::future::ready(()) => false,
    }
}

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_recheck_closes_only_denied_connections() {
    let table = Connections::default();
    let (mut kept, mut cut) = (table.inbound(conn(1), facts(80)), table.inbound(conn(2), facts(81)));
    let outbound = table.outbound(conn(3));
    let evaluate = |facts: &Facts| match facts.destination.port() {
        81 => RecheckOutcome::Denied(refusal()),
        _ => RecheckOutcome::Allowed,
    };
    assert_eq!(table.recheck(evaluate, GRACE).await, RecheckSummary { closed: 1, next: None });
    assert!(is_denied(&mut cut).await);
    assert_eq!(table.snapshot(), ConnectionsSnapshot { inbound: vec![conn(1)], outbound: vec![conn(3)] });
    assert_eq!(table.recheck(evaluate, GRACE).await.closed, 0, "closed once");
    assert!(!is_denied(&mut kept).await);
    drop((kept, cut, outbound));
    assert_eq!(table.snapshot(), ConnectionsSnapshot::default());
}

#[tokio::test(start_paused = true)]
async fn a_pending_connection_is_closed_after_its_grace_period_and_allowing_it_resets_that() {
    let table = Connections::default();
    let mut open = table.inbound(conn(1), facts(80));
    let pending = |_: &Facts| RecheckOutcome::Pending(refusal());
    let start = Instant::now();
    let first = table.recheck(pending, GRACE).await;
    assert_eq!(first, RecheckSummary { closed: 0, next: Some(start + GRACE) });
    // A later connection has its own grace period.
    tokio::time::advance(GRACE / 2).await;
    let mut later = table.inbound(conn(2), facts(80));
    assert_eq!(table.recheck(pending, GRACE).await.next, Some(start + GRACE));
    tokio::time::advance(GRACE / 2).await;
    let second = table.recheck(pending, GRACE).await;
    assert_eq!(second, RecheckSummary { closed: 1, next: Some(start + GRACE * 3 / 2) });
    assert!(is_denied(&mut open).await && !is_denied(&mut later).await);
    // Being allowed resets the grace period.
    assert_eq!(table.recheck(|_| RecheckOutcome::Allowed, GRACE).await, RecheckSummary::default());
    let third = table.recheck(pending, GRACE).await;
    assert_eq!(third, RecheckSummary { closed: 0, next: Some(start + GRACE * 2) });
    assert!(!is_denied(&mut later).await);
}

#[tokio::test]
async fn a_long_recheck_yields_to_other_tasks() {
    let table = Connections::default();
    let open: Vec<_> = (0..200).map(|port| table.inbound(conn(1), facts(port))).collect();
    let slow = |_: &Facts| {
        let until = std::time::Instant::now() + TIME_SLICE / 2;
        while std::time::Instant::now() < until {}
        RecheckOutcome::Denied(refusal())
    };
    let polls = std::cell::Cell::new(0);
    let others = async {
        loop {
            polls.set(polls.get() + 1);
            yield_now().await;
        }
    };
    tokio::select! {
        biased;
        done = table.recheck(slow, GRACE) => assert_eq!(done.closed, 200),
        () = others => {}
    }
    // The recheck yields at least once per two connections.
    assert!(polls.get() >= 50, "{}", polls.get());
    drop(open);
}

#[tokio::test]
async fn equal_facts_are_evaluated_once() {
    let table = Connections::default();
    let open: Vec<_> = (0..1000).map(|at| table.inbound(conn(at), facts(at % 2))).collect();
    let evaluated = std::cell::Cell::new(0);
    let evaluate = |_: &Facts| {
        evaluated.set(evaluated.get() + 1);
        RecheckOutcome::Denied(refusal())
    };
    assert_eq!(table.recheck(evaluate, GRACE).await.closed, open.len());
    assert_eq!(evaluated.get(), 2);
}
