//! The first thing that runs in a pod: gives it its own view of a few files, then becomes the pod's program.
//!
//! It knows nothing of Kubernetes. The network namespace is the one it was started in.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::program;

/// What the pod sees.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Its working folder, where its volumes are.
    #[arg(long)]
    root: PathBuf,
    /// A file that takes the place of one of /etc, as `<file>=<name in /etc>`.
    #[arg(long = "etc", value_name = "FILE=NAME")]
    etc: Vec<String>,
    /// A mount of the world that the pod must neither see nor keep alive.
    #[arg(long)]
    hide: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Sets the view up and becomes the program; returns only when that fails.
pub fn run(options: &Options) -> anyhow::Result<std::convert::Infallible> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    if let Some(hide) = &options.hide {
        umount2(hide, MntFlags::MNT_DETACH).with_context(|| format!("cannot hide {}", hide.display()))?;
    }
    // A name service cache of the host would answer for the host's network.
    for cache in ["/run/nscd", "/run/systemd/resolve"] {
        if Path::new(cache).is_dir() {
            mount(Some("none"), cache, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot hide {cache}"))?;
        }
    }
    let mut files = Vec::new();
    for pair in &options.etc {
        let Some((file, name)) = pair.split_once('=') else { bail!("--etc {pair}: expected FILE=NAME") };
        files.push((Path::new(file), name));
    }
    if !files.iter().all(|(_, name)| Path::new("/etc").join(name).is_file()) {
        replace_etc(&options.root, &files)?;
    }
    for (file, name) in files {
        bind(file, &Path::new("/etc").join(name))?;
    }
    let [program, args @ ..] = &options.command[..] else { bail!("no program was given") };
    let error = program::command(program).args(args).current_dir(&options.root).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// Where /etc lacks one of the files (a dangling link to a resolver's folder is common), nothing can be put over it:
/// a folder of links to everything in the real one takes its place.
fn replace_etc(root: &Path, files: &[(&Path, &str)]) -> anyhow::Result<()> {
    let etc = root.join("etc-view");
    fs::create_dir_all(&etc)?;
    mount(Some("none"), &etc, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .context("cannot mount a view of /etc")?;
    fs::create_dir(etc.join(".real"))?;
    bind(Path::new("/etc"), &etc.join(".real"))?;
    for entry in fs::read_dir("/etc")? {
        let name = entry?.file_name();
        if !files.iter().any(|(_, own)| name == **own) {
            symlink(Path::new(".real").join(&name), etc.join(&name))?;
        }
    }
    for (_, name) in files {
        fs::write(etc.join(name), "")?;
    }
    bind(&etc, Path::new("/etc"))
}

fn bind(from: &Path, to: &Path) -> anyhow::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot put {} over {}", from.display(), to.display()))
}
