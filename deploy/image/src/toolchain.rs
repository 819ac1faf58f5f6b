//! What the compiler adds to a program: its standard library, musl, and the C compiler's name. They decide on the bytes
//! as much as the sources do, so the bill of materials names them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The tools that make the programs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Toolchain {
    /// Version of the Rust compiler, and so of its library: `1.95.0`.
    pub(crate) rust: String,
    /// Version of the C library in the target's files; empty when they do not say.
    pub(crate) musl: String,
    /// First line that the C compiler says of itself; empty when there is none.
    pub(crate) cc: String,
    /// Copyright of the standard library and of the libraries in it; `None` when the toolchain comes without.
    pub(crate) copyright: Option<String>,
}

/// Asks the tools.
///
/// # Errors
/// When the compiler does not run, or the target's files are missing.
pub(crate) fn read(target: &str) -> Result<Toolchain> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let rustc = |args: &[&str]| -> Result<String> {
        let output = Command::new(&rustc).args(args).output().context("rustc")?;
        ensure!(output.status.success(), "rustc {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let said = rustc(&["--version"])?;
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    let libc = sysroot.join("lib/rustlib").join(target).join("lib/self-contained/libc.a");
    let libc = std::fs::read(&libc)
        .with_context(|| format!("{}: run `rustup target add {target}`", libc.display()))?;
    Ok(Toolchain {
        rust: said.split_whitespace().nth(1).unwrap_or_default().to_owned(),
        musl: musl_version(&libc).unwrap_or_default(),
        cc: c_compiler(target),
        copyright: std::fs::read_to_string(sysroot.join("share/doc/rust/COPYRIGHT-library.html")).ok(),
    })
}

/// As the `cc` crate looks for it.
fn c_compiler(target: &str) -> String {
    let arch = target.split('-').next().unwrap_or_default();
    let named = std::env::var(format!("CC_{}", target.replace('-', "_"))).ok();
    let names =
        named.into_iter().chain([format!("{arch}-linux-musl-gcc"), "musl-gcc".to_owned(), "cc".to_owned()]);
    let said = |name: String| {
        let output = Command::new(name).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
    };
    names.into_iter().find_map(said).unwrap_or_default()
}

/// The version that musl carries as a string: digits and two dots between zero bytes.
fn musl_version(library: &[u8]) -> Option<String> {
    let is_version = |text: &&[u8]| {
        (5..10).contains(&text.len())
            && text.starts_with(b"1.")
            && text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
            && text.iter().filter(|byte| **byte == b'.').count() == 2
    };
    let found = library.split(|byte| *byte == 0).find(is_version)?;
    Some(String::from_utf8_lossy(found).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_musl_is_found_in_its_archive() {
        assert_eq!(musl_version(b"x\x001.2\x001.2.5\0y"), Some("1.2.5".to_owned()));
        assert_eq!(musl_version(b"a1.2.5"), None);
    }
}
