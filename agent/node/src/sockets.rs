//! Unix sockets that only root may use, put in place in one step: nobody can connect before the mode is set, and a stale
//! socket never stands in the way.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// Binds with mode 0600 at `path`, replacing what is there.
///
/// # Errors
/// When the folder cannot be made, or the path is too long or cannot be bound; the error names the path.
pub(crate) fn private<T>(path: &Path, bind: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let inner = || {
        let folder = path.parent().ok_or_else(|| io::Error::other("names no file"))?;
        std::fs::create_dir_all(folder)?;
        // Made where only we can look, so that there is no moment at which the umask decides who may connect.
        let workshop = folder.join(".new");
        match std::fs::remove_dir_all(&workshop) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(&workshop)?;
        let fresh = workshop.join("s");
        let bound = bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        std::fs::remove_dir(&workshop)?;
        Ok(bound)
    };
    inner().map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn it_is_private_and_takes_the_place_of_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/x.sock");
        drop(private(&path, |path| UnixListener::bind(path)).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "stale");
        let _listener = private(&path, |path| UnixListener::bind(path)).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_error_names_the_path() {
        let error = private(Path::new("/proc/nowhere/x.sock"), |path| UnixListener::bind(path)).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/x.sock"), "{error}");
    }
}
