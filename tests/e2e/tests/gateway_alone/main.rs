//! The east-west gateway alone: a real process, a client that is scripted frame by frame, sockets for pods.

mod gateway_lab;
mod object;

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::istiod::Answer;
use isthmus_kit::pki::client_hello;
use isthmus_kit::{lab, wait};
use isthmus_sys::socket::Transparent;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use gateway_lab::{GatewayLab, PLAIN, SOON, TLS, by_number};
use object::{
    listeners_follow_the_gateway_object_and_leave_open_connections_alone, replicas_write_a_status_once,
    what_istiod_deploys_of_its_east_west_class_is_a_gateway, without_crds_or_permission_the_settings_count,
};

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        only_global_services_are_reachable_and_only_by_name,
        connect_is_answered_200_only_after_the_pod_is_connected,
        tls_is_passed_through_by_its_server_name,
        a_plain_port_leads_to_a_service,
        a_gateway_asks_for_its_own_identity_and_is_ready_with_its_certificate,
        listeners_follow_the_gateway_object_and_leave_open_connections_alone,
        replicas_write_a_status_once,
        without_crds_or_permission_the_settings_count,
        what_istiod_deploys_of_its_east_west_class_is_a_gateway
    ])
}

fn name(service: &str) -> String {
    format!("{service}.sample.svc.cluster.local:80")
}

/// Bytes that are valid in no protocol.
fn noise(count: usize) -> Vec<u8> {
    (0..count).map(|at| u8::try_from(at * 131 % 251).unwrap_or_default()).collect()
}

async fn accepted(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) =
        tokio::time::timeout(SOON, listener.accept()).await.context("no connection arrives")??;
    Ok(stream)
}

async fn read(stream: &mut TcpStream, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    tokio::time::timeout(SOON, stream.read_exact(&mut bytes)).await.context("too few bytes")??;
    Ok(bytes)
}

/// Whether a connection was closed without a byte.
async fn closed(mut stream: TcpStream) -> Result<bool> {
    let end = tokio::time::timeout(SOON, stream.read(&mut [0])).await.context("it stays open")?;
    Ok(!matches!(end, Ok(count) if count > 0))
}

fn only_global_services_are_reachable_and_only_by_name() -> Result<()> {
    lab::block_on(async {
        let lab = GatewayLab::new()?;
        let gateway = lab.gateway().await?;
        let (hello, private) = (lab.serve("hello")?, lab.serve("private")?);
        let mut tunnel = lab.tunnel().await?;
        let pod = lab.endpoint("hello")?;
        let refused = [
            (by_number(pod.ip(), 15008), "400"),
            (by_number(pod.ip(), 8080), "400"),
            (by_number(lab.node(), 6443), "400"),
            ("[::1]:80".to_owned(), "400"),
            (name("unknown"), "503"),
            (name("private"), "503"),
            (name("plain"), "503"),
            ("hello.sample.svc.cluster.local:81".to_owned(), "503"),
            ("hello.sample:80".to_owned(), "503"),
        ];
        for (stream, (authority, want)) in (1..).step_by(2).zip(&refused) {
            tunnel.ask(stream, authority).await?;
            let (answered, status) = tunnel.answer().await?;
            ensure!(answered == stream && status == *want, "{authority}: {status} on {answered}");
            gateway.line(&["connection failed", "error="]).await?;
        }
        tunnel.ask(101, &name("hello")).await?;
        let mut inner = accepted(&hello).await?;
        ensure!(tunnel.answer().await? == (101, "200".to_owned()));

        // The bytes of both directions pass unchanged, and each direction ends by itself.
        // The window of a new stream is 64 KiB.
        let (there, back) = (noise(60_000), noise(50_000).into_iter().rev().collect::<Vec<_>>());
        for chunk in there.chunks(10_000) {
            tunnel.0.data(101, chunk, false).await?;
        }
        ensure!(read(&mut inner, there.len()).await? == there);
        inner.write_all(&back).await?;
        ensure!(tunnel.bytes(101, back.len()).await? == back);
        tunnel.0.data(101, b"end", true).await?;
        ensure!(read(&mut inner, 3).await? == b"end" && inner.read(&mut [0]).await? == 0);
        inner.write_all(b"after").await?;
        ensure!(tunnel.bytes(101, 5).await? == b"after");
        drop(inner);
        ensure!(tunnel.next().await?.ends_stream());

        // A change in the API server takes effect at once.
        lab.api.label("services", "sample/private", "istio.io/global", Some("true"));
        gateway.line(&["global: reachable through this gateway", "private"]).await?;
        tunnel.ask(103, &name("private")).await?;
        let opened = accepted(&private).await?;
        ensure!(tunnel.answer().await? == (103, "200".to_owned()));
        drop(opened);
        lab.api.delete("services", "sample/hello");
        gateway.line(&["no longer global", "hello"]).await?;
        tunnel.ask(105, &name("hello")).await?;
        while tunnel.next().await?.stream != 103 {}
        ensure!(tunnel.answer().await? == (105, "503".to_owned()));
        drop(tunnel);
        gateway.stop().await?;
        Ok(())
    })
}

/// A listener whose accept queue is full with one connection: the next client waits until that one is accepted.
async fn full(lab: &GatewayLab, service: &str) -> Result<(TcpListener, TcpStream)> {
    let (host, at) = (lab.pod(service)?, lab.endpoint(service)?);
    let make = || -> Result<std::net::TcpListener> {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(host.v4, at.port())))?;
        listen(&fd, Backlog::new(0)?)?;
        Ok(fd.into())
    };
    let listener = TcpListener::from_std(host.netns.run(make)??)?;
    let first = host.sockets().connect(at, None, SOON).await?;
    Ok((listener, first))
}

