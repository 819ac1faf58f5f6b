//! The access log of the tasks on this thread.

use isthmus_kit::logs::{LogCapture, LogEvent};

/// The access log. A test that reads it runs on a runtime of one thread.
pub(crate) struct Log(LogCapture);

impl Log {
    pub(crate) fn listen() -> Self {
        Self(LogCapture::start(|metadata| metadata.target() == "access"))
    }

    /// The next line about the end of an outbound connection, or its failure.
    pub(crate) async fn next(&self) -> String {
        let ended = |event: &LogEvent| {
            event.contains("direction=\"outbound\"") && !event.contains("message=connection opened")
        };
        self.0.next(ended).await.to_string()
    }
}
