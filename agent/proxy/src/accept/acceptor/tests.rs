use std::net::SocketAddr;

use isthmus_kit::wait::eventually_some;
use isthmus_sys::socket::{Sockets, Transparent};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::accept::HandshakeSlots;
use crate::types::Direction;
use isthmus_rt::descriptors::DescriptorBudget;
use isthmus_rt::drain;
use isthmus_rt::fair::FairScheduler;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

fn admission(budget: &DescriptorBudget, handshakes: Option<usize>) -> Admission {
    Admission {
        share: FairScheduler::default().share(),
        descriptors: budget.share(|_| ()),
        handshakes: handshakes.map(|slots| HandshakeSlots::new(slots, Duration::from_secs(3600))),
        metrics: Arc::default(),
        direction: Direction::Inbound,
    }
}

async fn acceptor(limit: Option<usize>) -> (Acceptor, SocketAddr, drain::Drain) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, watch) = drain::channel();
    let bound = BoundListener::from_tokio(listener, false);
    (
        Acceptor {
            bound,
            name: "test",
            owner: "pod".into(),
            share: FairScheduler::default().share(),
            admission: admission(&DescriptorBudget::unlimited(), limit),
            threads: Threads::current(),
            placement: Placement::Here,
            drain: watch.clone(),
            process: watch,
        },
        address,
        drain,
    )
}

#[tokio::test]
async fn a_drain_closes_the_listener_and_waits_for_the_connections() {
    let (acceptor, address, drain) = acceptor(None).await;
    let served = acceptor.run(|mut accepted, watch| async move {
        let mut byte = [0];
        // The probes below close without sending a byte.
        if accepted.stream.read_exact(&mut byte).await.is_ok() {
            accepted.stream.write_all(&byte).await.unwrap();
        }
        drop(watch);
    });
    let client = async {
        let mut open = TcpStream::connect(address).await.unwrap();
        let stop = drain.shutdown(Duration::from_secs(60));
        let finish = async {
            // The listener is closed while the connection is open.
            let refused = async || TcpStream::connect(address).await.err();
            eventually_some(refused, || "connections are still accepted".to_owned()).await;
            open.write_all(b"x").await.unwrap();
            let mut byte = [0];
            open.read_exact(&mut byte).await.unwrap();
            byte
        };
        tokio::join!(stop, finish)
    };
    let ((), (outcome, byte)) = tokio::join!(served, client);
    assert_eq!((outcome, byte), (drain::Outcome::Drained, *b"x"));
}

/// During an upgrade, connections in the queue of the old listener are served by it and not reset.
#[tokio::test]
async fn connections_in_the_backlog_of_a_closing_listener_are_served() {
    const WAITING: usize = 50;
    let sockets = Sockets::host().with_ipv6(false).with_reuse_port(true);
    let (listener, _) = sockets.listen(([127, 0, 0, 1], 0).into(), Transparent::Never).unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, watch) = drain::channel();
    let bound = BoundListener::from_tokio(listener, false);
    let share = FairScheduler::default().share();
    let (threads, placement) = (Threads::current(), Placement::Here);
    let (name, owner) = ("test", "pod".into());
    let admission = admission(&DescriptorBudget::unlimited(), None);
    let process = watch.clone();
    let acceptor =
        Acceptor { bound, name, owner, share, admission, threads, placement, drain: watch, process };
    let (seen, mut arrivals) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    let mut clients = Vec::new();
    for _ in 0..WAITING {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    let (_other, _) = sockets.listen(address, Transparent::Never).unwrap();
    let mut end = Box::pin(drain.shutdown(Duration::from_secs(60)));
    assert!(futures_util::poll!(&mut end).is_pending());
    // Its loop ends before it accepts one: all are in the queue.
    tasks.spawn(
        "acceptor",
        acceptor.run(move |accepted, watch| {
            seen.send((accepted, watch)).unwrap();
            std::future::ready(())
        }),
    );
    let mut served = Vec::new();
    while served.len() < WAITING {
        tokio::select! {
            _ = &mut end => panic!("the drain did not wait for the connections"),
            accepted = arrivals.recv() => served.push(accepted.unwrap()),
        }
    }
    for (accepted, _) in &mut served {
        accepted.stream.write_all(b"x").await.unwrap();
    }
    for client in &mut clients {
        client.read_exact(&mut [0]).await.expect("it was reset");
    }
    drop(served);
    assert_eq!(end.await, drain::Outcome::Drained);
}

