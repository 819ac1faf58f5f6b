//! Builds the container image: static programs, their licences and a bill of materials, as an OCI archive or as a tree of
//! files for a Dockerfile. It owns what is in the image and that equal inputs give equal bytes. It knows nothing of what
//! the programs do, and needs neither Docker nor root.

mod archive;
mod check;
mod commit;
mod compile;
mod licences;
mod packages;
mod reference;
mod sbom;
mod toolchain;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

use crate::archive::ImageConfig;
use crate::commit::Commit;
use crate::tree::Tree;

/// Agent and plugin together must stay below this.
const MAX_PROGRAMS: u64 = 40 * 1024 * 1024;
/// What is built where nothing else is said.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// Builds the Isthmus container image from this checkout.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Rust target; a musl one, since the programs must be static.
    #[arg(long, global = true, default_value = TARGET)]
    target: String,
    /// Folder with programs that were built before (isthmus and isthmus-cni); nothing is compiled.
    #[arg(long, global = true)]
    bin_dir: Option<PathBuf>,
    /// Checkout to build; the one that this program was built from where none is given.
    #[arg(long, global = true)]
    source: Option<PathBuf>,
    /// Build although files differ from the commit. The revision then ends in `-modified`.
    #[arg(long, global = true)]
    modified: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an OCI archive that `kind load image-archive`, `ctr image import`, `docker load` and skopeo read.
    Archive {
        /// File to write.
        #[arg(long, default_value = "isthmus.tar")]
        output: PathBuf,
        /// Name and tag of the image; the tag is the version where none is given.
        #[arg(long, default_value = "isthmus")]
        name: String,
    },
    /// Write the files of the image into a new folder, for the Dockerfile.
    Tree {
        /// Folder to create.
        #[arg(long)]
        output: PathBuf,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let workspace = match &args.source {
        Some(folder) => folder.canonicalize().with_context(|| format!("{}", folder.display()))?,
        None => workspace()?,
    };
    let commit = Commit::read(&workspace, args.modified)?;
    let toolchain = toolchain::read(&args.target)?;
    let programs = match &args.bin_dir {
        Some(folder) => folder.clone(),
        None => compile::programs(&workspace, &args.target, &commit)?,
    };
    let tree = contents(&workspace, &args.target, &programs, &commit, &toolchain)?;
    match args.command {
        Command::Tree { output } => tree.write(&output),
        Command::Archive { output, name } => {
            let name = reference::parse(&name, env!("CARGO_PKG_VERSION"))?;
            let config = ImageConfig::new(&args.target, &commit)?;
            let digest = archive::write(&output, &tree, &config, &name)?;
            println!("{name} {digest} in {}", output.display());
            Ok(())
        }
    }
}

/// Everything that is in the image.
fn contents(
    workspace: &Path,
    target: &str,
    programs: &Path,
    commit: &Commit,
    toolchain: &toolchain::Toolchain,
) -> Result<Tree> {
    let inside = packages::inside(workspace, target)?;
    let read = |name: &str| {
        let path = programs.join(name);
        std::fs::read(&path).with_context(|| format!("{}", path.display()))
    };
    let (agent, plugin) = (read("isthmus")?, read("isthmus-cni")?);
    let built_in = [workspace.to_owned(), packages::cargo_home(&inside)];
    for (name, bytes) in [("isthmus", &agent), ("isthmus-cni", &plugin)] {
        check::program(bytes, &built_in).with_context(|| name.to_owned())?;
    }
    let size = agent.len() as u64 + plugin.len() as u64;
    ensure!(size < MAX_PROGRAMS, "agent and plugin have {size} bytes together, {MAX_PROGRAMS} are allowed");
    let mut tree = tree::base();
    tree.programs(agent, plugin)?;
    let own = std::fs::read_to_string(workspace.join("LICENSE"))?;
    let third_party = licences::gather(&inside, &own, toolchain)?;
    let bill = sbom::cyclonedx(&inside, commit, toolchain);
    tree.documents(&own, &third_party, &bill)?;
    Ok(tree)
}

/// The root of the checkout that this program was built from.
fn workspace() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("no workspace")?;
    root.canonicalize().with_context(|| format!("{}: the checkout was moved, build again", root.display()))
}
