//! The `h2` crate's ends.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use tokio::io::DuplexStream;
use tokio::task::JoinSet;

/// Reproducible bytes.
pub(crate) fn bytes(seed: usize, count: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed as u64);
    (0..count).map(|_| rng.u8(..)).collect()
}

/// The connection of an h2 client, driven until it ends.
pub(crate) struct H2Connection(JoinSet<Result<(), h2::Error>>);

impl H2Connection {
    pub(crate) async fn finish(mut self) -> Result<(), h2::Error> {
        self.0.join_next().await.unwrap().unwrap()
    }
}

pub(crate) async fn h2_client(io: DuplexStream, window: u32) -> (SendRequest<Bytes>, H2Connection) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(65_535);
    let (sender, connection) = builder.handshake(io).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    (sender, H2Connection(tasks))
}

pub(crate) type Opened = (h2::client::ResponseFuture, SendStream<Bytes>);

pub(crate) async fn connect(sender: &mut SendRequest<Bytes>, labels: &[(&'static str, &str)]) -> Opened {
    std::future::poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let mut request = http::Request::connect("10.0.0.1:80").body(()).unwrap();
    for (name, value) in labels {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    sender.send_request(request, false).unwrap()
}

/// What can be sent now; `poll_capacity` alone reports changes only.
async fn capacity(send: &mut SendStream<Bytes>) -> Option<usize> {
    while send.capacity() == 0 {
        std::future::poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
    }
    Some(send.capacity())
}

/// Sends bytes and END_STREAM, and receives until the peer's.
pub(crate) async fn exchange(
    (response, mut send): Opened,
    sent: Vec<u8>,
) -> Result<(http::response::Parts, Vec<u8>), h2::Error> {
    let sending = async {
        let mut rest = Bytes::from(sent);
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let Some(room) = capacity(&mut send).await else { return };
            if send.send_data(rest.split_to(room.min(rest.len())), false).is_err() {
                return;
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    };
    let receiving = async {
        let (head, mut body) = response.await?.into_parts();
        let mut received = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            received.extend_from_slice(&data);
            let _ = body.flow_control().release_capacity(data.len());
        }
        Ok((head, received))
    };
    tokio::join!(sending, receiving).1
}

/// An h2 server that echoes, and ends gracefully after this many requests.
pub(crate) async fn h2_echo(io: DuplexStream, window: u32, shutdown_after: Option<usize>) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(65_535);
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    let (mut tasks, mut count) = (JoinSet::new(), 0);
    while let Some(accepted) = connection.accept().await {
        let Ok((request, mut respond)) = accepted else { break };
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&http::Method::CONNECT, "10.0.0.1:80")
        );
        let mut response = http::Response::new(());
        for (name, value) in request.headers() {
            response.headers_mut().append(name, value.clone());
        }
        let send = respond.send_response(response, false).unwrap();
        tasks.spawn(echo(request.into_body(), send));
        count += 1;
        if shutdown_after == Some(count) {
            connection.graceful_shutdown();
        }
    }
    tasks.join_all().await;
}

async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) {
    while let Some(Ok(mut data)) = body.data().await {
        let length = data.len();
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let Some(room) = capacity(&mut send).await else { return };
            send.send_data(data.split_to(room.min(data.len())), false).unwrap();
        }
        let _ = body.flow_control().release_capacity(length);
    }
    let _ = send.send_data(Bytes::new(), true);
}
