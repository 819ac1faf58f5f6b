//! Standard output and error of the commands that a user types. A reader that closes its end, as `head` does, has seen enough:
//! that is no error, and what else the command has to do is done.

use std::fmt::Display;
use std::io::{self, Read, Write as _};

/// Writes a line.
///
/// # Errors
/// When it cannot be written for another reason than a closed pipe.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    unless_closed(writeln!(io::stdout(), "{text}"))
}

/// Writes a line to standard error. What cannot be written there is lost: there is no other place to report it.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes a text as it is.
///
/// # Errors
/// As [`line()`].
pub(crate) fn text(text: impl Display) -> io::Result<()> {
    unless_closed(write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()))
}

/// Writes everything that can be read.
///
/// # Errors
/// As [`line()`], and when it cannot be read.
pub(crate) fn copy(from: &mut impl Read) -> io::Result<()> {
    unless_closed(io::copy(from, &mut io::stdout()).and_then(|_| io::stdout().flush()))
}

fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}
