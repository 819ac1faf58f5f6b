//! Captures the access log of the tasks on this thread.

use isthmus_kit::logs::{LogCapture, LogEvent};

/// The access log. Needs a test on a current-thread runtime.
pub(crate) struct AccessLog(LogCapture);

impl AccessLog {
    pub(crate) fn capture() -> Self {
        Self(LogCapture::start(|metadata| metadata.target() == "access"))
    }

    /// The next event of an outbound connection that was closed or failed.
    pub(crate) async fn next(&self) -> String {
        let is_final = |event: &LogEvent| {
            event.contains("direction=\"outbound\"") && !event.contains("message=connection opened")
        };
        self.0.next(is_final).await.to_string()
    }
}