fn connect_is_answered_200_only_after_the_pod_is_connected() -> Result<()> {
    lab::block_on(async {
        let lab = GatewayLab::new()?;
        let gateway = lab.gateway().await?;
        let mut tunnel = lab.tunnel().await?;
        // No listener.
        tunnel.ask(1, &name("hello")).await?;
        ensure!(tunnel.answer().await? == (1, "503".to_owned()));
        // The pod accepts no connection for now. A later CONNECT whose pod is connected is answered first.
        let hello = lab.serve("hello")?;
        let (slow, _first) = full(&lab, "slow").await?;
        tunnel.ask(3, &name("slow")).await?;
        tunnel.ask(5, &name("hello")).await?;
        ensure!(tunnel.answer().await? == (5, "200".to_owned()));
        let mut inner = accepted(&hello).await?;
        tunnel.0.data(5, b"ping", false).await?;
        ensure!(read(&mut inner, 4).await? == b"ping");
        inner.write_all(b"pong").await?;
        ensure!(tunnel.bytes(5, 4).await? == b"pong", "bytes arrived before the pod accepted");

        drop(accepted(&slow).await?);
        ensure!(tunnel.answer().await? == (3, "200".to_owned()));
        tunnel.0.data(3, b"now", false).await?;
        ensure!(read(&mut accepted(&slow).await?, 3).await? == b"now");
        drop((tunnel, inner));
        gateway.stop().await?;
        Ok(())
    })
}

fn tls_is_passed_through_by_its_server_name() -> Result<()> {
    lab::block_on(async {
        let lab = GatewayLab::new()?;
        let gateway = lab.gateway().await?;
        let at = SocketAddr::new(lab.outside.v4.into(), 15012);
        let (istiod, _) = lab.outside.sockets().listen(at, Transparent::Never)?;

        for unknown in ["other.istio-system.svc", "istiod.istio-system.svc.cluster.local"] {
            let mut stream = lab.dial(TLS).await?;
            stream.write_all(&client_hello(unknown)?).await?;
            ensure!(closed(stream).await?, "{unknown} was answered");
            gateway.line(&["connection failed", "no route for server name", unknown]).await?;
        }
        let mut stream = lab.dial(TLS).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: istiod.istio-system.svc\r\n\r\n").await?;
        ensure!(closed(stream).await?, "plaintext was answered");
        gateway.line(&["connection failed", "not a TLS ClientHello"]).await?;

        // In two segments, and in mixed case.
        let hello = client_hello("ISTIOD.istio-system.svc")?;
        let mut stream = lab.dial(TLS).await?;
        let (first, rest) = hello.split_at(50);
        stream.write_all(first).await?;
        stream.write_all(rest).await?;
        // This is the first connection to arrive: those without a route reached no pod.
        let mut upstream = accepted(&istiod).await?;
        ensure!(read(&mut upstream, hello.len()).await? == hello, "the ClientHello was changed");
        upstream.write_all(&noise(30_000)).await?;
        ensure!(read(&mut stream, 30_000).await? == noise(30_000));
        stream.write_all(&noise(999)).await?;
        stream.shutdown().await?;
        ensure!(read(&mut upstream, 999).await? == noise(999) && upstream.read(&mut [0]).await? == 0);
        drop((upstream, stream));

        // A route may name a service, too.
        let app = SocketAddr::new(lab.pod("plain")?.v4.into(), 8080);
        lab::echo(&lab.pod("plain")?.sockets(), app, &lab.tasks)?;
        let hello = client_hello("plain.example")?;
        ensure!(lab::exchange(lab.dial(TLS).await?, &hello).await? == hello);
        gateway.stop().await?;
        Ok(())
    })
}

fn a_plain_port_leads_to_a_service() -> Result<()> {
    lab::block_on(async {
        let lab = GatewayLab::new()?;
        let gateway = lab.gateway().await?;
        // No server yet; the connection may be closed as soon as it is accepted.
        if let Ok(stream) = lab.dial(PLAIN).await {
            ensure!(closed(stream).await?, "a connection without a server was answered");
        }
        gateway
            .line(&["connection complete", "error=", "dst.service=\"plain.sample.svc.cluster.local\""])
            .await?;
        let app = SocketAddr::new(lab.pod("plain")?.v4.into(), 8080);
        lab::echo(&lab.pod("plain")?.sockets(), app, &lab.tasks)?;
        ensure!(lab::exchange(lab.dial(PLAIN).await?, &noise(100_000)).await? == noise(100_000));
        gateway.line(&["connection complete", "dst.service=\"plain.sample.svc.cluster.local\""]).await?;
        gateway.stop().await?;
        Ok(())
    })
}

/// A CA refuses an account that asks on behalf of others and is no node's.
fn a_gateway_asks_for_its_own_identity_and_is_ready_with_its_certificate() -> Result<()> {
    lab::block_on(async {
        let lab = GatewayLab::new()?;
        let (gateway, istiod) = lab.gateway_with_ca()?;
        let sign = istiod.signer();
        istiod.on_sign(|_| Answer::permission_denied("not yet"));
        gateway.line(&["gateway started"]).await?;
        gateway.line(&["not yet"]).await?;
        let (ready, pending) = lab.readiness().await?;
        ensure!(!ready && pending.contains("certificate"), "without a certificate: {pending}");
        istiod.on_sign(sign);
        let ready = async || lab.readiness().await.is_ok_and(|(ready, _)| ready).then_some(());
        wait::within(SOON, ready).await.context("it does not become ready")?;
        for signing in istiod.signings() {
            ensure!(signing.impersonated().is_none(), "{:?}", signing.impersonated());
        }
        Ok(())
    })
}
