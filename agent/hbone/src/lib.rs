//! The HBONE tunnel: HTTP/2 CONNECT over mutual TLS, as client and as server, with a pool, copy loops and the nested
//! tunnel.
//!
//! It works over any byte stream and knows nothing of identities' meaning or of the mesh's state. The HTTP/2 engine is
//! `h2`, driven directly; no type of it appears in the public API, so the engine can be replaced. [`session`] is the one
//! place on the HBONE path that names the TLS library's stream.

mod alive;
pub mod baggage;
pub mod client;
pub mod copy;
pub mod error;
pub mod forwarded;
pub mod head;
mod load;
pub mod pool;
pub mod reason;
pub mod server;
pub mod session;
pub mod settings;
pub mod stream;
pub mod stream_io;
pub mod trace;

pub use error::{Blame, OpenError, StreamError, TlsError, TunnelError};
pub use head::{BadHead, Head, ResponseHead};
pub use isthmus_model::Authority;
pub use reason::Reason;
pub use settings::Settings;
pub use stream::{RecvHalf, SendHalf, Stream};
pub use stream_io::StreamIo;

use tokio::io::{AsyncRead, AsyncWrite};

/// What a client tunnel runs over. The tunnel's owner is a task, so what [`isthmus_rt::task::Spawnable`] asks of a task
/// is asked of its transport here, and nowhere else in this crate.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for S {}
