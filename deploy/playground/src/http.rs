//! One plain HTTP/1.1 request over a stream that somebody else has opened.

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// GETs a path; the connection is closed with the answer. The caller bounds the time.
pub(crate) async fn get<S>(stream: S, host: &str, path: &str) -> anyhow::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = ::http::Request::get(path)
        .header(::http::header::HOST, host)
        .header(::http::header::USER_AGENT, "playground")
        .header(::http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .with_context(|| format!("cannot ask for {path}"))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok(Answer { status, body })
    };
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
