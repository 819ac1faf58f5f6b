//! The kernel seam: network namespaces, sockets made inside them, nftables, conntrack, routes, limits. Nothing here knows a pod, a
//! policy or a mesh; every function says what it does to the kernel and fails with the operation and its object.

pub mod capture;
pub mod conntrack;
pub mod limits;
pub mod netns;
pub mod nft;
pub mod process_metrics;
pub mod route;
pub mod socket;
pub mod sysctl;
pub mod userns;

mod address;
mod error;
mod netlink;

pub use error::Error;
pub use ipnet::IpNet;
