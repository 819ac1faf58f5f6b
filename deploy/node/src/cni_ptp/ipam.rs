//! Addresses of one node: a file per address in use, named by it and holding the sandbox that has it. Creating a file
//! is atomic, so plugins that run at the same time never take the same address.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;

use crate::pod_network::nth;

/// The node's gateway and its service proxy have the first two.
const FIRST: u32 = 3;

/// Takes the lowest free address for a sandbox. A sandbox that has one keeps it.
pub(super) fn take(state: &Path, subnet: Ipv4Net, container: &str) -> io::Result<Ipv4Addr> {
    fs::create_dir_all(state)?;
    if let Some(address) = held(state, container)?.into_iter().next() {
        return Ok(address);
    }
    let end = subnet.broadcast().to_bits() - subnet.network().to_bits();
    for n in FIRST..end {
        let address = nth(subnet, n);
        match File::create_new(state.join(address.to_string())) {
            Ok(mut file) => {
                file.write_all(container.as_bytes())?;
                return Ok(address);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("all of {subnet} is in use")))
}

/// Gives back what a sandbox has; it is no error when that is nothing.
pub(super) fn release(state: &Path, container: &str) -> io::Result<()> {
    held(state, container)?
        .into_iter()
        .try_for_each(|address| fs::remove_file(state.join(address.to_string())))
}

fn held(state: &Path, container: &str) -> io::Result<Vec<Ipv4Addr>> {
    let entries = match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut held = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Another plugin may be just giving this one back.
        if fs::read(entry.path()).is_ok_and(|owner| owner == container.as_bytes()) {
            held.extend(entry.file_name().to_str().and_then(|name| name.parse::<Ipv4Addr>().ok()));
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_kept_and_given_back() {
        let temp = tempfile::tempdir().unwrap();
        let state = temp.path().join("ipam");
        let subnet: Ipv4Net = "10.0.0.0/29".parse().unwrap();
        release(&state, "nobody").unwrap();
        let take = |container| take(&state, subnet, container).map(|address| address.to_string());
        assert_eq!(take("a").unwrap(), "10.0.0.3");
        assert_eq!(take("b").unwrap(), "10.0.0.4");
        assert_eq!(take("a").unwrap(), "10.0.0.3");
        assert_eq!((take("c").unwrap(), take("d").unwrap()), ("10.0.0.5".into(), "10.0.0.6".into()));
        assert_eq!(take("e").unwrap_err().to_string(), "all of 10.0.0.0/29 is in use");
        release(&state, "b").unwrap();
        assert_eq!(take("e").unwrap(), "10.0.0.4");
    }
}
