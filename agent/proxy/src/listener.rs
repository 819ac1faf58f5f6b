//! Listeners as values that can be handed in, and the one accept loop. Knows no protocol.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::{Spawnable, Tasks};
use isthmus_sys::socket::{self, Sockets, Transparent, canonical};
use tokio::net::{TcpListener, TcpStream};

use crate::config::Ports;
use crate::places::{Place, Places};
use crate::turns::Share;

/// Connections that are taken from a listener when it closes, at most.
const BACKLOG: usize = 1024;

/// A listener that is bound, wherever that was done.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    transparent: bool,
    destination: Option<SocketAddr>,
}

/// The three listeners of a pod.
#[derive(Debug)]
pub struct Listeners {
    /// Captured outbound connections.
    pub outbound: Bound,
    /// HBONE.
    pub inbound: Bound,
    /// Captured plaintext that arrives.
    pub inbound_plaintext: Bound,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) source: SocketAddr,
    /// The address the connection was accepted on.
    pub(crate) local: SocketAddr,
    /// Where the client wanted to go; [`Self::local`] when nothing redirected it.
    pub(crate) original: SocketAddr,
    /// The place among the connections that are being set up, where those are limited.
    pub(crate) place: Option<Place>,
}

// === impl Bound ===

impl Bound {
    /// Binds a port of every address of the namespace that `sockets` stands for. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the port cannot be bound, or transparency was required and is not allowed.
    pub fn wildcard(
        sockets: &Sockets,
        port: u16,
        transparent: Transparent,
    ) -> Result<Self, isthmus_sys::Error> {
        let (listener, transparent) = sockets.listen_wildcard(port, transparent)?;
        Ok(Self::from_tokio(listener, transparent))
    }

    /// A listener that somebody else bound; `transparent` says whether it has `IP_TRANSPARENT`.
    #[must_use]
    pub fn from_tokio(listener: TcpListener, transparent: bool) -> Self {
        Self { listener, transparent, destination: None }
    }

    /// The same for a listener of the standard library. Must be called inside a runtime.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or registered.
    pub fn from_std(listener: std::net::TcpListener, transparent: bool) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::from_tokio(TcpListener::from_std(listener)?, transparent))
    }

    /// Takes every connection as one that was going to `destination`, for a listener that nothing redirects to.
    #[must_use]
    pub fn with_destination(self, destination: SocketAddr) -> Self {
        Self { destination: Some(destination), ..self }
    }

    /// Whether sockets made beside it may use foreign source addresses.
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        self.transparent
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    async fn accept(&self) -> io::Result<Accepted> {
        let (stream, source) = self.listener.accept().await?;
        accepted(stream, source, self.destination)
    }

    /// Closes the listener and hands out what was connected to it and not yet accepted. Without this the kernel would
    /// reset connections that their clients hold for established.
    fn into_backlog(self) -> impl Iterator<Item = Accepted> {
        let Self { listener, destination, .. } = self;
        // It is non-blocking and stays so: the iteration ends when nobody waits.
        let listener = listener.into_std().ok();
        let next = move || listener.as_ref()?.accept().ok();
        std::iter::from_fn(next)
            .take(BACKLOG)
            .filter_map(move |(stream, source)| register(stream, source, destination).ok())
    }
}

fn register(
    stream: std::net::TcpStream,
    source: SocketAddr,
    destination: Option<SocketAddr>,
) -> io::Result<Accepted> {
    stream.set_nonblocking(true)?;
    accepted(TcpStream::from_std(stream)?, source, destination)
}

fn accepted(stream: TcpStream, source: SocketAddr, destination: Option<SocketAddr>) -> io::Result<Accepted> {
    let local = canonical(stream.local_addr()?);
    let original = destination.or_else(|| socket::original_dst(&stream)).unwrap_or(local);
    Ok(Accepted { stream, source: canonical(source), local, original, place: None })
}

// === impl Listeners ===

