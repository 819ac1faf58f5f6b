use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use isthmus_rt::task::Tasks;
use simple_dns::rdata::{A, AAAA, CNAME};
use simple_dns::{QTYPE, ResourceRecord};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::relay;

/// A name server on loopback, and how often it was asked.
struct Server {
    at: SocketAddr,
    asked: Arc<AtomicUsize>,
    _tasks: Tasks,
}

impl Server {
    async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let (at, asked, tasks) =
            (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Tasks::new("test"));
        let counter = Arc::clone(&asked);
        tasks.spawn("udp", async move {
            let mut query = [0; 512];
            loop {
                let (length, from) = udp.recv_from(&mut query).await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&query[..length], false) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        tasks.spawn("tcp", async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = relay::read(&mut stream).await.unwrap().unwrap();
                relay::write(&mut stream, &answer(&query, true).unwrap()).await.unwrap();
            }
        });
        Self { at, asked, _tasks: tasks }
    }

    fn queries(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(&Sockets::host(), vec![self.at], Duration::from_secs(10))
    }
}

/// What is said of each name; `None`: nothing.
fn answer(query: &[u8], whole: bool) -> Option<Vec<u8>> {
    let asked = Packet::parse(query).unwrap();
    let question = asked.questions[0].clone();
    let name = question.qname.to_string();
    let owner = question.qname.clone();
    let v6 = question.qtype == QTYPE::TYPE(TYPE::AAAA);
    let mut packet = Packet::new_reply(asked.id());
    packet.questions.push(question);
    let v4_record = |last: u8, ttl| {
        ResourceRecord::new(
            owner.clone(),
            CLASS::IN,
            ttl,
            RData::A(A { address: u32::from_be_bytes([192, 0, 2, last]) }),
        )
    };
    let v6_record = |ttl| {
        let address = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().into();
        ResourceRecord::new(owner.clone(), CLASS::IN, ttl, RData::AAAA(AAAA { address }))
    };
    match (name.as_str(), v6) {
        ("both.example.com", true) => packet.answers.push(v6_record(20)),
        ("both.example.com", false) => packet.answers.extend([v4_record(1, 30), v4_record(2, 30)]),
        ("alias.example.com", false) => {
            let target = Name::new_unchecked("both.example.com").into_owned();
            packet.answers.push(ResourceRecord::new(
                owner.clone(),
                CLASS::IN,
                5,
                RData::CNAME(CNAME(target)),
            ));
            packet.answers.push(v4_record(1, 30));
        }
        ("moment.example.com", false) => packet.answers.push(v4_record(1, 0)),
        ("large.example.com", false) if !whole => packet.set_flags(PacketFlag::TRUNCATION),
        ("large.example.com", false) => packet.answers.push(v4_record(9, 30)),
        ("half.example.com", true) => *packet.rcode_mut() = RCODE::ServerFailure,
        ("half.example.com", false) => packet.answers.push(v4_record(7, 30)),
        ("nowhere.example.com", _) => *packet.rcode_mut() = RCODE::NameError,
        ("silent.example.com", _) => return None,
        ("other.example.com", _) => packet.questions[0].qname = Name::new_unchecked("evil.example.com"),
        _ => {}
    }
    packet.build_bytes_vec().ok()
}

fn addresses(text: &[&str]) -> Vec<IpAddr> {
    text.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_name_has_the_addresses_of_both_families() {
    let server = Server::start().await;
    let resolver = server.resolver();
    for (name, want) in [
        ("both.example.com", &["192.0.2.1", "192.0.2.2", "2001:db8::1"][..]),
        ("both.example.com.", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        ("alias.example.com", &["192.0.2.1"]),
        ("large.example.com", &["192.0.2.9"]),
        ("half.example.com", &["192.0.2.7"]),
    ] {
        assert_eq!(resolver.lookup(name).await.unwrap().to_vec(), addresses(want), "{name}");
    }
}

#[tokio::test]
async fn an_answer_is_cached_for_its_ttl() {
    let server = Server::start().await;
    let resolver = server.resolver();
    for _ in 0..3 {
        resolver.lookup("both.example.com").await.unwrap();
    }
    assert_eq!(server.queries(), 2, "once for each family");
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(19_500)).await;
    resolver.lookup("both.example.com").await.unwrap();
    assert_eq!(server.queries(), 2);
    // The shorter of the two has passed.
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    resolver.lookup("both.example.com").await.unwrap();
    assert_eq!(server.queries(), 4);
    for _ in 0..2 {
        resolver.lookup("moment.example.com").await.unwrap();
    }
    assert_eq!(server.queries(), 8, "what does not hold is asked again");
}

#[tokio::test]
async fn a_lookup_without_address_says_why() {
    let server = Server::start().await;
    let resolver = Resolver::new(&Sockets::host(), vec![server.at], Duration::from_millis(50));
    for (name, want) in [
        ("nowhere.example.com", "DNS server answered NameError"),
        ("empty.example.com", "the name exists but has no address"),
        ("other.example.com", "invalid DNS response: it is for another question"),
    ] {
        assert_eq!(resolver.lookup(name).await.unwrap_err().to_string(), want);
    }
    let silence = resolver.lookup("silent.example.com").await.unwrap_err().to_string();
    assert_eq!(silence, format!("DNS server {}: no answer within 50ms", server.at));
    let without_servers = Resolver::new(&Sockets::host(), vec![], Duration::from_millis(50));
    assert_eq!(
        without_servers.lookup("a.example.com").await.unwrap_err().to_string(),
        "no DNS server is known: resolv.conf names none"
    );
    let long = "x".repeat(64);
    assert!(matches!(resolver.lookup(&long).await, Err(LookupError::BadName(_))));
}