#[tokio::test]
async fn a_connection_waits_in_its_task_until_it_has_a_handshake_slot() {
    let (acceptor, address, drain) = acceptor(Some(1)).await;
    let (seen, mut arrivals) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    tasks.spawn(
        "acceptor",
        acceptor.run(move |accepted, _watch| {
            seen.send(accepted).unwrap();
            std::future::ready(())
        }),
    );
    let _clients = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
    let first = arrivals.recv().await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(100), arrivals.recv()).await;
    assert!(waits.is_err(), "the first one has the slot");
    drop(first.slot);
    assert!(arrivals.recv().await.is_some());
    drop(drain);
}

#[tokio::test(start_paused = true)]
async fn errors_of_accept_are_retried() {
    // A connected, readable socket in place of a listener: every accept fails with EINVAL.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    io::Write::write_all(&mut client, b"x").unwrap();
    let broken = std::os::fd::OwnedFd::from(listener.accept().unwrap().0);
    let bound = BoundListener::from_std(broken.into(), false).unwrap();
    assert_eq!(bound.accept().await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let (drain, watch) = drain::channel();
    let acceptor = Acceptor {
        bound,
        name: "test",
        owner: "pod".into(),
        share: FairScheduler::default().share(),
        admission: admission(&DescriptorBudget::unlimited(), None),
        threads: Threads::current(),
        placement: Placement::Here,
        drain: watch.clone(),
        process: watch,
    };
    let mut run = std::pin::pin!(acceptor.run(|_, _| std::future::ready(())));
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, &mut run).await.is_err(), "it still retries");
    let (outcome, ()) = tokio::join!(drain.shutdown(minute), run);
    assert_eq!(outcome, drain::Outcome::Drained);
}

#[tokio::test]
async fn with_destination_sets_the_original_destination() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bound = BoundListener::from_std(listener, false).unwrap();
    let address = bound.local_addr().unwrap();
    let _client = TcpStream::connect(address).await.unwrap();
    assert_eq!(bound.accept().await.unwrap().original, address);
    let elsewhere = "10.0.0.1:80".parse().unwrap();
    let bound = bound.with_destination(elsewhere);
    let _client = TcpStream::connect(address).await.unwrap();
    assert_eq!(bound.accept().await.unwrap().original, elsewhere);
}

/// A client beyond the pod's share is refused at once, and the others are served on.
#[tokio::test]
async fn a_connection_beyond_the_pods_descriptors_is_reset() {
    let (acceptor, address, drain) = acceptor(None).await;
    let budget = DescriptorBudget::new(100, 2);
    let acceptor = Acceptor { admission: admission(&budget, None), ..acceptor };
    let (seen, mut arrivals) = mpsc::unbounded_channel();
    let tasks = Tasks::new("test");
    tasks.spawn(
        "acceptor",
        acceptor.run(move |accepted, _watch| {
            seen.send(accepted).unwrap();
            std::future::ready(())
        }),
    );
    let _clients = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
    let (first, _second) = (arrivals.recv().await.unwrap(), arrivals.recv().await.unwrap());
    let mut third = TcpStream::connect(address).await.unwrap();
    let error = third.read(&mut [0]).await.unwrap_err();
    assert_eq!((error.kind(), budget.used()), (io::ErrorKind::ConnectionReset, 2));
    drop(first);
    let _fourth = TcpStream::connect(address).await.unwrap();
    assert!(arrivals.recv().await.is_some());
    drop(drain);
}
