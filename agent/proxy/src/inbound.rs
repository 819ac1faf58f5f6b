//! Connections to the pod: HBONE on 15008, captured plaintext on 15006. Each is authorized before it is forwarded to
//! the application. Knows nothing of how policies are stored or matched.

mod hbone;
pub(crate) mod plaintext;
mod proxy_protocol;
mod request;
mod stream;

pub(crate) use hbone::{accept, resume, serve};
pub(crate) use request::InboundTunnel;
pub(crate) use stream::MovedStream;
#[cfg(test)]
pub(crate) use stream::serve as serve_stream;
