//! A packet capture of one interface (`AF_PACKET`), for tests that prove what is, and what is not, on the wire. It
//! must not know what the frames mean.

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

/// Receive buffer: larger than the largest frame that segmentation offload builds.
const FRAME: usize = 256 * 1024;
/// `SO_RCVBUF` in bytes; the kernel caps it at `net.core.rmem_max`.
const BACKLOG: usize = 8 * 1024 * 1024;

/// The frames of one interface in both directions, from the moment it was opened. A thread of its own collects them,
/// so that a flood does not overflow the kernel's buffer.
#[derive(Debug)]
pub struct Capture {
    socket: Arc<CaptureSocket>,
    stop: Option<UnixStream>,
    collector: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct CaptureSocket {
    socket: OwnedFd,
    interface: usize,
    frames: Mutex<Vec<Vec<u8>>>,
}

impl Capture {
    /// Starts capturing. Every frame that the interface sends or receives after this returns is captured.
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
        let socket = Arc::new(CaptureSocket { socket, interface, frames: Mutex::default() });
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let collecting = Arc::clone(&socket);
        let collector = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || collecting.collect_until(&stopped))
            .map_err(failed)?;
        Ok(Self { socket, stop: Some(stop), collector: Some(collector) })
    }

    /// The frames since the last call, in order, each with its Ethernet header, including every frame that was on the
    /// wire before this call.
    #[must_use]
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut frames = self.socket.frames();
        self.socket.collect(&mut frames);
        std::mem::take(&mut frames)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(collector) = self.collector.take() {
            // An error means that the thread panicked, which the panic hook has reported.
            let _ = collector.join();
        }
    }
}

impl CaptureSocket {
    fn frames(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects frames until the other end of `stopped` is closed.
    fn collect_until(&self, stopped: &UnixStream) {
        loop {
            let mut polled = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) if polled[1].any() == Some(false) => self.collect(&mut self.frames()),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Reads the frames that the kernel has queued. A packet socket that is not bound receives from all interfaces of
    /// its namespace.
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
                    // ENETDOWN: some interface of the namespace went down; frames of the others still arrive.
                    if errno != Errno::ENETDOWN {
                        tracing::warn!(%errno, "packet capture stopped, frames are missing from here on");
                        return;
                    }
                }
            }
        }
    }
}
