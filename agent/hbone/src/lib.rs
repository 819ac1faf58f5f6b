//! The HBONE tunnel: HTTP/2 CONNECT over mutual TLS, as client and as server, with a pool of tunnels, copy loops and the
//! nested tunnel.
//!
//! It works over any byte stream and knows neither the meaning of identities nor the state of the mesh. The HTTP/2 engine
//! is `h2`; none of its types appears in the public API, so it can be replaced. [`session`] is the only place on the HBONE
//! path that names the TLS library's stream.
//!
//! ```text
//! pool → client ┐                              ┌→ settings
//!               ├→ stream → close_reason → error, reason, status
//!       server ─┘     └→ usage → cpu_load
//! copy → stream        stream_io → stream      session (TLS below a tunnel)
//! ```

pub mod baggage;
pub mod client;
mod close_reason;
pub mod copy;
mod cpu_load;
pub mod error;
pub mod forwarded;
pub mod head;
mod keepalive;
pub mod pool;
pub mod reason;
pub mod server;
pub mod session;
pub mod settings;
pub mod status;
pub mod stream;
pub mod stream_io;
pub mod trace;
mod usage;

pub use client::Transport;
pub use error::{OpenError, PeerRevoked, StreamError, TlsError, TunnelError};
pub use head::{BadHead, Head, ResponseHead};
pub use isthmus_model::Authority;
pub use reason::Reason;
pub use settings::Settings;
pub use status::ConnectStatus;
pub use stream::{RecvHalf, SendHalf, Stream};
pub use stream_io::StreamIo;
