//! Law 1 of ARCHITECTURE.md, on three scales: crates import only from lower floors, rooms of the proxy only from lower
//! rooms, and no files of a crate import one another in a circle. Cargo and the compiler enforce none of it.

mod crates;
mod lex;
mod rooms;
mod scan;

#[cfg(test)]
/// The sources of a made-up crate.
fn made_up(files: &[(&str, &str)]) -> scan::Sources {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}
