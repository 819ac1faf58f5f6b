//! Address sets of `ipset`, which rules of iptables refer to.

use netlink_packet_core::{NLM_F_ACK, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::Error;
use crate::netlink::{Netlink, Raw, attribute};
use crate::netns::Netns;

/// `NFNL_SUBSYS_IPSET`
const SUBSYSTEM: u16 = 6;
/// `IPSET_CMD_DESTROY`
const DESTROY: u16 = 3;
/// `IPSET_PROTOCOL_MIN`, which every kernel speaks.
const PROTOCOL: u8 = 6;
/// `IPSET_ATTR_PROTOCOL`, `IPSET_ATTR_SETNAME`
const ATTRIBUTES: (u16, u16) = (1, 2);
/// `struct nfgenmsg`: `AF_INET`, version 0
const HEADER: [u8; 4] = [2, 0, 0, 0];

/// Destroys a set; success when there is none, or no support for sets.
///
/// # Errors
/// When a rule still refers to it.
pub fn destroy(netns: &Netns, name: &str) -> Result<(), Error> {
    let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
    match netlink.request(message(DESTROY, name, &[]), NLM_F_ACK) {
        Ok(_) => Ok(()),
        Err(cause) => match cause.raw_os_error().map(Errno::from_raw) {
            // The last two are the answers of a kernel without the module.
            Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(()),
            _ => Err(Error::new("destroy set", format!("{name} in {}", netns.id()), cause)),
        },
    }
}

fn message(command: u16, name: &str, rest: &[u8]) -> Raw {
    let name = [name.as_bytes(), &[0]].concat();
    let bytes =
        [&HEADER[..], &attribute(ATTRIBUTES.0, &[PROTOCOL]), &attribute(ATTRIBUTES.1, &name), rest].concat();
    Raw { kind: SUBSYSTEM << 8 | command, bytes }
}

/// Creates a set of IPv4 addresses (`hash:ip`), as a test of [`destroy`] needs.
///
/// # Errors
/// When the kernel refuses.
#[doc(hidden)]
pub fn create(netns: &Netns, name: &str) -> Result<(), Error> {
    /// `IPSET_CMD_CREATE`; `IPSET_ATTR_TYPENAME`, `_REVISION`, `_FAMILY`, `_DATA`
    const CREATE: u16 = 2;
    let rest =
        [attribute(3, b"hash:ip\0"), attribute(4, &[0]), attribute(5, &[2]), attribute(7 | 0x8000, &[])]
            .concat();
    let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
    let created = netlink.request(message(CREATE, name, &rest), NLM_F_ACK | NLM_F_EXCL);
    created.map(drop).map_err(Error::on("create set", name))
}
