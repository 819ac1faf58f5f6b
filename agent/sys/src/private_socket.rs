//! Unix sockets that only their own user may connect to, put in place atomically: no client can connect before
//! the mode is set, and a stale socket is replaced.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// Binds with mode 0600 at `path`, replacing what is there.
///
/// # Errors
/// When the folder cannot be made, or the path is too long or cannot be bound; the error names the path.
pub fn bind<T>(path: &Path, listen: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let inner = || {
        let folder = path.parent().ok_or_else(|| io::Error::other("has no parent folder"))?;
        std::fs::create_dir_all(folder)?;
        // A socket gets its mode from the umask when it is bound. Bind it in a folder that only this user can enter,
        // set the mode there, and move it into place.
        let mut name = OsString::from(".new-");
        name.push(path.file_name().unwrap_or_default());
        let private = folder.join(name);
        match std::fs::remove_dir_all(&private) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(&private)?;
        let fresh = private.join("s");
        let listener = listen(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        std::fs::remove_dir(&private)?;
        Ok(listener)
    };
    inner().map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_socket_is_private_and_replaces_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/x.sock");
        drop(bind(&path, |path| UnixListener::bind(path)).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "stale");
        let _listener = bind(&path, |path| UnixListener::bind(path)).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_error_names_the_path() {
        let error = bind(Path::new("/proc/nowhere/x.sock"), |path| UnixListener::bind(path)).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/x.sock"), "{error}");
    }
}
