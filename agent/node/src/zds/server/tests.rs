use std::path::PathBuf;

use isthmus_kit::wait::eventually_some;
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::metrics::Registry;
use tokio_seqpacket::ancillary::OwnedAncillaryMessage;

use super::*;
use crate::metrics::Metrics;
use crate::zds::DataPlane as _;
use isthmus_model::PodRef;

const HELLO: &[u8] = &[0x08, 0x01];
const ACK: &[u8] = &[0x0a, 0x00];
const END: &[u8] = &[0x1a, 0x00];

struct Server {
    _dir: tempfile::TempDir,
    path: PathBuf,
    agents: AgentRegistry,
    registry: Registry,
    _drain: Drain,
    _tasks: Tasks,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ztunnel.sock");
    let registry = Registry::default();
    let agents = AgentRegistry::new(Metrics::register(&registry));
    let (drain, watch) = drain::channel();
    let tasks = Tasks::new("test");
    tasks.spawn("zds", serve(bind(&path).unwrap(), agents.clone(), watch));
    Server { _dir: dir, path, agents, registry, _drain: drain, _tasks: tasks }
}

/// An agent that speaks raw bytes.
struct Agent(UnixSeqpacket);

impl Agent {
    async fn connect(server: &Server) -> Self {
        let socket = UnixSeqpacket::connect(&server.path).await.unwrap();
        socket.send(HELLO).await.unwrap();
        Self(socket)
    }

    /// A packet and the namespace that came with it; empty at the end.
    async fn recv(&self) -> (Vec<u8>, Option<Netns>) {
        let (mut buffer, mut space) = ([0; 1024], [0; 64]);
        let (info, ancillary) = self
            .0
            .recv_vectored_with_ancillary(&mut [io::IoSliceMut::new(&mut buffer)], &mut space)
            .await
            .unwrap();
        let netns = ancillary.into_messages().find_map(|message| match message {
            OwnedAncillaryMessage::FileDescriptors(mut fds) => {
                assert_eq!(fds.len(), 1, "exactly one descriptor");
                fds.next().map(|fd| Netns::from_fd(fd).unwrap())
            }
            _ => None,
        });
        (buffer[..info.bytes_read()].to_vec(), netns)
    }

    async fn ack(&self) {
        self.0.send(ACK).await.unwrap();
    }

    /// Reads and acks an empty snapshot.
    async fn empty_snapshot(&self) {
        assert_eq!(self.recv().await.0, END);
        self.ack().await;
    }
}

fn pod(uid: &str) -> PodRef {
    PodRef { uid: uid.into(), name: "n".into(), namespace: "s".into(), service_account: "a".into() }
}

fn add_packet(uid: u8) -> Vec<u8> {
    vec![0x0a, 0x0e, 0x0a, 1, uid, 0x12, 9, 0x0a, 1, b'n', 0x12, 1, b's', 0x1a, 1, b'a']
}

fn deadline() -> Instant {
    Instant::now() + ACK_TIMEOUT
}

fn here() -> Netns {
    Netns::current().unwrap()
}

#[tokio::test]
async fn a_pod_is_added_with_its_namespace_and_removed() {
    let server = server();
    let agent = Agent::connect(&server).await;
    agent.empty_snapshot().await;
    server.agents.synced().await;
    assert!(server.registry.encode().unwrap().contains("ztunnel_connected 1"));

    let served = async {
        let (packet, netns) = agent.recv().await;
        assert_eq!(packet, add_packet(b'u'));
        assert_eq!(netns.unwrap().id(), here().id());
        agent.ack().await;
    };
    let the_pod = pod("u");
    let (added, ()) = tokio::join!(server.agents.add(&the_pod, here(), deadline()), served);
    assert_eq!(added, Ok(()));

    let removed = async {
        assert_eq!(agent.recv().await.0, [0x12, 3, 0x12, 1, b'u']);
        agent.ack().await;
    };
    let uid = "u".into();
    tokio::join!(server.agents.del(&uid), removed);

    // The snapshot of a new agent does not name it any more.
    Agent::connect(&server).await.empty_snapshot().await;
}

