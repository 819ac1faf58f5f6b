//! The access log of the tasks on this thread.

use std::fmt::Debug;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, Subscriber};

use crate::world::eventually;

/// Lines of the access log, each as `key=value key=value`. It listens for as long as it lives, on a runtime of one
/// thread.
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    _listening: DefaultGuard,
}

impl Log {
    pub(crate) fn listen() -> Self {
        // While there is one listener only, whoever writes a line of some kind first decides for all threads whether
        // anybody listens to that kind. With two, everybody is asked.
        static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Collect(Arc::default())));
        LazyLock::force(&SECOND);
        let lines = Arc::default();
        let collect = Collect(Arc::clone(&lines));
        Self { lines, _listening: tracing::subscriber::set_default(collect) }
    }

    /// The next line about a connection that ended, or was not begun, as a client of the mesh.
    pub(crate) async fn next(&self) -> String {
        let ended = |line: &String| {
            line.contains("direction=\"outbound\"") && !line.contains("message=connection opened")
        };
        eventually(
            || self.lines.lock().unwrap().iter().any(ended),
            || format!("no line was written: {:?}", self.lines.lock().unwrap()),
        )
        .await;
        let mut lines = self.lines.lock().unwrap();
        let at = lines.iter().position(ended).unwrap();
        lines.remove(at)
    }
}

struct Collect(Arc<Mutex<Vec<String>>>);
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl Subscriber for Collect {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "access"
    }
    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
