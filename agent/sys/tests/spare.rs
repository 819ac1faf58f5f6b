//! Sockets to applications on a real kernel: made in the pod's namespace before they are needed, with every option, never
//! more than a few, and none when the pod is idle. Passes as root and as an ordinary user.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use isthmus_kit::lab;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::{ConnectError, Keepalive, Sockets, Transparent};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time;

const SOON: Duration = Duration::from_secs(5);
/// Spare sockets of one family, at most.
const MOST: usize = 8;
const KEEPALIVE: Keepalive = Keepalive {
    time: Duration::from_secs(100),
    interval: Duration::from_secs(7),
    retries: 3,
    user_timeout: true,
};

fn main() -> ExitCode {
    lab::main(&lab::tests![
        spare_sockets_are_of_the_pods_namespace_with_every_option,
        spare_sockets_are_bounded_and_of_both_families,
        an_idle_pod_has_no_spare_sockets,
        spare_sockets_end_with_their_pod,
        keepalive_is_set_when_a_connection_is_old,
        a_refused_connection_of_a_spare_socket_is_reported,
    ])
}

/// A pod with an application.
struct Pod {
    netns: Netns,
    sockets: Sockets,
    app: TcpListener,
}

impl Pod {
    fn new(app: IpAddr) -> anyhow::Result<Self> {
        let netns = Netns::create()?;
        let sockets = Sockets::in_netns(Arc::new(netns.clone()))
            .with_mark(Some(0x539))
            .with_keepalive(Some(KEEPALIVE))
            .with_spares();
        let (app, _) = sockets.listen((app, 0).into(), Transparent::Never)?;
        Ok(Self { netns, sockets, app })
    }

    fn v4() -> anyhow::Result<Self> {
        Self::new(Ipv4Addr::LOCALHOST.into())
    }

    /// Connects as a client of this address; what the application accepts, and its address of the client.
    async fn connect(&self, from: IpAddr) -> anyhow::Result<(TcpStream, TcpStream, SocketAddr)> {
        let to = self.app.local_addr()?;
        let connect = self.sockets.connect_young(to, Some(from), SOON);
        let (stream, accepted) = tokio::join!(connect, self.app.accept());
        let (accepted, source) = accepted?;
        Ok((stream?, accepted, source))
    }
}

fn client() -> IpAddr {
    Ipv4Addr::new(127, 9, 9, 9).into()
}

fn spare_sockets_are_of_the_pods_namespace_with_every_option() -> anyhow::Result<()> {
    lab::block_on(async {
        let pod = Pod::v4()?;
        for _ in 0..3 * MOST {
            let (stream, _accepted, source) = pod.connect(client()).await?;
            ensure!(source.ip() == client() && source.port() >= 61_000, "it comes from {source}");
            let socket = SockRef::from(&stream);
            ensure!(socket.mark()? == 0x539 && socket.ip_transparent_v4()? && socket.reuse_address()?);
            ensure!(socket.tcp_nodelay()?);
            ensure!(socket.tcp_user_timeout()? == Some(Duration::from_secs(100 + 3 * 7)));
        }
        ensure!(pod.sockets.spares() > 0);
        Ok(())
    })
}

fn spare_sockets_are_bounded_and_of_both_families() -> anyhow::Result<()> {
    lab::block_on(async {
        let pod = Pod::v4()?;
        let mut most = 0;
        for _ in 0..100 {
            pod.connect(client()).await?;
            most = most.max(pod.sockets.spares());
        }
        ensure!((1..MOST).contains(&most), "{most}");
        let v6 = Pod::new(Ipv6Addr::LOCALHOST.into())?;
        let foreign: IpAddr = "fd00::9".parse()?;
        for _ in 0..MOST {
            let to = v6.app.local_addr()?;
            // Packets of a foreign source address are answered by routes that there are none of here.
            let error = v6.sockets.connect_young(to, Some(foreign), Duration::from_millis(1)).await.err();
            ensure!(!matches!(error, Some(ConnectError::Setup(_))), "{error:?}");
        }
        ensure!((1..MOST).contains(&v6.sockets.spares()));
        Ok(())
    })
}

fn an_idle_pod_has_no_spare_sockets() -> anyhow::Result<()> {
    lab::block_on(async {
        let pod = Pod::v4()?;
        let mut drops = pin!(pod.sockets.drop_idle_spares());
        for _ in 0..2 {
            for _ in 0..4 {
                pod.connect(client()).await?;
            }
            time::pause();
            let for_some_time = time::timeout(Duration::from_secs(4), &mut drops).await;
            ensure!(for_some_time.is_err() && pod.sockets.spares() > 0);
            let for_longer = time::timeout(Duration::from_secs(2), &mut drops).await;
            ensure!(for_longer.is_err() && pod.sockets.spares() == 0);
            time::resume();
        }
        // One connection now and then needs no spare.
        pod.connect(client()).await?;
        ensure!(pod.sockets.spares() == 0);
        Ok(())
    })
}

/// Number of sockets of a namespace, whatever state they are in.
fn sockets_of(netns: &Netns) -> anyhow::Result<usize> {
    let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/sockstat"))??;
    let used = text.lines().find_map(|line| line.strip_prefix("sockets: used "));
    Ok(used.context("sockets: used")?.trim().parse()?)
}

fn spare_sockets_end_with_their_pod() -> anyhow::Result<()> {
    lab::block_on(async {
        let Pod { netns, sockets, app } = Pod::v4()?;
        let to = app.local_addr()?;
        let before = sockets_of(&netns)?;
        for _ in 0..2 {
            sockets.connect_young(to, Some(client()), SOON).await?;
            app.accept().await?;
        }
        let spares = sockets.spares();
        ensure!(spares > 0 && sockets_of(&netns)? == before + spares, "{spares} spares");
        let clone = sockets.clone();
        drop(sockets);
        ensure!(clone.spares() == spares, "clones share them");
        drop(clone);
        ensure!(sockets_of(&netns)? == before);
        Ok(())
    })
}

fn keepalive_is_set_when_a_connection_is_old() -> anyhow::Result<()> {
    lab::block_on(async {
        let pod = Pod::v4()?;
        let (stream, _accepted, _) = pod.connect(client()).await?;
        let stream = Arc::new(stream);
        ensure!(!SockRef::from(&*stream).keepalive()?);
        time::pause();
        let old = pod.sockets.keep_alive_when_old(Arc::downgrade(&stream));
        ensure!(time::timeout(Duration::from_secs(31), old).await.is_err(), "it never completes");
        let socket = SockRef::from(&*stream);
        ensure!(socket.keepalive()? && socket.tcp_keepalive_time()? == KEEPALIVE.time);
        ensure!(
            socket.tcp_keepalive_interval()? == KEEPALIVE.interval && socket.tcp_keepalive_retries()? == 3
        );
        ensure!(Arc::into_inner(stream).is_some(), "it keeps no connection open");
        Ok(())
    })
}

fn a_refused_connection_of_a_spare_socket_is_reported() -> anyhow::Result<()> {
    lab::block_on(async {
        let pod = Pod::v4()?;
        pod.connect(client()).await?;
        pod.connect(client()).await?;
        let to = pod.app.local_addr()?;
        let sockets = pod.sockets.clone();
        drop(pod);
        let error = sockets.connect_young(to, Some(client()), SOON).await.err().context("a connection")?;
        ensure!(matches!(error, ConnectError::Refused { .. }), "{error}");
        Ok(())
    })
}
