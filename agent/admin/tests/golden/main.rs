//! The tables of `istioctl ztunnel-config`, computed from our dump as istioctl computes them, equal the ones that it
//! prints for the world of its own test data.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

#[cfg(feature = "istioctl")]
mod istioctl;
mod tables;
mod world;

use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt as _;
use isthmus_admin::logging::Logging;
use isthmus_admin::server::{Admin, Routes as _};
use serde_json::Value;

use crate::world::World;

/// Our dump of the world, as the endpoint gives it.
async fn dump(query: &str) -> Value {
    let log = isthmus_rt::log::init(isthmus_rt::log::Format::Text, "off").unwrap();
    let (quit, _asked) = tokio::sync::mpsc::channel(1);
    let admin =
        Admin::new(Arc::new(World::read()), Logging::new(log), quit, isthmus_model::AgentPorts::default());
    let request = Request::get(format!("/config_dump?{query}")).body(()).unwrap().into_parts().0;
    let reply = admin.route(request).await;
    assert_eq!(reply.status(), 200);
    serde_json::from_slice(&reply.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

fn golden(name: &str) -> String {
    let path = format!("{}/tests/fixtures/istioctl/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The part of `all --with-headers` below a headline.
fn section(headline: &str) -> String {
    let all = golden("allsummary_withheaders.txt");
    let (_, rest) = all.split_once(&format!("------ {headline} ------\n\n")).unwrap();
    rest.split_once("\n\n------").map_or_else(|| rest.to_owned(), |(table, _)| format!("{table}\n"))
}

#[tokio::test]
async fn workloads() {
    assert_eq!(tables::workloads(&dump("").await), golden("workloadsummary.txt"));
}

#[tokio::test]
async fn services() {
    assert_eq!(tables::services(&dump("").await), section("SERVICE INFO"));
}

#[tokio::test]
async fn policies() {
    assert_eq!(tables::policies(&dump("").await), golden("policies.txt"));
}

#[tokio::test]
async fn certificates() {
    assert_eq!(tables::certificates(&dump("").await), golden("secretsummary.txt"));
}

#[tokio::test]
async fn connections() {
    assert_eq!(tables::connections(&dump("").await), golden("connectionsummary.txt"));
}

/// The tables would also be equal if both were empty, and a table that ignored the dump would pass for ours.
#[tokio::test]
async fn a_dump_without_a_namespace_lacks_its_rows() {
    let all = golden("workloadsummary.txt");
    let (header, _) = all.split_once('\n').unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let wanted: Vec<_> = all.lines().filter(|line| line.starts_with("default ")).map(words).collect();
    let part = tables::workloads(&dump("kind=workloads&namespace=default").await);
    assert_eq!(words(part.lines().next().unwrap()), words(header));
    assert!(wanted.len() == 8 && part.lines().skip(1).map(words).eq(wanted), "{part}");
}
