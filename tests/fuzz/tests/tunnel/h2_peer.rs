//! The `h2` crate's end of a tunnel, in both roles.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::end::{self, End, Input, Out, Stop};
use crate::{Plan, Report};

struct H2Stream(SendStream<Bytes>, RecvStream);

/// Answers every CONNECT in the background.
pub(crate) fn serve(
    transport: DuplexStream,
    plan: &Plan,
    tasks: &Tasks,
    report: &mpsc::UnboundedSender<Report>,
) {
    let (plan, own, report) = (plan.clone(), tasks.clone(), report.clone());
    tasks.spawn("h2 server", async move {
        let builder = h2::server::Builder::new().initial_window_size(plan.window).handshake(transport);
        let mut connection = builder.await.unwrap_or_else(|error| panic!("{error}"));
        while let Some(accepted) = connection.accept().await {
            let Ok((request, mut respond)) = accepted else { return };
            let port = request.uri().port_u16().unwrap_or(0);
            let (plan, report) = (plan.clone(), report.clone());
            own.spawn("application", async move {
                // The client may have given up.
                let Ok(send) = respond.send_response(Response::new(()), false) else { return };
                let done = end::run(H2Stream(send, request.into_body()), &plan.of(port).1).await;
                let _ = report.send((port, false, done));
            });
        }
    });
}

/// Makes every CONNECT, the last one after all others.
pub(crate) async fn request(
    transport: DuplexStream,
    plan: &Plan,
    tasks: &Tasks,
    report: &mpsc::UnboundedSender<Report>,
) {
    let mut builder = h2::client::Builder::new();
    let handshake = builder.initial_window_size(plan.window).handshake(transport).await;
    let (sender, connection) = handshake.unwrap_or_else(|error| panic!("{error}"));
    tasks.spawn("h2 client", async move { connection.await.is_ok() });
    let last = plan.streams.len();
    for wave in [0..last - 1, last - 1..last] {
        let all = wave.map(async |index| {
            let port = u16::try_from(index + 1).unwrap_or(0);
            let request = Request::builder().method(Method::CONNECT).uri(format!("10.0.0.1:{port}")).body(());
            let request = request.unwrap_or_else(|error| panic!("{error}"));
            let ready = sender.clone().ready().await;
            let mut ready = ready.unwrap_or_else(|error| panic!("{plan:?}: {error}"));
            let sent = ready.send_request(request, false);
            let (response, send) = sent.unwrap_or_else(|error| panic!("{plan:?}: {error}"));
            let response = response.await.unwrap_or_else(|error| panic!("{plan:?}: {error}"));
            let done = end::run(H2Stream(send, response.into_body()), &plan.of(port).1).await;
            let _ = report.send((port, false, done));
        });
        futures_util::future::join_all(all).await;
    }
}

impl End for H2Stream {
    type Out = SendStream<Bytes>;
    type Input = RecvStream;
    fn halves(self) -> (SendStream<Bytes>, RecvStream) {
        (self.0, self.1)
    }
}

impl Out for SendStream<Bytes> {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Stop> {
        while !bytes.is_empty() {
            self.reserve_capacity(bytes.len());
            let granted = poll_fn(|cx| self.poll_capacity(cx)).await;
            let Some(Ok(granted)) = granted else { return Err(Stop) };
            let part = bytes.split_to(granted.min(bytes.len()));
            self.send_data(part, false).map_err(|_| Stop)?;
        }
        Ok(())
    }
    async fn finish(&mut self) -> Result<(), Stop> {
        self.send_data(Bytes::new(), true).map_err(|_| Stop)
    }
    fn reset(&mut self) {
        self.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Input for RecvStream {
    async fn receive(&mut self) -> Option<Result<Bytes, Stop>> {
        Some(self.data().await?.map_err(|_| Stop))
    }
    fn release(&mut self, count: usize) {
        let _ = self.flow_control().release_capacity(count);
    }
}
