use super::*;
use std::io::Read as _;

use flate2::read::{GzDecoder, ZlibDecoder};
use http_body_util::BodyExt as _;
use isthmus_model::AgentPorts;
use isthmus_rt::metrics::Registry;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn get(routes: Arc<dyn Routes>, head: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_drain, watch) = drain::channel();
    let tasks = Tasks::new("test");
    tasks.spawn("serve", serve(listener, routes, watch));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("{head} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Status, a header, and the body of an answer.
async fn ask(
    routes: &dyn Routes,
    path: &str,
    headers: &[(&str, &str)],
    wanted: &str,
) -> (u16, String, Vec<u8>) {
    let request = headers.iter().fold(http::Request::get(path), |r, (name, value)| r.header(*name, *value));
    let reply = routes.route(request.body(()).unwrap().into_parts().0).await;
    let header = reply.headers().get(wanted).map(|value| value.to_str().unwrap().to_owned());
    let status = reply.status().as_u16();
    let body = reply.into_body().collect().await.unwrap().to_bytes().to_vec();
    (status, header.unwrap_or_default(), body)
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let ready = Readiness::default();
    let guard = ready.block("state manager");
    let other = ready.block("workload proxy manager");
    let text = get(Arc::new(Ready(ready.clone())), "GET /healthz/ready").await;
    assert!(text.starts_with("HTTP/1.1 500"), "{text}");
    assert!(text.ends_with("not ready, pending: state manager, workload proxy manager\n"), "{text}");
    drop((guard, other));
    let text = get(Arc::new(Ready(ready.clone())), "POST /healthz/ready").await;
    assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    let text = get(Arc::new(Ready(ready)), "GET /healthz/ready").await;
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ready\n"), "{text}");
}

#[tokio::test]
async fn metrics_are_openmetrics_text_on_both_paths() {
    let stats = Stats::new(Registry::default());
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, kind, body) = ask(&stats, path, &[], "content-type").await;
        assert_eq!((status, kind.as_str(), body.as_slice()), (200, PLAIN, b"# EOF\n".as_slice()));
        let accept = ("accept", "text/plain;q=0.5, application/openmetrics-text;version=1.0.0");
        let (_, kind, _) = ask(&stats, path, &[accept], "content-type").await;
        assert_eq!(kind, "application/openmetrics-text;charset=utf-8;version=1.0.0");
    }
    assert!(get(Arc::new(stats), "GET /other").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn metrics_are_compressed_if_the_client_accepts_it() {
    let registry = Registry::default();
    (0..100).for_each(|n| registry.register(&format!("seen_{n}"), "Seen", Counter::<u64>::default()));
    let stats = Stats::new(registry.clone());
    let plain = registry.encode().unwrap();
    let encoding =
        async |accepted| ask(&stats, "/metrics", &[("accept-encoding", accepted)], "content-encoding").await;
    let (_, name, body) = encoding("gzip, br;q=0.5").await;
    let mut text = String::new();
    GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
    assert!(name == "gzip" && text == plain && body.len() < plain.len() / 2, "{name}");
    let (_, name, body) = encoding("deflate").await;
    let mut text = String::new();
    ZlibDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
    assert!(name == "deflate" && text == plain, "{name}");
    let (_, name, body) = encoding("gzip;q=0.9, zstd").await;
    assert!(name == "zstd" && zstd::decode_all(body.as_slice()).unwrap() == plain.as_bytes(), "{name}");
    let (_, name, body) = encoding("br").await;
    let mut text = String::new();
    brotli::Decompressor::new(body.as_slice(), 4096).read_to_string(&mut text).unwrap();
    assert!(name == "br" && text == plain, "{name}");
    assert_eq!(encoding("compress").await, (200, String::new(), plain.into_bytes()));
}

#[tokio::test]
async fn a_body_ends_when_its_writer_does_and_runs_only_while_it_is_read() {
    let (alive, mut gone) = mpsc::channel::<()>(1);
    let body = Body::generated(|out| async move {
        for chunk in ["a", "b", "c"] {
            out.send(chunk.into()).await.unwrap();
        }
    });
    assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
    let mut body = Body::generated(|out| async move {
        out.send("a".into()).await.unwrap();
        let _alive = alive;
        std::future::pending::<()>().await;
    });
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    drop(body);
    assert!(gone.recv().await.is_none());
}

/// An admin endpoint over a mesh of many workloads, and where it says that the process is to end.
fn admin() -> (Admin, mpsc::Receiver<()>) {
    let (quit, asked) = mpsc::channel(1);
    let log = isthmus_rt::log::init(isthmus_rt::log::Format::Text, "info").unwrap();
    (Admin::new(crate::dump::tests::source(5000), Logging::new(log), quit, AgentPorts::default()), asked)
}

#[tokio::test]
async fn the_dump_is_compressed_while_it_is_written() {
    let (admin, _asked) = admin();
    let (_, name, plain) = ask(&admin, "/config_dump", &[], "content-encoding").await;
    assert_eq!(name, "");
    let request = http::Request::get("/config_dump").header("accept-encoding", "gzip");
    let reply = admin.route(request.body(()).unwrap().into_parts().0).await;
    assert_eq!(reply.headers()[CONTENT_ENCODING], "gzip");
    assert_eq!(reply.headers()[VARY], "accept-encoding");
    let (mut body, mut chunks, mut longest, mut packed) = (reply.into_body(), 0, 0, Vec::new());
    while let Some(frame) = body.frame().await {
        let chunk = frame.unwrap().into_data().unwrap();
        (chunks, longest) = (chunks + 1, longest.max(chunk.len()));
        packed.extend_from_slice(&chunk);
    }
    let mut text = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut text).unwrap();
    assert!(text == plain, "{} bytes instead of {}", text.len(), plain.len());
    assert!(
        packed.len() < plain.len() / 4 && chunks > 2 && longest < 64 << 10,
        "{chunks} of {longest} at most"
    );
    let (_, name, packed) =
        ask(&admin, "/config_dump?kind=version", &[("accept-encoding", "deflate")], "content-encoding").await;
    let mut text = String::new();
    ZlibDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
    assert!(name == "deflate" && text.contains("gitRevision"), "{text}");
}

