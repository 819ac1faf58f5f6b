//! Placeholder.
#![allow(dead_code)]
mod api;
mod istiod;
mod kubeclient;
mod manifest;
mod tls;
fn main() {}