impl Listeners {
    /// Binds the three ports in the namespace that `sockets` stands for. Must be called inside a runtime.
    ///
    /// # Errors
    /// When a port cannot be bound, or transparency was required and is not allowed.
    pub fn bind(
        sockets: &Sockets,
        ports: Ports,
        transparent: Transparent,
    ) -> Result<Self, isthmus_sys::Error> {
        Ok(Self {
            outbound: Bound::wildcard(sockets, ports.outbound, transparent)?,
            inbound: Bound::wildcard(sockets, ports.inbound, transparent)?,
            inbound_plaintext: Bound::wildcard(sockets, ports.inbound_plaintext, transparent)?,
        })
    }
}

/// How a listener is served.
pub(crate) struct Acceptor {
    pub(crate) bound: Bound,
    /// For logs: which listener, of whom.
    pub(crate) what: &'static str,
    pub(crate) owner: Arc<str>,
    /// What accepting and the connections run on.
    pub(crate) share: Arc<Share>,
    /// Connections that may be set up at once; the rest waits in the backlog, where it costs us nothing.
    pub(crate) limit: Option<Arc<Places>>,
    pub(crate) drain: Watch,
}

impl Acceptor {
    /// Accepts until the drain begins, each connection in a task of its own, then closes the listener and waits for
    /// them. Dropping the future ends them. No error of `accept` ends the loop: those that concern one connection are
    /// skipped, those that concern us (no file descriptors left) are waited out.
    pub(crate) async fn run<F, Fut>(self, mut serve: F)
    where
        F: FnMut(Accepted, Watch) -> Fut,
        Fut: Spawnable + Future<Output = ()>,
    {
        let connections = Tasks::new(Arc::clone(&self.owner));
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            let next = tokio::select! {
                biased;
                () = self.drain.graceful() => break,
                next = self.share.spend(self.next()) => next,
            };
            match next {
                Ok(accepted) => {
                    backoff.reset();
                    connections.spawn(self.what, self.share.run(serve(accepted, self.drain.clone())));
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(listener = self.what, pod = %self.owner, %error, "a client left before it was accepted");
                }
                Err(error) => {
                    let wait = backoff.next_delay();
                    tracing::warn!(listener = self.what, pod = %self.owner, %error, retry_in = ?wait, "cannot accept");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        for accepted in self.bound.into_backlog() {
            connections.spawn(self.what, self.share.run(serve(accepted, self.drain.clone())));
        }
        // Connections hold their own clones; ours must not keep the drain waiting.
        drop((self.drain, serve));
        connections.wait().await;
    }

    async fn next(&self) -> io::Result<Accepted> {
        let mut place = match &self.limit {
            Some(limit) => Some(limit.take().await),
            None => None,
        };
        self.share.pace().await;
        let accepted = self.bound.accept().await?;
        if let Some(place) = &mut place {
            place.begin();
        }
        Ok(Accepted { place, ..accepted })
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NotConnected
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turns::Turns;
    use isthmus_rt::drain;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    async fn acceptor(limit: Option<usize>) -> (Acceptor, SocketAddr, drain::Drain) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, watch) = drain::channel();
        let limit = limit.map(|places| Places::new(places, Duration::from_secs(3600)));
        let bound = Bound::from_tokio(listener, false);
        (
            Acceptor {
                bound,
                what: "test",
                owner: "pod".into(),
                share: Turns::default().share(),
                limit,
                drain: watch,
            },
            address,
            drain,
        )
    }

    #[tokio::test]
    async fn a_drain_closes_the_listener_and_waits_for_the_connections() {
        let (acceptor, address, drain) = acceptor(None).await;
        let served = acceptor.run(|mut accepted, watch| async move {
            let mut byte = [0];
            // Those that only tried whether somebody listens say nothing.
            if accepted.stream.read_exact(&mut byte).await.is_ok() {
                accepted.stream.write_all(&byte).await.unwrap();
            }
            drop(watch);
        });
        let client = async {
            let mut open = TcpStream::connect(address).await.unwrap();
            let stop = drain.shutdown(Duration::from_secs(60));
            let finish = async {
                // Bounded wait on a condition: the listener goes away while the connection stays.
                while TcpStream::connect(address).await.is_ok() {
                    tokio::task::yield_now().await;
                }
                open.write_all(b"x").await.unwrap();
                let mut byte = [0];
                open.read_exact(&mut byte).await.unwrap();
                byte
            };
            tokio::join!(stop, finish)
        };
        let ((), (outcome, byte)) = tokio::join!(served, client);
        assert_eq!((outcome, byte), (drain::Outcome::Drained, *b"x"));
    }

    /// An upgrade: connections that the kernel gave to the listener that closes are served by it, none is reset.
    #[tokio::test]
    async fn what_waits_to_be_accepted_when_the_listener_closes_is_served() {
        const WAITING: usize = 50;
        let sockets = Sockets::host().with_ipv6(false).with_reuse_port(true);
        let (listener, _) = sockets.listen(([127, 0, 0, 1], 0).into(), Transparent::Never).unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, watch) = drain::channel();
        // One place, which the first connection never gives back: the others stay in the queue.
        let limit = Some(Places::new(1, Duration::from_secs(3600)));
        let bound = Bound::from_tokio(listener, false);
        let share = Turns::default().share();
        let acceptor = Acceptor { bound, what: "test", owner: "pod".into(), share, limit, drain: watch };
        let (seen, mut arrivals) = mpsc::unbounded_channel();
        let tasks = Tasks::new("test");
        tasks.spawn(
            "acceptor",
            acceptor.run(move |accepted, watch| {
                seen.send((accepted, watch)).unwrap();
                std::future::ready(())
            }),
        );
        let _first = TcpStream::connect(address).await.unwrap();
        let first = arrivals.recv().await.unwrap();
        let mut clients = Vec::new();
        for _ in 0..WAITING {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let (_other, _) = sockets.listen(address, Transparent::Never).unwrap();
        let mut end = Box::pin(drain.shutdown(Duration::from_secs(60)));
        let mut served = Vec::new();
        while served.len() < WAITING {
            tokio::select! {
                _ = &mut end => panic!("nobody waits for the connections"),
                accepted = arrivals.recv() => served.push(accepted.unwrap()),
            }
        }
        for (accepted, _) in &mut served {
            accepted.stream.write_all(b"x").await.unwrap();
        }
        for client in &mut clients {
            client.read_exact(&mut [0]).await.expect("it was reset");
        }
        drop((served, first));
        assert_eq!(end.await, drain::Outcome::Drained);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_set_up_at_once() {
        let (acceptor, address, drain) = acceptor(Some(1)).await;
        let (seen, mut arrivals) = mpsc::unbounded_channel();
        let tasks = Tasks::new("test");
        tasks.spawn(
            "acceptor",
            acceptor.run(move |accepted, _watch| {
                seen.send(accepted).unwrap();
                std::future::ready(())
            }),
        );
        let _clients =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let first = arrivals.recv().await.unwrap();
        assert!(arrivals.try_recv().is_err());
        drop(first.place);
        assert!(arrivals.recv().await.is_some());
        drop(drain);
    }

    #[tokio::test(start_paused = true)]
    async fn no_error_of_accept_ends_the_loop() {
        // A connected socket with something to read, taken for a listener: every accept fails (EINVAL).
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        io::Write::write_all(&mut client, b"x").unwrap();
        let broken = std::os::fd::OwnedFd::from(listener.accept().unwrap().0);
        let bound = Bound::from_std(broken.into(), false).unwrap();
        assert_eq!(bound.accept().await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (drain, watch) = drain::channel();
        let acceptor = Acceptor {
            bound,
            what: "test",
            owner: "pod".into(),
            share: Turns::default().share(),
            limit: None,
            drain: watch,
        };
        let mut run = std::pin::pin!(acceptor.run(|_, _| std::future::ready(())));
        let minute = Duration::from_secs(60);
        assert!(tokio::time::timeout(minute, &mut run).await.is_err(), "it still tries");
        let (outcome, ()) = tokio::join!(drain.shutdown(minute), run);
        assert_eq!(outcome, drain::Outcome::Drained);
    }

    #[tokio::test]
    async fn a_listener_can_be_told_where_its_connections_go() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = Bound::from_std(listener, false).unwrap();
        let address = bound.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        assert_eq!(bound.accept().await.unwrap().original, address);
        let elsewhere = "10.0.0.1:80".parse().unwrap();
        let bound = bound.with_destination(elsewhere);
        let _client = TcpStream::connect(address).await.unwrap();
        assert_eq!(bound.accept().await.unwrap().original, elsewhere);
    }
}