#[tokio::test]
async fn the_index_page_is_served() {
    let (admin, _asked) = admin();
    let (status, kind, page) = ask(&admin, "/", &[], "content-type").await;
    let page = String::from_utf8(page).unwrap();
    assert_eq!((status, kind.as_str()), (200, "text/html; charset=utf-8"));
    assert!(page.contains("<code>info</code>"), "the filter in force is shown\n{page}");
    // Every link leads somewhere.
    for link in page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let (status, _, body) = ask(&admin, &format!("/{link}"), &[], "content-type").await;
        let dump: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(status == 200 && !dump.as_object().unwrap().is_empty(), "{link}");
    }
}

#[tokio::test]
async fn every_path_is_refused_to_a_foreign_host_name() {
    let (admin, _asked) = admin();
    for path in ["/", "/config_dump", "/logging", "/quitquitquit", "/nothing"] {
        let (status, ..) = ask(&admin, path, &[("host", "evil.example:15000")], "content-type").await;
        assert_eq!(status, 403, "{path}");
    }
    let (status, ..) = ask(&admin, "/config_dump", &[("host", "127.0.0.1:15000")], "content-type").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_cross_site_post_is_refused() {
    let (admin, mut asked) = admin();
    let post = async |headers: &[(&str, &str)]| {
        let request = headers.iter().fold(http::Request::post("/quitquitquit"), |r, (n, v)| r.header(*n, *v));
        admin.route(request.body(()).unwrap().into_parts().0).await.status().as_u16()
    };
    assert_eq!(post(&[("host", "localhost:15000"), ("origin", "http://evil.example")]).await, 403);
    assert!(asked.try_recv().is_err());
    assert_eq!(post(&[]).await, 200);
    assert!(asked.try_recv().is_ok());
    let (status, ..) = ask(&admin, "/quitquitquit", &[], "content-type").await;
    assert_eq!(status, 405);
}

/// Readers that take nothing, without an identity, as any pod can be.
#[tokio::test]
async fn slow_scrapes_cost_a_bounded_memory_and_keep_no_one_out() {
    let registry = Registry::default();
    let long = "h".repeat(10_000);
    (0..500).for_each(|n| registry.register(&format!("seen_{n}"), &long, Counter::<u64>::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_drain, watch) = drain::channel();
    let tasks = Tasks::new("test");
    let stats = Arc::new(Stats::new(registry));
    tasks.spawn("serve", serve(listener, Arc::clone(&stats) as Arc<dyn Routes>, watch));
    let scrape = async || {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        // Its head says that the response has begun.
        stream.readable().await.unwrap();
        stream
    };
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(scrape().await);
        assert!(stats.bytes().await <= 40 << 20, "{}", stats.bytes().await);
    }
    let mut text = String::new();
    scrape().await.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with("# EOF\n") && text.len() > 5_000_000, "the next one is answered: {}", text.len());
}
