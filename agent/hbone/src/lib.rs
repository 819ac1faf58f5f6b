//! The HBONE tunnel: HTTP/2 CONNECT over mutual TLS, as client and as server, with a pool of tunnels, copy loops and the
//! nested tunnel.
//!
//! It works over any byte stream and knows neither the meaning of identities nor the state of the mesh. HTTP/2 and the TLS
//! record layer are crates below; rustls makes the handshake. Of their types only the error
//! code appears in the public API.
//!
//! ```text
//! pool → client ┐                    ┌→ keepalive → settings → memory, peer_budget
//!       server  ┼→ stream → tunnel  ┼→ close_reason → error, status
//!         copy ─┘      session ─┘   └→ byte_counter        usage → cpu_load
//! ```

pub mod baggage;
mod byte_counter;
pub mod client;
mod close_reason;
pub mod copy;
pub mod error;
pub mod forwarded;
pub mod handover;
pub mod head;
mod keepalive;
pub mod memory;
pub mod peer_budget;
pub mod pool;
pub mod server;
pub mod session;
pub mod settings;
mod socket_io;
pub mod status;
pub mod stream;
pub mod stream_io;
pub mod trace;
mod tunnel;
mod usage;

pub use error::{OpenError, PeerRevoked, StreamError, TlsError, TunnelError};
pub use head::{BadHead, Head, ResponseHead};
pub use isthmus_http2::Code as Reason;
pub use isthmus_model::Authority;
pub use memory::MemoryBudget;
pub use peer_budget::{PeerBudgets, PeerTunnel, TooManyTunnels};
pub use settings::Settings;
pub use status::ConnectStatus;
pub use stream::{RecvHalf, SendHalf, Stream};
pub use stream_io::StreamIo;
pub use tunnel::{Link, Transport, TunnelId};
