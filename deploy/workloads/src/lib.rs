//! The programs that run in the playground's pods: the helloworld server and an HTTP client. They know no Kubernetes and
//! no mesh: addresses and names come from the command line and the pod's resolver.

pub mod helloworld;
pub mod http;
pub mod request;
