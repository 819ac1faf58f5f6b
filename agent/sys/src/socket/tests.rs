use std::net::IpAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn outgoing_and_accepted_connections_have_the_options() {
    let keepalive = Keepalive {
        time: Duration::from_secs(11),
        interval: Duration::from_secs(7),
        retries: 3,
        user_timeout: true,
    };
    let sockets = Sockets::host().with_keepalive(Some(keepalive));
    let (listener, transparent) = sockets.listen(LOOPBACK, Transparent::Never).unwrap();
    assert!(!transparent);
    let to = listener.local_addr().unwrap();
    let (outgoing, accepted) = tokio::join!(sockets.connect(to, None, SOON), listener.accept());
    let (mut outgoing, (mut accepted, _)) = (outgoing.unwrap(), accepted.unwrap());
    for stream in [&outgoing, &accepted] {
        let socket = SockRef::from(stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive.time);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(11 + 3 * 7)));
    }
    outgoing.write_all(b"hi").await.unwrap();
    let mut got = [0; 2];
    accepted.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hi");
}

#[tokio::test]
async fn reset_on_close_reaches_the_peer_as_a_reset() {
    let sockets = Sockets::host();
    let (listener, _) = sockets.listen(LOOPBACK, Transparent::Never).unwrap();
    let to = listener.local_addr().unwrap();
    for (reset, seen) in [(true, Some(io::ErrorKind::ConnectionReset)), (false, None)] {
        let (outgoing, accepted) = tokio::join!(sockets.connect(to, None, SOON), listener.accept());
        let (outgoing, mut accepted) = (outgoing.unwrap(), accepted.unwrap().0);
        if reset {
            reset_on_close(&outgoing);
        }
        drop(outgoing);
        assert_eq!(accepted.read(&mut [0; 1]).await.err().map(|e| e.kind()), seen);
    }
}

#[tokio::test]
async fn a_refused_connection_is_retryable() {
    let sockets = Sockets::host();
    let (listener, _) = sockets.listen(LOOPBACK, Transparent::Never).unwrap();
    let to = listener.local_addr().unwrap();
    drop(listener);
    let error = sockets.connect(to, None, SOON).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }) && error.retryable(), "{error}");
    assert_eq!(error.to_string(), format!("connect to {to}: refused"));
}

#[tokio::test]
async fn a_source_of_the_other_family_is_a_setup_error() {
    let error = Sockets::host()
        .connect("127.0.0.1:9".parse().unwrap(), Some("fd00::1".parse().unwrap()), SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Setup(_)) && !error.retryable(), "{error}");
}

#[tokio::test]
async fn a_port_is_shared_only_with_reuse_port() {
    let alone = Sockets::host();
    let (first, _) = alone.listen(LOOPBACK, Transparent::Never).unwrap();
    let addr = first.local_addr().unwrap();
    let error = alone.listen(addr, Transparent::Never).unwrap_err();
    assert_eq!(error.cause().kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    drop(first);
    let shared = Sockets::host().with_reuse_port(true);
    let _first = shared.listen(addr, Transparent::Never).unwrap();
    shared.listen(addr, Transparent::Never).unwrap();
}

#[tokio::test]
async fn a_wildcard_listener_accepts_ipv4() {
    for ipv6 in [true, false] {
        let sockets = Sockets::host().with_ipv6(ipv6);
        let (listener, _) = sockets.listen_wildcard(0, Transparent::Never).unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let (outgoing, accepted) = tokio::join!(sockets.connect(to, None, SOON), listener.accept());
        let (outgoing, (_, peer)) = (outgoing.unwrap(), accepted.unwrap());
        assert_eq!(canonical(peer), outgoing.local_addr().unwrap());
    }
}

#[test]
fn canonical_maps_only_ipv4_mapped_addresses() {
    let canonical = |text: &str| canonical(text.parse().unwrap()).to_string();
    assert_eq!(canonical("[::ffff:10.0.0.1]:80"), "10.0.0.1:80");
    assert_eq!(canonical("[fd00::1]:80"), "[fd00::1]:80");
    assert_eq!(canonical("10.0.0.1:80"), "10.0.0.1:80");
}
