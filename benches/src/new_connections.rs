//! Load of new connections: connect, one byte there, one byte back, close. It must not know what is measured.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use isthmus_kit::lab::Host;

/// Clients at the same time.
pub const CLIENTS: u32 = 4;
/// Threads of the server: more than clients, so that none waits for another's connection to be closed.
const SERVERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens `number` connections by [`CLIENTS`] threads in the client's namespace.
///
/// # Errors
/// When a connection fails or takes too long.
pub fn run(client: &Host, server: SocketAddr, number: u32) -> Result<()> {
    let one = |server| -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let part = || client.netns.run_thread(|| (0..number / CLIENTS).try_for_each(|_| one(server)));
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(part)).collect();
        parts
            .into_iter()
            .try_for_each(|part| Ok(part.join().map_err(|_| anyhow!("a client panicked"))???))
    })
}

/// Starts a server of one byte, for as long as the process lives.
///
/// # Errors
/// When the port is taken.
pub fn serve(host: &Host, port: u16) -> Result<SocketAddr> {
    let address = SocketAddr::new(host.v4.into(), port);
    let listener = host.netns.run(|| TcpListener::bind(address))?.context("listening")?;
    for _ in 0..SERVERS {
        let listener = listener.try_clone()?;
        std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                let answered = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
                // The client closes first and reports errors.
                let _ = answered.and_then(|()| stream.read(&mut byte));
            }
        })?;
    }
    Ok(address)
}
