//! What this program was built from, as the build noted it.

/// The version of the release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, or why it is not known.
pub const REVISION: &str = env!("ISTHMUS_BUILD_REVISION");
/// `Clean` or `Modified` against that commit, where that is known.
pub const STATUS: &str = env!("ISTHMUS_BUILD_STATUS");
/// The compiler.
pub const RUSTC: &str = env!("ISTHMUS_BUILD_RUSTC");
/// How it was compiled.
pub const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
