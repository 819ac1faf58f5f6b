//! The kernel seam: network namespaces, sockets made inside them, Unix sockets and their peers, nftables, conntrack, routes, limits, and the only
//! `unsafe` code. It must not know pods, policies or the mesh. Every error names the operation, its object and the
//! kernel's answer.

pub mod bypass;
pub mod canary;
pub mod capture;
pub mod changes;
pub mod conntrack;
pub mod folders;
pub mod heap;
pub mod iptables;
pub mod limits;
pub mod netns;
pub mod nft;
pub mod peer;
pub mod private_socket;
pub mod process_metrics;
pub mod route;
pub mod secrecy;
pub mod sock_diag;
pub mod socket;
pub mod sysctl;
pub mod userns;

mod address;
mod error;
mod netlink;

pub use error::Error;
pub use ipnet::IpNet;
