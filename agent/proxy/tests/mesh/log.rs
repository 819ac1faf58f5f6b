//! The access log of the tasks on this thread.

use std::sync::LazyLock;

use isthmus_kit::log::{Line, Lines};
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

use crate::world::eventually;

/// Lines of the access log, each as `key=value key=value`. It listens for as long as it lives, on a runtime of one
/// thread.
pub(crate) struct Log {
    lines: Lines,
    _listening: DefaultGuard,
}

impl Log {
    pub(crate) fn listen() -> Self {
        // While there is one listener only, whoever writes a line of some kind first decides for all threads whether
        // anybody listens to that kind. With two, everybody is asked.
        static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Lines::of("access")));
        LazyLock::force(&SECOND);
        let lines = Lines::of("access");
        let _listening = tracing::subscriber::set_default(lines.clone());
        Self { lines, _listening }
    }

    /// The next line about a connection that ended, or was not begun, as a client of the mesh.
    pub(crate) async fn next(&self) -> String {
        let has = |line: &Line, field| line.iter().any(|own| own == field);
        let ended =
            |line: &Line| has(line, "direction=\"outbound\"") && !has(line, "message=connection opened");
        eventually(
            || self.lines.all().iter().any(ended),
            || format!("no line was written: {:?}", self.lines.all()),
        )
        .await;
        self.lines.take(ended).unwrap().join(" ")
    }
}
