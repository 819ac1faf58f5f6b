//! Kernel settings of a network namespace, under `/proc/sys`.

use std::path::PathBuf;

use crate::Error;
use crate::netns::Netns;

/// Writes a setting as seen from inside `netns`, for example `net/ipv4/ip_forward`.
///
/// # Errors
/// When there is no such key or it may not be written.
pub fn write(netns: &Netns, key: &str, value: &str) -> Result<(), Error> {
    // `/proc/sys/net` resolves to the network namespace of the thread that opens it.
    netns
        .run_thread(|| std::fs::write(path(key), value))?
        .map_err(Error::on("write sysctl", format!("{key}={value} in {}", netns.id())))
}

/// Reads a setting as seen from inside `netns`, without the trailing newline.
///
/// # Errors
/// When there is no such key.
pub fn read(netns: &Netns, key: &str) -> Result<String, Error> {
    let text = netns
        .run_thread(|| std::fs::read_to_string(path(key)))?
        .map_err(Error::on("read sysctl", format!("{key} in {}", netns.id())))?;
    Ok(text.trim_end().to_owned())
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_is_named() {
        let here = Netns::current().unwrap();
        assert!(!read(&here, "net/ipv4/ip_local_port_range").unwrap().is_empty());
        let error = read(&here, "net/ipv4/no_such_key").unwrap_err().to_string();
        assert!(error.starts_with("read sysctl net/ipv4/no_such_key in net:["), "{error}");
    }
}
