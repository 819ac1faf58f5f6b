//! The sample's server: `GET /hello` tells the version and the pod, as Istio's sample of that name does.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use tokio::net::TcpListener;

/// What it tells and where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// The version to tell.
    #[arg(long)]
    version: String,
    /// The port to listen on.
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// The instance to tell; the pod's name.
    #[arg(long)]
    instance: String,
}

/// Serves for ever.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, options.port));
    let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
    println!("version {} listens on {addr}", options.version);
    let text = format!("Hello version: {}, instance: {}\n", options.version, options.instance);
    serve(listener, text, &Tasks::new("helloworld")).await
}

async fn serve(listener: TcpListener, text: String, tasks: &Tasks) -> anyhow::Result<()> {
    let text: Arc<str> = text.into();
    loop {
        let (stream, peer) = listener.accept().await.context("cannot accept")?;
        let text = Arc::clone(&text);
        tasks.spawn("connection", async move {
            let service = service_fn(move |request: Request<Incoming>| {
                println!("{peer} {} {}", request.method(), request.uri());
                let answer = answer(request.uri().path(), &text);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A client that breaks off is nobody's error.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(path: &str, text: &str) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/hello" => (StatusCode::OK, text),
        "/health" | "/healthz" => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    };
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn hello_tells_version_and_instance() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tasks = Tasks::new("test");
        let own = tasks.clone();
        tasks.spawn("server", async move { serve(listener, "Hello\n".to_owned(), &own).await.unwrap() });
        for (path, status, body) in
            [("/hello", 200, "Hello\n"), ("/healthz", 200, "ok\n"), ("/x", 404, "not found\n")]
        {
            let stream = TcpStream::connect(addr).await.unwrap();
            let got = crate::http::get(stream, "test", path).await.unwrap();
            assert_eq!((got.status, &got.body[..]), (status, body.as_bytes()));
        }
    }
}
