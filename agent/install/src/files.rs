//! Files of the host, replaced whole: a reader sees the old one or the new one, also after a crash. It must not know what
//! is in them.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::conflist::{Files, is_configuration};

/// Between a file's name and a random number, in the name of its next version while that is written.
const TEMPORARY: &str = ".tmp.";
/// A network configuration is a few kilobytes; what is longer is none.
const LONGEST: u64 = 4 << 20;

/// The files of the CNI folder, and the one that is named, if it is there.
///
/// # Errors
/// When the folder cannot be read. A file that vanishes meanwhile is left out.
pub(crate) fn configurations(folder: &Path, named: Option<&str>) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if !is_configuration(&name) && Some(name.as_str()) != named {
            continue;
        }
        let path = folder.join(&name);
        // `metadata` follows a link, as the container runtime does.
        match std::fs::metadata(&path) {
            Ok(file) if file.is_file() && file.len() <= LONGEST => {}
            _ => continue,
        }
        match std::fs::read(&path) {
            Ok(text) => drop(files.insert(name, text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(named_error(&path, &error)),
        }
    }
    Ok(files)
}

/// Replaces a file.
///
/// # Errors
/// With the path; the file is then as before.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let next = next_version(path);
    let written = write_synced(&next, content, mode).and_then(|()| std::fs::rename(&next, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    written.map_err(|error| named_error(path, &error))
}

/// Replaces a file by a copy of another, with its mode.
///
/// # Errors
/// With the path; the file is then as before.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let content = std::fs::read(from).map_err(|error| named_error(from, &error))?;
    replace(to, &content, mode(from).unwrap_or(0o755))
}

/// Whether two files have the same content. One that cannot be read has none.
pub(crate) fn same(a: &Path, b: &Path) -> bool {
    let size = |path| std::fs::metadata(path).map(|file| file.len());
    match (size(a), size(b)) {
        (Ok(a_len), Ok(b_len)) if a_len == b_len => {}
        _ => return false,
    }
    matches!((std::fs::read(a), std::fs::read(b)), (Ok(a), Ok(b)) if a == b)
}

/// The permission bits of a file.
pub(crate) fn mode(path: &Path) -> Option<u32> {
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o7777)
}

/// Removes a file; success when there is none.
///
/// # Errors
/// With the path.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named_error(path, &error)),
        _ => Ok(()),
    }
}

/// Removes what a run that was killed has left of the next version of a file. Nothing depends on it.
pub(crate) fn remove_stale(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    let stem = format!("{name}{TEMPORARY}");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|found| found.starts_with(&stem)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn next_version(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{TEMPORARY}{:08x}", fastrand::u32(..)));
    path.with_file_name(name)
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    // Not by `mode` above, which the umask would cut.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    // The new name must survive a crash too; not every file system can do it.
    let _ = path.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all()));
    Ok(())
}

fn named_error(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("istio-cni");
        std::fs::write(dir.path().join("istio-cni.tmp.123"), "").unwrap();
        std::fs::write(dir.path().join("istio-cni-other.tmp.123"), "").unwrap();
        replace(&path, b"one", 0o666).unwrap();
        replace(&path, b"two", 0o750).unwrap();
        assert_eq!((std::fs::read(&path).unwrap().as_slice(), mode(&path)), (&b"two"[..], Some(0o750)));
        remove_stale(&path);
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["istio-cni", "istio-cni-other.tmp.123"]);
    }

    /// A running binary cannot be written to (ETXTBSY), but it can be replaced.
    #[test]
    fn a_running_binary_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sleep");
        copy(Path::new("/bin/sleep"), &path).unwrap();
        let mut running = std::process::Command::new(&path).arg("60").spawn().unwrap();
        assert!(same(Path::new("/bin/sleep"), &path));
        copy(Path::new("/bin/true"), &path).unwrap();
        assert!(same(Path::new("/bin/true"), &path) && !same(Path::new("/bin/sleep"), &path));
        running.kill().unwrap();
        running.wait().unwrap();
    }

    #[test]
    fn an_error_names_the_file_and_leaves_nothing() {
        let error = replace(Path::new("/proc/x"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("/proc/x"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir_all(folder.join("in")).unwrap();
        assert!(replace(&folder, b"", 0o600).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
