//! Reads standard input and makes it readable again, so that our own checks, which name the offending field, run before
//! the protocol library reads the same bytes. It does not interpret them.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use nix::sys::memfd::{MFdFlags, memfd_create};
use rscni_plugin::error::Error;

/// No CNI configuration comes near this size.
const LIMIT: u64 = 4 << 20;

/// The bytes on standard input, which can then be read again from the start.
///
/// # Errors
/// When they cannot be read, or are more than 4 MiB.
pub(crate) fn peek() -> Result<Vec<u8>, Error> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Error::IOFailure(format!("stdin: {what}: {error}"));
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed("cannot be read", &error))?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::InvalidNetworkConfig(format!("stdin: more than {LIMIT} bytes")));
    }
    let memory =
        memfd_create(c"cni-stdin", MFdFlags::MFD_CLOEXEC).map_err(|error| failed("no copy", &error))?;
    let mut file = File::from(memory);
    file.write_all(&bytes).and_then(|()| file.rewind()).map_err(|error| failed("no copy", &error))?;
    nix::unistd::dup2_stdin(&file).map_err(|error| failed("cannot be replaced", &error))?;
    Ok(bytes)
}
