//! What a process accounts for stays in it, and is charged anew where the tunnel goes on.

use std::time::Duration;

use isthmus_hbone::handover::{Control, resume_client_over, resume_server_over};
use isthmus_hbone::server::{Request, Server};
use isthmus_hbone::{Head, MemoryBudget, Settings, Stream, client};
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::hold::{copied, resumed};
use crate::{DEADLINE, tcp_pair};

const MIB: usize = 1024 * 1024;
/// Less than an application that goes on sending is read from.
const SOON: Duration = Duration::from_secs(2);

fn head() -> Head {
    Head::new("10.0.0.1:80".parse().unwrap())
}

fn within(memory: &MemoryBudget) -> Settings {
    Settings { connection_window: 2 << 20, memory: memory.clone(), ..Settings::default() }
}

/// Serves a tunnel whose streams are passed on.
fn serve(server: Server<DuplexStream>, tasks: &Tasks) -> (Control, mpsc::UnboundedReceiver<Stream>, Drain) {
    let control = server.control();
    let (drain, watch) = drain::channel();
    let (accepted, streams) = mpsc::unbounded_channel();
    tasks.spawn("server", async move {
        let accept = |request: Request| {
            let _ = accepted.send(request.accept(None).unwrap());
        };
        let _ = server.serve(watch, accept).await;
    });
    (control, streams, drain)
}

#[tokio::test]
async fn memory_is_charged_where_the_tunnel_goes_on() {
    let (near, far) = duplex(100_000);
    let tasks = Tasks::new("test");
    let small = MemoryBudget::new(MIB);
    let tunnel = client::start(near, &Settings::default(), &tasks).unwrap();
    let (control, mut streams, _drain) = serve(Server::new(far, &within(&small)).unwrap(), &tasks);
    let (mut sender, _) = tunnel.open(&head()).await.unwrap();
    let ((mut app, ours), (done, _)) = (tcp_pair().await, mpsc::unbounded_channel());
    tasks.spawn("copy", copied(ours, streams.recv().await.unwrap(), done));
    let few = small.used();
    assert!(few < MIB / 3, "{small:?}");

    let (io, parts) = control.take_apart(DEADLINE).await.unwrap().take_transport::<DuplexStream>().unwrap();
    assert_eq!(small.used(), 0, "returned");
    let large = MemoryBudget::new(64 * MIB);
    let (server, copies) = resume_server_over(io, parts, &within(&large)).unwrap();
    assert!(large.used() > MIB, "the window that the other budget did not allow: {large:?}");
    let (_control, _streams, _drain) = serve(server, &tasks);
    for copy in copies {
        let (done, _) = mpsc::unbounded_channel();
        tasks.spawn("copy", resumed(copy, done));
    }
    timeout(DEADLINE, sender.send(b"on")).await.unwrap().unwrap();
    let mut bytes = [0; 2];
    timeout(DEADLINE, app.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"on");
}

#[tokio::test]
async fn an_application_that_lingers_keeps_no_tunnel() {
    let (near, far) = duplex(100_000);
    let tasks = Tasks::new("test");
    let tunnel = client::start(near, &Settings::default(), &tasks).unwrap();
    let (_control, mut streams, _drain) = serve(Server::new(far, &Settings::default()).unwrap(), &tasks);
    let (stream, _) = tunnel.open(&head()).await.unwrap();
    let ((mut app, ours), (done, _)) = (tcp_pair().await, mpsc::unbounded_channel());
    tasks.spawn("copy", copied(ours, stream, done));
    // It has said all, and wants no more.
    let mut served = streams.recv().await.unwrap();
    served.finish().unwrap();
    drop(served);
    assert_eq!(timeout(DEADLINE, app.read(&mut [0; 8])).await.unwrap().unwrap(), 0, "a FIN");
    app.write_all(b"late").await.unwrap();

    let parts = timeout(SOON, tunnel.take_apart(DEADLINE)).await.expect("waits for what lingers").unwrap();
    assert_eq!(parts.streams().count(), 0);
    let (io, parts) = parts.take_transport::<DuplexStream>().unwrap();
    let (tunnel, copies) = resume_client_over(io, parts, &Settings::default(), &tasks).unwrap();
    assert!(copies.is_empty());
    timeout(DEADLINE, tunnel.open(&head())).await.unwrap().unwrap();
    // It is still read from.
    app.write_all(b"later").await.unwrap();
    drop(app);
}
