//! Canaries: TCP handshakes with a random port as nonce, which show by the kernel's own evidence where a namespace's
//! traffic is led. Outbound, a socket without mark connects to an address that leads nowhere; inbound, a SYN is put on
//! the wire at the other end of the namespace's interface. It must not know whose traffic it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;
use crate::bypass::{Interface, interfaces};
use crate::netns::Netns;
use crate::sock_diag::{self, TcpKind, TcpState};

mod segment;

use segment::Segment;

/// How long a request may take through the kernel.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two looks at the socket table.
const PAUSE: Duration = Duration::from_millis(2);

/// Where a canary has come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// At this socket of the namespace, on the expected port.
    At(TcpState),
    /// A reset came back: nothing listens where it was led to.
    Refused,
    /// It was not answered, or answered by something else: it was not led to the expected port.
    Elsewhere,
    /// The namespace has no route for its family, or no interface on which it could arrive: nothing can take this road.
    NoRoad,
}

/// Connects from inside a namespace to `to`, as an application would, and sees whether the connection is led to the
/// local `port`. The connection is reset afterwards.
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses a query.
pub fn outbound(netns: &Netns, to: SocketAddr, port: u16) -> Result<Landing, Error> {
    let failed = || Error::on("send a canary from", netns.id());
    let socket = match netns.run(|| begin(to))? {
        Ok(socket) => socket,
        Err(error) if unreachable(&error) => return Ok(Landing::NoRoad),
        Err(error) => return Err(failed()(error)),
    };
    if !answered(&socket).map_err(failed())? {
        return Ok(Landing::Elsewhere);
    }
    match socket.take_error().map_err(failed())? {
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Landing::Refused),
        Some(error) if unreachable(&error) => return Ok(Landing::NoRoad),
        Some(_) => return Ok(Landing::Elsewhere),
        None => {}
    }
    let Some(from) = socket.local_addr().map_err(failed())?.as_socket() else {
        return Ok(Landing::Elsewhere);
    };
    let loopback =
        if to.is_ipv4() { [127, 0, 0, 1].into() } else { IpAddr::V6(std::net::Ipv6Addr::LOCALHOST) };
    landed(netns, from, &[SocketAddr::new(loopback, port)])
}

fn begin(to: SocketAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A reset at the close: nothing waits for the canary.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(socket),
        done => done.map(|()| socket),
    }
}

fn unreachable(error: &io::Error) -> bool {
    let errnos = [Errno::ENETUNREACH, Errno::EADDRNOTAVAIL, Errno::EAFNOSUPPORT, Errno::ENETDOWN];
    errnos.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn answered(socket: &Socket) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

/// Puts a SYN from `from` to the address `to` on the wire at the other end of the interface that has it, as a packet of
/// a client comes in, and sees whether it is led to the local `port`. It is taken back by a reset afterwards.
/// [`Landing::NoRoad`] when the interface has no other end in `outside`.
///
/// # Errors
/// When a namespace cannot be entered or the kernel refuses a query.
pub fn inbound(
    netns: &Netns,
    outside: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    port: u16,
) -> Result<Landing, Error> {
    let addresses = crate::route::addresses(netns)?;
    let Some((name, _)) = addresses.iter().find(|(_, net)| net.addr() == to.ip()) else {
        return Ok(Landing::NoRoad);
    };
    let Some((here, there)) = pair(netns, outside, name)? else { return Ok(Landing::NoRoad) };
    let sequence = u32::from(from.port()) << 16 | u32::from(to.port());
    let syn = Segment { here: &here.mac, there: &there.mac, from, to, sequence, reset: false };
    let reset = Segment { sequence: sequence.wrapping_add(1), reset: true, ..syn };
    let failed = || Error::on("put a canary on the wire to", netns.id());
    segment::send(outside, there.index, &syn.frame()).map_err(failed())?;
    // A redirection leads to an address of the interface, not necessarily to this one.
    let local: Vec<SocketAddr> = addresses
        .iter()
        .filter(|(at, net)| at == name && net.addr().is_ipv4() == to.is_ipv4())
        .map(|(_, net)| SocketAddr::new(net.addr(), port))
        .collect();
    let landed = landed(netns, from, &local);
    segment::send(outside, there.index, &reset.frame()).map_err(failed())?;
    landed
}

/// An interface and its other end.
fn pair(netns: &Netns, outside: &Netns, name: &str) -> Result<Option<(Interface, Interface)>, Error> {
    let Some(here) = interfaces(netns)?.into_iter().find(|link| link.name == name) else { return Ok(None) };
    let there = interfaces(outside)?
        .into_iter()
        .find(|link| here.link == Some(link.index) && link.link == Some(here.index) && !here.mac.is_empty());
    Ok(there.map(|there| (here, there)))
}

fn landed(netns: &Netns, from: SocketAddr, local: &[SocketAddr]) -> Result<Landing, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for at in local {
            match sock_diag::receiver(netns, from, *at)? {
                Some(state) if state.kind != TcpKind::Listener => return Ok(Landing::At(state)),
                _ => {}
            }
        }
        if Instant::now() >= deadline {
            return Ok(Landing::Elsewhere);
        }
        std::thread::sleep(PAUSE);
    }
}
