//! Workloads that are known by a hostname only, with a resolver that says what it is told to say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isthmus_model::{Hostname, Protocol, Workload};
use isthmus_proxy::{Config, NameError, Names};
use isthmus_rt::BoxFuture;

use crate::log::Log;
use crate::world::*;

/// Knows one name.
struct Knows {
    addresses: Vec<IpAddr>,
    asked: AtomicUsize,
}

impl Names for Knows {
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, NameError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match hostname.as_str() {
                "db.example.com" => Ok(self.addresses.clone()),
                _ => Err(NameError("the name server answered NXDOMAIN".into())),
            }
        })
    }
}

fn named(network: &Network, hostname: &str, protocol: Protocol) -> Workload {
    Workload {
        addresses: Vec::new(),
        hostname: hostname.into(),
        protocol,
        ..serving(network.workload("db", 2))
    }
}

#[tokio::test]
async fn a_workload_known_by_name_is_looked_up_for_each_connection() {
    for protocol in [Protocol::Hbone, Protocol::Tcp] {
        let block = Arc::new(Block::claim());
        let addresses = vec!["2001:db8::1".parse().unwrap(), block.ip(2)];
        let names = Arc::new(Knows { addresses, asked: AtomicUsize::new(0) });
        let network = Network::with_names("east", &block, Config::default(), Arc::clone(&names) as _);
        let sleep = network.workload("sleep", 1);
        network.push(
            &[sleep.clone(), named(&network, "db.example.com", protocol)],
            &[network.service(10, &[])],
            &[],
        );
        let there = network.workload("db", 2);
        let app = network.echo(&there).await;
        let _server = (protocol == Protocol::Hbone).then(|| network.server(&there));
        let client = network.client(&sleep, SocketAddr::new(block.ip(10), SERVICE_PORT));
        let log = Log::listen();
        for time in 1..=3 {
            assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
            let line = log.next().await;
            let to = SocketAddr::new(block.ip(2), if protocol == Protocol::Hbone { HBONE } else { APP_PORT });
            assert!(
                line.contains(&format!("dst.addr={to} ")) && line.contains("dst.workload=\"db\""),
                "{line}"
            );
            // Whether an answer is kept is the resolver's business.
            assert_eq!(names.asked.load(Ordering::SeqCst), time);
        }
        let labels = ["hostname=\"db.example.com\"", "source_workload=\"sleep\""];
        assert_eq!((network.metric("istio_on_demand_dns_total", &labels), app.seen()), (3, 3));
    }
}

#[tokio::test]
async fn a_name_without_an_address_ends_the_connection_with_one_clear_line() {
    let block = Arc::new(Block::claim());
    let names = Arc::new(Knows { addresses: Vec::new(), asked: AtomicUsize::new(0) });
    let network = Network::with_names("east", &block, Config::default(), names);
    let sleep = network.workload("sleep", 1);
    network.push(
        &[sleep.clone(), named(&network, "gone.example.com", Protocol::Hbone)],
        &[network.service(10, &[])],
        &[],
    );
    let client = network.client(&sleep, SocketAddr::new(block.ip(10), SERVICE_PORT));
    let log = Log::listen();
    assert!(end(&mut client.dial().await).await.is_err());
    let line = log.next().await;
    for part in [
        "message=connection failed",
        "src.addr=127.",
        &format!("dst.addr={}:{SERVICE_PORT}", block.ip(10)),
        "workload east//Pod/sample/db is known by hostname gone.example.com only, which has no address: \
         the name server answered NXDOMAIN",
    ] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}
