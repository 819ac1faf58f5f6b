//! Tells that something in a few folders has changed (inotify). It does not say what: the caller looks at everything
//! again.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// The folders. A projected volume changes by a rename in its folder.
#[derive(Debug)]
pub struct Folders {
    folders: Vec<PathBuf>,
    watched: HashMap<PathBuf, WatchDescriptor>,
    notify: AsyncFd<Notify>,
}

#[derive(Debug)]
struct Notify(Inotify);

impl AsRawFd for Notify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Folders {
    /// Watches nothing until [`refresh`](Self::refresh).
    ///
    /// # Errors
    /// When there is no runtime, or the kernel has no more instances of inotify (`fs.inotify.max_user_instances`).
    pub fn new(folders: Vec<PathBuf>) -> io::Result<Self> {
        let notify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the wrapper owns the descriptor, which stays open and the same until it is dropped.
        #[allow(unsafe_code, reason = "tokio's only constructor that is not deprecated")]
        let notify = unsafe { AsyncFd::register(Notify(notify)) }.map_err(io::Error::from)?;
        Ok(Self { folders, watched: HashMap::new(), notify })
    }

    /// Watches the folders that are there; true when all of them are. A folder that was replaced is watched anew.
    pub fn refresh(&mut self) -> bool {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for folder in &self.folders {
            // Adding a folder again returns the same descriptor; another one is a folder that took its place.
            match self.notify.get_ref().0.add_watch(folder, flags) {
                Ok(descriptor) => drop(self.watched.insert(folder.clone(), descriptor)),
                Err(_) => drop(self.watched.remove(folder)),
            }
        }
        self.watched.len() == self.folders.len()
    }

    /// Resolves after a change, and takes all that are known by then.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.notify.readable().await?;
            let mut any = false;
            loop {
                match ready.get_inner().0.read_events() {
                    Ok(_) => any = true,
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_change_in_any_folder_is_reported_also_in_one_that_came_later() {
        let dir = std::env::temp_dir().join(format!("isthmus-folders-{}", std::process::id()));
        let (there, later) = (dir.join("there"), dir.join("later"));
        std::fs::create_dir_all(&there).unwrap();
        let mut folders = Folders::new(vec![there.clone(), later.clone()]).unwrap();
        assert!(!folders.refresh());
        let nothing = tokio::time::timeout(Duration::from_millis(50), folders.changed()).await;
        assert!(nothing.is_err());
        std::fs::write(there.join("x"), "1").unwrap();
        folders.changed().await.unwrap();
        std::fs::create_dir(&later).unwrap();
        assert!(folders.refresh());
        // As a projected volume does.
        std::fs::write(later.join("..data_tmp"), "1").unwrap();
        std::fs::rename(later.join("..data_tmp"), later.join("..data")).unwrap();
        folders.changed().await.unwrap();
        std::fs::remove_dir_all(&there).unwrap();
        folders.changed().await.unwrap();
        assert!(!folders.refresh());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