#[tokio::test]
async fn a_snapshot_names_every_pod_and_adds_go_to_the_newest_agent() {
    let server = server();
    server.agents.adopt(&pod("a"), Some(here()));
    server.agents.adopt(&pod("b"), None);
    let old = Agent::connect(&server).await;
    let (packet, netns) = old.recv().await;
    assert_eq!((packet, netns.map(|netns| netns.id())), (add_packet(b'a'), Some(here().id())));
    old.ack().await;
    assert_eq!(old.recv().await.0, [0x2a, 3, 0x0a, 1, b'b']);
    old.ack().await;
    old.empty_snapshot().await;
    server.agents.synced().await;

    let new = Agent::connect(&server).await;
    for _ in 0..3 {
        assert!(!new.recv().await.0.is_empty());
        new.ack().await;
    }
    server.agents.synced().await;

    let served = async {
        assert_eq!(new.recv().await.0, add_packet(b'c'));
        new.ack().await;
    };
    let the_pod = pod("c");
    let (added, ()) = tokio::join!(server.agents.add(&the_pod, here(), deadline()), served);
    assert_eq!(added, Ok(()));

    // A removed pod is removed everywhere; the old agent was never sent c, so this is its next packet.
    let removed = async {
        for agent in [&old, &new] {
            assert_eq!(agent.recv().await.0, [0x12, 3, 0x12, 1, b'c']);
            agent.ack().await;
        }
    };
    let uid = "c".into();
    tokio::join!(server.agents.del(&uid), removed);

    // When the newest agent disconnects, adds go to its predecessor again.
    drop(new);
    let the_pod = pod("d");
    let served = async {
        assert_eq!(old.recv().await.0, add_packet(b'd'));
        old.ack().await;
    };
    let adding = async {
        // Until the disconnect is noticed the add fails, and the caller retries.
        let added = async || server.agents.add(&the_pod, here(), deadline()).await.ok();
        eventually_some(added, || "the add fails although an agent is connected".to_owned()).await;
    };
    tokio::join!(adding, served);
}

#[tokio::test]
async fn without_an_agent_an_add_fails_but_the_next_snapshot_names_the_pod() {
    let server = server();
    let the_pod = pod("u");
    assert_eq!(server.agents.add(&the_pod, here(), deadline()).await, Err(AgentError::NotConnected));
    let agent = Agent::connect(&server).await;
    assert_eq!(agent.recv().await.0, add_packet(b'u'));
}

#[tokio::test]
async fn a_nack_or_disconnect_fails_the_add() {
    let server = server();
    let agent = Agent::connect(&server).await;
    agent.empty_snapshot().await;
    server.agents.synced().await;
    let the_pod = pod("u");
    let refuse = async {
        agent.recv().await;
        agent.0.send(&[0x0a, 0x04, 0x0a, 0x02, b'n', b'o']).await.unwrap();
    };
    let (added, ()) = tokio::join!(server.agents.add(&the_pod, here(), deadline()), refuse);
    assert_eq!(added, Err(AgentError::Refused("no".to_owned())));

    let leave = async move {
        agent.recv().await;
        drop(agent);
    };
    let (added, ()) = tokio::join!(server.agents.add(&the_pod, here(), deadline()), leave);
    assert!(matches!(added, Err(AgentError::Disconnected(_))), "{added:?}");
}

#[tokio::test]
async fn an_invalid_packet_ends_only_its_connection() {
    let server = server();
    for garbage in [&[0xff, 0xff][..], &[0x08, 0x07], &[0; MAX_PACKET + 1]] {
        let socket = UnixSeqpacket::connect(&server.path).await.unwrap();
        socket.send(garbage).await.unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).await.unwrap().bytes_read(), 0, "closed");
    }
    Agent::connect(&server).await.empty_snapshot().await;
}
