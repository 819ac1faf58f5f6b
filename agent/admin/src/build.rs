//! Version, revision and compiler, as recorded by the build script.

/// The version of the release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, or why it is unknown.
pub const REVISION: &str = env!("ISTHMUS_BUILD_REVISION");
/// `Clean` or `Modified` relative to that commit, if known.
pub const STATUS: &str = env!("ISTHMUS_BUILD_STATUS");
/// The compiler.
pub const RUSTC: &str = env!("ISTHMUS_BUILD_RUSTC");
/// Build profile.
pub const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
