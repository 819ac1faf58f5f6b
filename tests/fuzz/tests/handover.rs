//! What one agent hands to its successor, damaged: it is refused, or makes a tunnel that does not panic whatever its peer
//! sends.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use isthmus_fuzz::Choices;
use isthmus_fuzz::resources::damaged;
use isthmus_hbone::handover::{Item, TunnelParts, decode, encode, resume_client_over, resume_server_over};
use isthmus_hbone::server::Server;
use isthmus_hbone::{Head, Settings, client, copy};
use isthmus_proto::handover as proto;
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time::timeout;

/// A message and whether a socket is with it.
type Template = (Vec<u8>, bool);

const STREAMS: usize = 3;
const WAIT: Duration = Duration::from_secs(10);

async fn tcp_pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    Ok((near?, far?.0))
}

/// Both ends of an honest tunnel, with unread bytes and half-closed streams.
async fn honest() -> Option<[Vec<Item>; 2]> {
    let tasks = Tasks::new("honest");
    let (near, far) = tcp_pair().await.ok()?;
    let settings = Settings::default();
    let server = Server::new(far, &settings).ok()?;
    let control = server.control();
    let (drain, watch) = drain::channel();
    let (found, mut requests) = tokio::sync::mpsc::unbounded_channel();
    tasks.spawn("server", async move {
        let _drain = drain;
        let _ = server.serve(watch, |request| drop(found.send(request))).await;
    });
    let tunnel = client::start(near, &settings, &tasks).ok()?;
    let head = Head::new("10.0.0.1:80".parse().ok()?);
    let mut apps = Vec::new();
    for at in 0..STREAMS {
        let accept = async { requests.recv().await?.accept(None).ok() };
        let (near, far) = tokio::join!(tunnel.open(&head), accept);
        for stream in [near.ok()?.0, far?] {
            let (mut app, ours) = tcp_pair().await.ok()?;
            tasks.spawn("copy", async move { copy::tunnel(ours, stream, Arc::new(())).await });
            app.write_all(&vec![7; 1000 * at]).await.ok()?;
            if at == 1 {
                app.shutdown().await.ok()?;
            }
            apps.push(app);
        }
    }
    let server = encode(control.take_apart(WAIT).await.ok()?).ok()?;
    Some([encode(tunnel.take_apart(WAIT).await.ok()?).ok()?, server])
}

/// The messages of both ends, without TLS and with keys.
static TEMPLATES: LazyLock<Vec<Vec<Template>>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build();
    let ends = runtime.ok().and_then(|runtime| runtime.block_on(honest()));
    let ends = ends.unwrap_or_else(|| panic!("no honest tunnel"));
    let mut all = Vec::new();
    for items in ends {
        let plain: Vec<Template> =
            items.into_iter().map(|item| (item.bytes.to_vec(), item.socket.is_some())).collect();
        let mut keyed = plain.clone();
        let mut message = proto::Tunnel::decode(keyed[0].0.as_slice()).unwrap_or_default();
        let direction = || proto::Direction { secret: vec![7; 32], sequence: 9, closed: false };
        message.keys = Some(proto::Keys {
            suite: 0x1301,
            sealer: Some(direction()),
            opener: Some(direction()),
            ..proto::Keys::default()
        });
        keyed[0].0 = message.encode_to_vec();
        all.extend([plain, keyed]);
    }
    all
});

fn items(choices: &mut Choices<'_>) -> Vec<Item> {
    let template = &TEMPLATES[usize::from(choices.byte() % 4)];
    let mut items: Vec<Item> = Vec::new();
    for (bytes, has_socket) in template {
        let socket = (*has_socket != choices.rarely(60)).then(UnixStream::pair);
        let socket = socket.and_then(Result::ok).map(|(socket, _)| socket.into());
        items.push(Item { bytes: damaged(choices, bytes.clone()).into(), socket });
    }
    if choices.rarely(40) {
        items.pop();
    }
    items
}

/// Lets a tunnel run against a peer that sends arbitrary bytes.
async fn run(parts: TunnelParts, bytes: &[u8]) {
    let tasks = Tasks::new("resumed");
    let (near, mut far) = duplex(1 << 20);
    let settings = Settings::default();
    let copies = if parts.role() == isthmus_http2::Role::Client {
        let Ok((tunnel, copies)) = resume_client_over(near, parts, &settings, &tasks) else { return };
        tunnel.close_gracefully();
        copies
    } else {
        let Ok((server, copies)) = resume_server_over(near, parts, &settings) else { return };
        let (drain, watch) = drain::channel();
        tasks.spawn("server", async move {
            let _drain = drain;
            let _ = server.serve(watch, drop).await;
        });
        copies
    };
    let running: Vec<_> = copies
        .into_iter()
        .map(|copy| tasks.spawn("copy", async move { copy.run(Arc::new(())).await }))
        .collect();
    let _ = far.write_all(bytes).await;
    let _ = far.shutdown().await;
    // A clock that is paused passes over every timer of the tunnel.
    let _ = timeout(Duration::from_secs(60), far.read_to_end(&mut Vec::new())).await;
    drop(running);
    tasks.abort_all().await;
}

#[test]
fn damaged_messages_are_refused_or_make_a_tunnel() {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let Ok(parts) = decode(items(&mut choices)) else { return };
        // What was accepted can be handed on.
        let again = encode(parts).unwrap_or_else(|(_, error)| panic!("{error}"));
        let parts = decode(again).unwrap_or_else(|error| panic!("{error}"));
        let rest = choices.bytes(512).to_vec();
        runtime.block_on(run(parts, &rest));
    });
}

#[test]
fn arbitrary_bytes_are_refused() {
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        let item = |bytes: &[u8]| Item { bytes: bytes.to_vec().into(), socket: None };
        assert!(decode(vec![item(bytes)]).is_err());
        assert!(decode(vec![item(&[&[8, 1], bytes].concat())]).is_err());
    });
}

#[test]
fn another_version_is_refused_whatever_follows() {
    let version = |template: &[Template]| -> Vec<Item> {
        let socket = || UnixStream::pair().ok().map(|(socket, _)| socket.into());
        let first = [&[8, 2], template[0].0.as_slice().split_at(2).1].concat();
        let rest = template[1..].iter().map(|(bytes, _)| bytes.clone());
        std::iter::once(first)
            .chain(rest)
            .map(|bytes| Item { bytes: bytes.into(), socket: socket() })
            .collect()
    };
    for template in TEMPLATES.iter() {
        assert_eq!(template[0].0[..2], [8, 1], "the version comes first");
        let refused = decode(version(template)).err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("handover version 2 is not 1"));
    }
}
