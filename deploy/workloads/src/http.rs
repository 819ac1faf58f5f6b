//! Plain HTTP/1.1 requests over streams that the caller has opened: one, or several in turn.

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

/// GETs a path; the connection is closed with the answer. The caller bounds the time.
pub async fn get<S>(stream: S, host: &str, path: &str) -> anyhow::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = request(host, path, "close")?;
    let exchange = async { anyhow::Ok(exchange(&mut sender, request).await?.0) };
    // The connection has to be driven while the exchange waits for it.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            // The server may close in the same moment in which the answer is complete.
            let answer = exchange.await;
            ended.context("the connection broke").and(answer)
        }
    }
}

/// A connection that is kept alive between requests.
#[derive(Debug)]
pub struct KeptConnection {
    sender: SendRequest<Empty<Bytes>>,
    /// Whether the server has not said that it closes the connection.
    is_kept: bool,
}

// === impl KeptConnection ===

impl KeptConnection {
    /// Begins with an open stream; the connection lives in `tasks`.
    pub async fn open<S>(stream: S, tasks: &Tasks) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tasks.spawn("connection", async move {
            // A pending request reports the error itself.
            let _ = connection.await;
        });
        Ok(Self { sender, is_kept: true })
    }

    /// Whether another request can be sent, as far as is known.
    pub fn is_open(&self) -> bool {
        self.is_kept && !self.sender.is_closed()
    }

    /// GETs a path. The caller bounds the time.
    pub async fn get(&mut self, host: &str, path: &str) -> anyhow::Result<Answer> {
        let request = request(host, path, "keep-alive")?;
        self.sender.ready().await.context("the connection broke")?;
        let (answer, is_last) = exchange(&mut self.sender, request).await?;
        self.is_kept = !is_last;
        Ok(answer)
    }
}

fn request(host: &str, path: &str, connection: &str) -> anyhow::Result<::http::Request<Empty<Bytes>>> {
    ::http::Request::get(path)
        .header(::http::header::HOST, host)
        .header(::http::header::USER_AGENT, "playground")
        .header(::http::header::CONNECTION, connection)
        .body(Empty::new())
        .with_context(|| format!("cannot ask for {path}"))
}

/// The answer, and whether it is the connection's last.
async fn exchange(
    sender: &mut SendRequest<Empty<Bytes>>,
    request: ::http::Request<Empty<Bytes>>,
) -> anyhow::Result<(Answer, bool)> {
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let said = response.headers().get(::http::header::CONNECTION);
    let is_last = said.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let body = response.into_body().collect().await?.to_bytes();
    Ok((Answer { status, body }, is_last))
}
