//! Reads and writes of a socket at one system call each: a short one says that the socket is empty or full, and need not be
//! repeated to learn it.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads once. A short read clears the socket's readiness as `WouldBlock` would.
///
/// # Errors
/// `WouldBlock` when the socket is not ready, or what the system call returns.
pub(crate) fn read(tcp: &TcpStream, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let wanted = slices.iter().map(|slice| slice.len()).sum();
    once(tcp, Interest::READABLE, wanted, || (&*SockRef::from(tcp)).read_vectored(slices))
}

/// Writes once. A short write clears the socket's readiness as `WouldBlock` would.
///
/// # Errors
/// `WouldBlock` when the socket is not ready, or what the system call returns.
pub(crate) fn write(tcp: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let wanted = slices.iter().map(|slice| slice.len()).sum();
    once(tcp, Interest::WRITABLE, wanted, || (&*SockRef::from(tcp)).write_vectored(slices))
}

/// The readiness that is cleared is the one from before the call: an event that arrives meanwhile stays.
fn once(
    tcp: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut short = None;
    let done = tcp.try_io(interest, || match call() {
        Ok(count) if count > 0 && count < wanted => {
            short = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        }
        done => done,
    });
    short.map_or(done, Ok)
}
