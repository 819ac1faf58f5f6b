//! Chains that another program has made with `iptables`, in either of its back ends, found and removed without its
//! binaries. A table counts only if it has every chain that is named: one of them alone may be of somebody else. It must
//! not know what the chains are for.

use crate::Error;
use crate::netns::Netns;
use crate::nft;

mod ipset;
mod legacy;

#[doc(hidden)]
pub use ipset::create as create_set;
pub use ipset::destroy as destroy_set;

/// Why chains or sets could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The nf_tables back end refused.
    #[error("chains of iptables-nft: {0}")]
    Nft(#[from] nft::Error),
    /// The legacy back end refused, or a set could not be destroyed.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Removes the chains from every table of both back ends and both families that has all of them, with what jumps to them.
/// The number of tables.
///
/// # Errors
/// With the first table that could not be changed; it is as before.
pub fn remove_chains(netns: &Netns, chains: &[&str]) -> Result<usize, RemoveError> {
    let nft = nft::remove_foreign_chains(netns, chains)?;
    Ok(nft + legacy::remove_chains(netns, chains)?)
}
