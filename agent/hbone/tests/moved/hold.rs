//! The process that holds a tunnel: the first one, and each that it is moved to. All do the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::client::Tunnel;
use isthmus_hbone::copy::{self, CopyOutcome};
use isthmus_hbone::handover::{self, Control, ResumedCopy, TunnelParts, resume_client, resume_server};
use isthmus_hbone::server::{Request, Server};
use isthmus_hbone::{Settings, Transport};
use isthmus_http2::Role;
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// How long a tunnel may take to come to rest.
const LIMIT: Duration = Duration::from_secs(10);

/// How a connection ended: bytes sent and received, and the error's text.
pub(crate) type End = (u64, u64, String);

pub(crate) enum Handle {
    Client(Tunnel),
    Server(Control),
}

/// A running tunnel with its copies.
pub(crate) struct Held {
    pub(crate) handle: Handle,
    tasks: Tasks,
    drain: drain::Drain,
    done: Done,
    outcomes: mpsc::UnboundedReceiver<(u32, CopyOutcome)>,
    /// Connections that have ended.
    pub(crate) ended: BTreeMap<u32, End>,
}

impl Held {
    pub(crate) fn client(transport: impl Transport, settings: &Settings) -> Self {
        let tasks = Tasks::new("held");
        let tunnel = isthmus_hbone::client::start(transport, settings, &tasks).unwrap();
        let (done, outcomes) = mpsc::unbounded_channel();
        let (drain, _) = drain::channel();
        Self { handle: Handle::Client(tunnel), tasks, drain, done, outcomes, ended: BTreeMap::new() }
    }

    pub(crate) fn server(transport: impl Transport<Io = TcpStream>, settings: &Settings) -> Self {
        Self::serve(Server::new(transport, settings).unwrap(), Tasks::new("held"))
    }

    /// Each request leads to the application at its authority.
    fn serve(server: Server<TcpStream>, tasks: Tasks) -> Self {
        let (drain, watch) = drain::channel();
        let (done, outcomes) = mpsc::unbounded_channel();
        let control = server.control();
        let (spawner, report) = (tasks.clone(), done.clone());
        tasks.spawn("server", async move {
            let _ = server
                .serve(watch, |request| {
                    spawner.spawn("request", answer(request, report.clone()));
                })
                .await;
        });
        Self { handle: Handle::Server(control), tasks, drain, done, outcomes, ended: BTreeMap::new() }
    }

    pub(crate) fn resume(parts: TunnelParts, settings: &Settings) -> Self {
        let tasks = Tasks::new("held");
        let (held, copies) = if parts.role() == Role::Client {
            let (tunnel, copies) = resume_client(parts, settings, &tasks).unwrap();
            let (done, outcomes) = mpsc::unbounded_channel();
            let (drain, _) = drain::channel();
            let handle = Handle::Client(tunnel);
            (Self { handle, tasks, drain, done, outcomes, ended: BTreeMap::new() }, copies)
        } else {
            let (server, copies) = resume_server(parts, settings).unwrap();
            (Self::serve(server, tasks), copies)
        };
        for copy in copies {
            held.tasks.spawn("copy", resumed(copy, held.done.clone()));
        }
        held
    }

    /// Copies between an application and a stream.
    pub(crate) fn copy(&self, app: TcpStream, stream: isthmus_hbone::Stream) {
        self.tasks.spawn("copy", copied(app, stream, self.done.clone()));
    }

    pub(crate) async fn take_apart(&mut self) -> TunnelParts {
        let parts = match &self.handle {
            Handle::Client(tunnel) => tunnel.take_apart(LIMIT).await,
            Handle::Server(control) => control.take_apart(LIMIT).await,
        };
        let parts = parts.unwrap();
        self.collect(parts.streams().count()).await;
        parts
    }

    /// Takes note of the connections that have ended, of which `moved` go on.
    pub(crate) async fn collect(&mut self, mut moved: usize) {
        while moved > 0 {
            let (id, outcome) = self.outcomes.recv().await.unwrap();
            if outcome.is_handed_over() {
                moved -= 1;
            } else {
                self.note(id, &outcome);
            }
        }
        while let Ok((id, outcome)) = self.outcomes.try_recv() {
            self.note(id, &outcome);
        }
    }

    /// Waits until as many connections have ended as there were.
    pub(crate) async fn wait(&mut self, connections: usize) {
        while self.ended.len() < connections {
            let (id, outcome) = self.outcomes.recv().await.unwrap();
            self.note(id, &outcome);
        }
    }

    fn note(&mut self, id: u32, outcome: &CopyOutcome) {
        assert!(!outcome.is_handed_over(), "stream {id} stopped");
        let error = outcome.error.as_ref().map(ToString::to_string).unwrap_or_default();
        let before = self.ended.insert(id, (outcome.sent, outcome.received, error));
        assert!(before.is_none(), "stream {id} ended twice");
    }

    /// Keeps the drain from ending, as long as the tunnel is held.
    pub(crate) fn keep(&self) -> &drain::Drain {
        &self.drain
    }
}

/// Reports how connections end.
pub(crate) type Done = mpsc::UnboundedSender<(u32, CopyOutcome)>;

pub(crate) async fn copied(app: TcpStream, stream: isthmus_hbone::Stream, done: Done) {
    let id = stream.id();
    let _ = done.send((id, copy::tunnel(app, stream, Arc::new(())).await));
}

pub(crate) async fn answer(request: Request, done: Done) {
    let target: SocketAddr = request.head.as_ref().unwrap().authority.to_string().parse().unwrap();
    let app = TcpStream::connect(target).await.unwrap();
    app.set_nodelay(true).unwrap();
    let Ok(stream) = request.accept(None) else { return };
    copied(app, stream, done).await;
}

pub(crate) async fn resumed(copy: ResumedCopy, done: Done) {
    let id = copy.stream();
    let _ = done.send((id, copy.run(Arc::new(())).await.unwrap()));
}

/// Encodes and decodes.
pub(crate) fn through_bytes(parts: TunnelParts) -> TunnelParts {
    handover::decode(handover::encode(parts).unwrap()).unwrap()
}
