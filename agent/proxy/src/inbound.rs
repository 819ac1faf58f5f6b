//! Connections to the pod: HBONE on 15008, plaintext on 15006. Each is judged by policy before it reaches the application.

mod hbone;
pub(crate) mod plaintext;
mod proxy_protocol;
mod request;
mod stream;

#[cfg(test)]
pub(crate) use hbone::stream_future_size;
pub(crate) use hbone::{accept, serve};
