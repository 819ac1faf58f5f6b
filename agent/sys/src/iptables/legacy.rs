//! The legacy back end: a table is one blob of entries that is read and replaced whole, by socket options. Owns the blob's
//! form (`linux/netfilter_ipv4/ip_tables.h`, and `ip6_tables.h`, on 64-bit machines).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use self::blob::{Blob, Form};
use crate::Error;
use crate::netns::Netns;

mod blob;

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, and `IPT_SO_SET_REPLACE`; the same for IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const SET_REPLACE: i32 = 64;
/// Length of a table's name in every structure.
const NAME: usize = 32;
/// Attempts when the table changes meanwhile.
const ATTEMPTS: usize = 4;

/// One family.
struct Family {
    domain: AddressFamily,
    level: i32,
    form: Form,
    /// The tables that exist in the namespace. To ask the kernel for another one would make it.
    names: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        domain: AddressFamily::Inet,
        level: libc::SOL_IP,
        form: Form::IPV4,
        names: "/proc/thread-self/net/ip_tables_names",
    },
    Family {
        domain: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        form: Form::IPV6,
        names: "/proc/thread-self/net/ip6_tables_names",
    },
];

/// See [`super::remove_chains`].
pub(super) fn remove_chains(netns: &Netns, chains: &[&str]) -> Result<usize, Error> {
    let removed = netns.run_thread(|| {
        let mut count = 0;
        for family in &FAMILIES {
            // Without the module there is no file.
            let names = std::fs::read_to_string(family.names).unwrap_or_default();
            for table in names.split_whitespace() {
                count += usize::from(
                    remove_from(family, table, chains).map_err(|cause| (table.to_owned(), cause))?,
                );
            }
        }
        Ok(count)
    })?;
    removed.map_err(|(table, cause): (String, io::Error)| {
        Error::new("remove chains of iptables-legacy from", format!("table {table} in {}", netns.id()), cause)
    })
}

/// Whether the table had the chains.
fn remove_from(family: &Family, table: &str, chains: &[&str]) -> io::Result<bool> {
    let socket = socket(family.domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let mut last = io::Error::from(io::ErrorKind::InvalidData);
    for _ in 0..ATTEMPTS {
        let found = read(&socket, family, table)?;
        let Some(wanted) = found.without(&family.form, chains)? else { return Ok(false) };
        match set(&socket, family.level, SET_REPLACE, &replacement(table, &wanted, found.count)) {
            // The number of counters did not match: another program was faster.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => last = error,
            done => return done.map(|()| true),
        }
    }
    Err(last)
}

fn read(socket: &impl AsFd, family: &Family, table: &str) -> io::Result<Blob> {
    // struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
    let mut info = vec![0; NAME + 4 + 20 + 20 + 4 + 4];
    info[..table.len().min(NAME - 1)].copy_from_slice(&table.as_bytes()[..table.len().min(NAME - 1)]);
    get(socket, family.level, GET_INFO, &mut info)?;
    let word = |at: usize| blob::word(&info, NAME + at);
    let size = word(48);
    // struct ipt_get_entries: name, size, padding, entries
    let header = NAME + 8;
    let mut entries = vec![0; header + size as usize];
    entries[..NAME].copy_from_slice(&info[..NAME]);
    entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    get(socket, family.level, GET_ENTRIES, &mut entries)?;
    Ok(Blob {
        valid_hooks: word(0),
        hook_entry: std::array::from_fn(|hook| word(4 + 4 * hook)),
        underflow: std::array::from_fn(|hook| word(24 + 4 * hook)),
        count: word(44),
        entries: entries.split_off(header),
    })
}

/// `struct ipt_replace`, but for the pointer to the counters, which [`set`] fills in, and the counters themselves.
fn replacement(table: &str, wanted: &Blob, counters: u32) -> Replacement {
    let mut bytes = vec![0; NAME];
    bytes[..table.len().min(NAME - 1)].copy_from_slice(&table.as_bytes()[..table.len().min(NAME - 1)]);
    let size = u32::try_from(wanted.entries.len()).unwrap_or(u32::MAX);
    let words = [wanted.valid_hooks, wanted.count, size].into_iter();
    let words = words.chain(wanted.hook_entry).chain(wanted.underflow).chain([counters]);
    bytes.extend(words.flat_map(u32::to_ne_bytes));
    bytes.extend([0; size_of::<u64>()]);
    bytes.extend(&wanted.entries);
    Replacement { bytes, counters: vec![[0; 2]; counters as usize] }
}

/// What replaces a table.
struct Replacement {
    bytes: Vec<u8>,
    /// `struct xt_counters` of the entries that are replaced: the kernel writes them.
    counters: Vec<[u64; 2]>,
}

/// Where the pointer to the counters is.
const COUNTERS: usize = NAME + 4 * 14;

fn get(socket: &impl AsFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed; the kernel writes at most `length` bytes into the buffer, which
    // has as many.
    #[allow(unsafe_code, reason = "no library has the socket options of ip_tables")]
    let done = unsafe { libc::getsockopt(fd, level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(socket: &impl AsFd, level: i32, option: i32, wanted: &Replacement) -> io::Result<()> {
    let Replacement { bytes, counters } = wanted;
    let (mut bytes, mut counters) = (bytes.clone(), counters.clone());
    let address = counters.as_mut_ptr().expose_provenance() as u64;
    bytes[COUNTERS..COUNTERS + 8].copy_from_slice(&address.to_ne_bytes());
    let length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `length` bytes, which the buffer has, and writes
    // as many counters to the address as the buffer says, which `counters` has and which lives until after the call.
    #[allow(unsafe_code, reason = "no library has the socket options of ip_tables")]
    let done = unsafe { libc::setsockopt(fd, level, option, bytes.as_ptr().cast(), length) };
    drop(counters);
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
