//! What istio-cni's iptables back end leaves in pods and on the host when this role takes its place: chains that redirect
//! to the same ports, and the sets of probed addresses. Its nftables back end has our tables' names.

use isthmus_sys::iptables::{self, RemoveError};
use isthmus_sys::netns::Netns;

use super::host;

/// Its chains in a pod. A sidecar's rules have the second one too, but not the first.
const POD: [&str; 2] = ["ISTIO_PRERT", "ISTIO_OUTPUT"];
/// Its chain on the host.
const HOST: [&str; 1] = ["ISTIO_POSTRT"];

/// Removes its rules from a pod. The number of tables that had some.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_predecessors_pod(netns: &Netns) -> Result<usize, RemoveError> {
    iptables::remove_chains(netns, &POD)
}

/// Removes its rules and sets from the host. The number of tables that had some.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_predecessors_host(netns: &Netns) -> Result<usize, RemoveError> {
    let tables = iptables::remove_chains(netns, &HOST)?;
    // The sets have the names that ours have inside of our table.
    for set in host::SETS {
        iptables::destroy_set(netns, set)?;
    }
    Ok(tables)
}
