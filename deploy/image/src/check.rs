//! What must be true of a shipped program: it runs on any Linux of its architecture, carries no symbols, and says nothing
//! of the machine that built it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use object::elf::{PT_INTERP, SHT_SYMTAB};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _};

/// Refuses a program that is not static, not stripped, or names one of the folders.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn program(bytes: &[u8], folders: &[PathBuf]) -> Result<()> {
    let file: ElfFile64<'_> = ElfFile64::parse(bytes).context("not an ELF program of 64 bits")?;
    let endian = file.endian();
    let header = file.elf_header();
    let segments = header.program_headers(endian, bytes)?;
    ensure!(
        segments.iter().all(|segment| segment.p_type(endian) != PT_INTERP),
        "asks for a dynamic loader: it would not run on every host"
    );
    let sections = header.section_headers(endian, bytes)?;
    ensure!(
        sections.iter().all(|section| section.sh_type(endian) != SHT_SYMTAB),
        "has symbols: it is not stripped"
    );
    for folder in folders {
        let text = folder.as_os_str().as_encoded_bytes();
        ensure!(
            !bytes.windows(text.len()).any(|window| window == text),
            "names the folder {}: its bytes depend on where it was built",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test's own program: dynamic, or with symbols, and it names its sources.
    #[test]
    fn a_program_of_the_development_profile_is_refused() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = program(&own, &[]).unwrap_err().to_string();
        assert!(error.contains("loader") || error.contains("symbols"), "{error}");
        assert!(program(b"#!/bin/sh\n", &[]).unwrap_err().to_string().contains("ELF"));
    }

    #[test]
    fn a_static_stripped_program_passes_unless_it_names_a_folder() {
        let good = bare_elf(b"/build/x/src/main.rs");
        program(&good, &[PathBuf::from("/opt/src")]).unwrap();
        let error = program(&good, &[PathBuf::from("/build/x")]).unwrap_err().to_string();
        assert!(error.contains("/build/x"), "{error}");
    }

    /// A header without segments and sections, then some text.
    fn bare_elf(text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16] = 2; // ET_EXEC
        bytes[18] = 62; // EM_X86_64
        bytes[20] = 1;
        bytes[52] = 64; // e_ehsize
        bytes[54] = 56; // e_phentsize
        bytes[58] = 64; // e_shentsize
        bytes.extend_from_slice(text);
        bytes
    }
}
