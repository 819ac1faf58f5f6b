use super::*;
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

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let ready = Readiness::default();
    let guard = ready.block("state manager");
    let _other = ready.block("workload proxy manager");
    let text = get(Arc::new(Ready(ready.clone())), "GET /healthz/ready").await;
    assert!(text.starts_with("HTTP/1.1 500"), "{text}");
    assert!(text.ends_with("not ready, pending: state manager, workload proxy manager\n"), "{text}");
    drop((guard, _other));
    let text = get(Arc::new(Ready(ready)), "GET /healthz/ready").await;
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ready\n"), "{text}");
}

#[tokio::test]
async fn metrics_are_openmetrics_text_on_both_paths() {
    for path in ["/metrics", "/stats/prometheus"] {
        let text = get(Arc::new(Stats(Metrics::default())), &format!("GET {path}")).await;
        assert!(text.contains("# EOF"), "{text}");
    }
    assert!(get(Arc::new(Stats(Metrics::default())), "GET /other").await.starts_with("HTTP/1.1 404"));
}
