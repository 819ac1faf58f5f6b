//! A copy of every frame on an interface, as a packet sniffer sees it: for proving what is, and what is not, on a wire.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use crate::Error;
use crate::netns::Netns;
use crate::route;

/// More than the largest frame that offloading builds.
const FRAME: usize = 256 * 1024;
/// How much the kernel may hold back for us, in bytes; it may give less.
const BACKLOG: usize = 8 * 1024 * 1024;

/// Frames of one interface, from the moment it was opened, both directions. Collected by a thread of its own, so that a
/// flood does not overflow the kernel's buffer.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    stop: Option<UnixStream>,
    collector: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    interface: usize,
    frames: Mutex<Vec<Vec<u8>>>,
}

impl Capture {
    /// Starts capturing. Whatever is sent or received on the interface after this returns is seen.
    ///
    /// # Errors
    /// When there is no such interface, or without `CAP_NET_RAW` in the namespace.
    pub fn open(netns: &Netns, ifname: &str) -> Result<Self, Error> {
        let failed =
            |cause: io::Error| Error::new("capture on", format!("{ifname} in {}", netns.id()), cause);
        let index = route::index(netns, ifname)?;
        let make = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        };
        let socket = netns.run(make)?.map_err(|e| failed(e.into()))?;
        setsockopt(&socket, sockopt::RcvBuf, &BACKLOG).map_err(|e| failed(e.into()))?;
        let interface = usize::try_from(index).map_err(io::Error::other).map_err(failed)?;
        let shared = Arc::new(Shared { socket, interface, frames: Mutex::default() });
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let collecting = Arc::clone(&shared);
        let collector = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || collecting.collect_until(&stopped))
            .map_err(failed)?;
        Ok(Self { shared, stop: Some(stop), collector: Some(collector) })
    }

    /// The frames since the last call, in order, each with its Ethernet header. Everything that was on the wire before
    /// the call is among them.
    #[must_use]
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut frames = self.shared.frames();
        self.shared.collect(&mut frames);
        std::mem::take(&mut frames)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(collector) = self.collector.take() {
            // It can only have panicked, and that was reported when it happened.
            let _ = collector.join();
        }
    }
}

impl Shared {
    fn frames(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other end of `stopped` closes when the capture ends.
    fn collect_until(&self, stopped: &UnixStream) {
        loop {
            let mut wanted = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut wanted, PollTimeout::NONE) {
                Ok(_) if wanted[1].any() == Some(false) => self.collect(&mut self.frames()),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Takes what the kernel has for us. A packet socket hears all interfaces of its namespace.
    fn collect(&self, frames: &mut Vec<Vec<u8>>) {
        let mut buffer = vec![0; FRAME];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((len, Some(from))) if from.ifindex() == self.interface => {
                    frames.push(buffer[..len.min(FRAME)].to_vec());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    // An interface of the namespace went down; the others go on.
                    if errno != Errno::ENETDOWN {
                        tracing::warn!(%errno, "capture ended");
                        return;
                    }
                }
            }
        }
    }
}
