//! Whole conversations between a predecessor and a successor, over a socket: what each unit's end is.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isthmus_handover::frame::Frame;
use isthmus_handover::{Item, Left, Listener, Metrics, Prepared, Receiver, Source, Taken, hand_over};
use isthmus_model::PodUid;
use isthmus_rt::BoxFuture;
use isthmus_rt::metrics::Registry;
use isthmus_rt::task::Tasks;
use tokio::time::Instant;
use tokio_seqpacket::UnixSeqpacketListener;

const POD: &str = "pod-1";

/// What has happened to units, in order.
#[derive(Debug, Clone, Default)]
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

struct Units {
    journal: Journal,
    left: Mutex<VecDeque<Vec<Item>>>,
}

struct Unit {
    journal: Journal,
    pod: PodUid,
    items: Vec<Item>,
}

impl Source for Units {
    fn close(&self) {
        self.journal.note("closed");
    }

    fn next<'a>(&'a self, pods: &'a [PodUid]) -> BoxFuture<'a, Option<Box<dyn Taken>>> {
        assert_eq!(pods, [PodUid::from(POD)]);
        let items = self.left.lock().unwrap().pop_front();
        let (journal, pod) = (self.journal.clone(), PodUid::from(POD));
        Box::pin(async { items.map(|items| Box::new(Unit { journal, pod, items }) as Box<dyn Taken>) })
    }
}

impl Taken for Unit {
    fn pod(&self) -> &PodUid {
        &self.pod
    }

    fn items(&self) -> &[Item] {
        &self.items
    }

    fn connections(&self) -> usize {
        1
    }

    fn since(&self) -> std::time::Instant {
        std::time::Instant::now()
    }

    fn release(self: Box<Self>) {
        self.journal.note("released");
    }

    fn restore(self: Box<Self>) {
        self.journal.note("restored");
    }
}

/// Refuses units whose first byte is `r`, and panics the conversation's task at `p`.
struct Pods(Journal);

struct Ready(Journal, Vec<Item>);

impl Receiver for Pods {
    fn pods(&self) -> Vec<PodUid> {
        vec![POD.into()]
    }

    fn prepare(&self, pod: PodUid, items: Vec<Item>) -> BoxFuture<'_, Result<Box<dyn Prepared>, String>> {
        assert_eq!(pod, POD.into());
        let journal = self.0.clone();
        Box::pin(async move {
            match items[0].bytes.first() {
                Some(b'r') => Err("not this one".to_owned()),
                Some(b'p') => panic!("on purpose"),
                _ => Ok(Box::new(Ready(journal, items)) as Box<dyn Prepared>),
            }
        })
    }
}

impl Prepared for Ready {
    fn connections(&self) -> usize {
        1
    }

    /// Answers through the descriptors with what came with them.
    fn run(self: Box<Self>) {
        self.0.note("runs");
        for item in self.1 {
            if let Some(socket) = item.socket {
                UnixStream::from(socket).write_all(&item.bytes).unwrap();
            }
        }
    }
}

async fn conversation(path: &Path, units: Vec<Vec<Item>>, journal: &Journal) -> Left {
    let source = Units { journal: journal.clone(), left: Mutex::new(units.into()) };
    let metrics = Metrics::register(&Registry::default());
    let until = Instant::now() + Duration::from_secs(60);
    hand_over(path, &source, &metrics, "test", until).await
}

fn successor(path: &Path, journal: &Journal) -> Tasks {
    let tasks = Tasks::new("successor");
    let listener = Listener::bind(path).unwrap();
    let metrics = Metrics::register(&Registry::default());
    tasks.spawn("listener", listener.serve(Arc::new(Pods(journal.clone())), metrics));
    tasks
}

fn item(bytes: &[u8]) -> Item {
    Item { bytes: bytes.to_vec().into(), socket: None }
}

#[tokio::test]
async fn units_run_at_the_successor_once_they_are_released() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let path = dir.path().join("h.sock");
    let _successor = successor(&path, &journal);
    // Longer than a packet, and more descriptors than one may carry.
    let long: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut ends, mut items) = (Vec::new(), vec![item(b"head")]);
    for at in 0..150 {
        let (near, far) = UnixStream::pair().unwrap();
        let bytes = if at == 70 { long.clone() } else { vec![b'x', at] };
        items.push(Item { bytes: bytes.clone().into(), socket: Some(far.into()) });
        ends.push((near, bytes));
    }
    let reader = std::thread::spawn(move || {
        for (mut near, bytes) in ends {
            let mut got = vec![0; bytes.len()];
            near.read_exact(&mut got).unwrap();
            assert!(got == bytes);
        }
    });
    let left = conversation(&path, vec![items, vec![item(b"r")], vec![item(b"z")]], &journal).await;
    let Left::Finished(summary) = left else { panic!("{left:?}") };
    assert_eq!((summary.handed_over, summary.returned), (2, 1));
    tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    let both = |first: &str, second: &str| {
        let entries = journal.entries();
        entries.iter().filter(|entry| [first, second].contains(&entry.as_str())).count()
    };
    assert_eq!(journal.entries()[0], "closed");
    assert_eq!((both("runs", "released"), both("restored", "restored")), (4, 1), "{journal:?}");
}

#[tokio::test]
async fn without_a_successor_nothing_is_closed_or_taken() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let path = dir.path().join("h.sock");
    assert!(matches!(conversation(&path, vec![vec![item(b"a")]], &journal).await, Left::NoSuccessor));
    // The socket of an agent that has ended.
    drop(Listener::bind(&path).unwrap());
    assert!(matches!(conversation(&path, vec![vec![item(b"a")]], &journal).await, Left::NoSuccessor));
    assert_eq!(journal.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn a_successor_that_is_lost_before_the_commit_leaves_the_unit_where_it_was() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let path = dir.path().join("h.sock");
    let _successor = successor(&path, &journal);
    let left =
        conversation(&path, vec![vec![item(b"a")], vec![item(b"p")], vec![item(b"b")]], &journal).await;
    let Left::Broken(summary, _) = left else { panic!("{left:?}") };
    assert_eq!((summary.handed_over, summary.returned), (1, 1));
    let entries = journal.entries();
    assert_eq!(entries.iter().filter(|entry| *entry == "restored").count(), 1, "{entries:?}");
    assert_eq!(entries.iter().filter(|entry| *entry == "released").count(), 1, "{entries:?}");
}

/// A successor of another version says so in its first frame.
#[tokio::test]
async fn a_successor_of_another_version_is_given_nothing() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let path = dir.path().join("h.sock");
    let mut listener = UnixSeqpacketListener::bind(&path).unwrap();
    let tasks = Tasks::new("other");
    tasks.spawn("other", async move {
        let socket = listener.accept().await.unwrap();
        let mut wants = Frame::Wants(vec![POD.to_owned()]).encode().to_vec();
        assert_eq!(wants[..2], [8, 1], "the version comes first");
        wants[1] = 2;
        socket.send(&wants).await.unwrap();
        let _ = socket.recv(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    });
    let left = conversation(&path, vec![vec![item(b"a")]], &journal).await;
    let Left::Broken(_, error) = left else { panic!("{left:?}") };
    assert_eq!(error.to_string(), "the other agent's hand-over is of version 2, this one's of 1");
    assert_eq!(journal.entries(), Vec::<String>::new());
}
