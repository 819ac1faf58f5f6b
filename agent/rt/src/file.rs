//! Follows a file by polling its content. inotify would miss replacements that do not touch the file itself (Kubernetes
//! swaps a symlink two directories up); reading a small file every two seconds costs little.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Poll interval.
pub const POLL: Duration = Duration::from_secs(2);

/// Content at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No file.
    Missing,
    /// A readable file.
    Bytes(Vec<u8>),
    /// A file that cannot be read, with the reason.
    Unreadable(String),
}

/// A followed file.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    last: Option<Content>,
}

// === impl Follow ===

impl Follow {
    /// Follows a path; nothing is read yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), last: None }
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, blocking. Returns the content if it changed since the last read; always, the first time.
    pub fn read_if_changed(&mut self) -> Option<&Content> {
        let read = std::fs::read(&self.path);
        self.record(read)
    }

    /// As [`Self::read_if_changed`], without blocking the runtime.
    pub async fn read_if_changed_async(&mut self) -> Option<&Content> {
        let read = tokio::fs::read(&self.path).await;
        self.record(read)
    }

    /// Waits until the content changes.
    pub async fn changed(&mut self) -> &Content {
        loop {
            if self.read_if_changed_async().await.is_some() {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.last.get_or_insert(Content::Missing)
    }

    fn record(&mut self, read: io::Result<Vec<u8>>) -> Option<&Content> {
        let now = match read {
            Ok(bytes) => Content::Bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Missing,
            Err(error) => Content::Unreadable(error.to_string()),
        };
        if self.last.as_ref() == Some(&now) {
            return None;
        }
        Some(self.last.insert(now))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of its own that goes away with it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("isthmus-file-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_another_content_is_a_change() {
        let dir = Dir::new("content");
        let path = dir.0.join("file");
        let mut follow = Follow::new(&path);
        assert_eq!(follow.read_if_changed(), Some(&Content::Missing));
        assert_eq!(follow.read_if_changed(), None);
        fs::write(&path, "a").unwrap();
        assert_eq!(follow.read_if_changed(), Some(&Content::Bytes(b"a".to_vec())));
        fs::write(&path, "a").unwrap();
        assert_eq!(follow.read_if_changed(), None, "written again, with the same content");
        fs::remove_file(&path).unwrap();
        assert_eq!(follow.read_if_changed(), Some(&Content::Missing));
        fs::create_dir(&path).unwrap();
        assert!(matches!(follow.read_if_changed(), Some(Content::Unreadable(_))));
        assert_eq!(follow.read_if_changed(), None);
    }

    #[test]
    fn the_symlink_swap_of_a_mounted_config_map_is_seen() {
        let dir = Dir::new("swap");
        for (version, content) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(dir.0.join(version)).unwrap();
            fs::write(dir.0.join(version).join("file"), content).unwrap();
        }
        symlink("..1", dir.0.join("..data")).unwrap();
        symlink("..data/file", dir.0.join("file")).unwrap();
        let mut follow = Follow::new(dir.0.join("file"));
        assert_eq!(follow.read_if_changed(), Some(&Content::Bytes(b"one".to_vec())));
        symlink("..2", dir.0.join("..data_tmp")).unwrap();
        fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
        assert_eq!(follow.read_if_changed(), Some(&Content::Bytes(b"two".to_vec())));
    }
}
