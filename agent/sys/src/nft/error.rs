//! Why nftables rules could not be written or read.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

/// Why nftables rules could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused one command, so nothing of the transaction was applied.
    #[error("nftables: {command}: {cause}{}", hint(command, cause))]
    Refused {
        /// The command in `nft`'s syntax: operation, table, chain, rule.
        command: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The transaction failed as a whole, so nothing was applied.
    #[error("nftables transaction in {netns}: {cause}{}", hint("", cause))]
    Transaction {
        /// The network namespace.
        netns: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel did not list its rules.
    #[error("nftables: list {what}: {cause}{}", hint("", cause))]
    List {
        /// What was to be listed.
        what: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The comment of a set element is longer than the kernel stores, or contains a zero byte. The caller's mistake.
    #[error("nftables: element {address}: comment {comment:?} is longer than {max} bytes or has a zero byte")]
    Comment {
        /// The element.
        address: IpAddr,
        /// Its comment.
        comment: String,
        /// The kernel's limit.
        max: usize,
    },
    /// A rule has a statement that was read from the kernel and is not understood. The caller's mistake.
    #[error("nftables: {command}: has a statement that cannot be written")]
    UnknownStatement {
        /// The command in `nft`'s syntax.
        command: String,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] crate::Error),
}

/// What to check when the kernel's answer alone does not say it.
fn hint(command: &str, cause: &io::Error) -> &'static str {
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => " (requires CAP_NET_ADMIN)",
        // ENOENT for a rule or chain is the answer to an expression or chain type without a module, unless a jump or a
        // set leads nowhere.
        Some(Errno::ENOENT) if command.starts_with("add rule") || command.starts_with("add chain") => {
            " (a chain or set that it refers to, or one of the kernel modules nft_chain_nat, nft_redir, nft_nat, nft_ct, \
             nft_counter is missing)"
        }
        Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => {
            " (the kernel lacks CONFIG_NF_TABLES or CONFIG_NF_TABLES_INET)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_to_check() {
        let text = |command: &str, errno: Errno| {
            Error::Refused { command: command.to_owned(), cause: errno.into() }.to_string()
        };
        assert!(text("add rule inet t c redirect to :1", Errno::ENOENT).contains("nft_redir"));
        assert!(text("add table inet t", Errno::EPERM).contains("CAP_NET_ADMIN"));
        assert!(text("add table inet t", Errno::EOPNOTSUPP).contains("CONFIG_NF_TABLES"));
        assert!(text("delete element inet t s { ::1 }", Errno::ENOENT).ends_with("(os error 2)"));
    }
}
