//! Gives an accepted connection to the data thread that carries it, before its first read. Knows no protocol.

use std::future::Future;
use std::sync::Arc;

use isthmus_rt::drain::Watch;
use isthmus_rt::task::{Spawnable, Tasks};
use isthmus_rt::threads::{Thread, Threads};
use tracing::{Instrument as _, Span};

use super::admission::Admission;
use super::listener::Accepted;
use super::placement::Placement;

/// The connections of one listener, and how they are served.
pub(super) struct Handover<F> {
    /// Name of the listener.
    pub(super) name: &'static str,
    pub(super) admission: Arc<Admission>,
    pub(super) threads: Threads,
    pub(super) placement: Placement,
    pub(super) connections: Tasks,
    pub(super) drain: Watch,
    pub(super) serve: Arc<F>,
}

impl<F, Fut> Handover<F>
where
    F: Fn(Accepted, Watch) -> Fut + Send + Sync + 'static,
    Fut: Spawnable + Future<Output = ()>,
{
    /// Starts to serve a connection on its thread. One that stays where it was accepted costs nothing more; the other ones
    /// cost two registrations and one wake-up of their thread. One that is refused gets no task.
    pub(super) fn start(&self, accepted: Accepted) {
        let Some(accepted) = self.admission.count(accepted) else { return };
        let thread = self.threads.choose(self.placement.of(accepted.original));
        let occupancy = self.placement.is_for_long().then(|| self.threads.occupy(thread));
        let (name, span) = (self.name, connection_span(self.name, &accepted));
        let (serve, drain) = (Arc::clone(&self.serve), self.drain.clone());
        if thread == Thread::current() {
            if occupancy.is_none() && self.admission.handshakes.is_none() {
                self.connections.spawn(name, serve(accepted, drain).instrument(span));
                return;
            }
            let admission = Arc::clone(&self.admission);
            let run = async move {
                let _occupancy = occupancy;
                serve_in_slot(&*serve, &admission, accepted, drain).await;
            };
            self.connections.spawn(name, run.instrument(span));
            return;
        }
        let detached = match accepted.detach() {
            Ok(detached) => detached,
            Err(error) => return not_served(name, &error),
        };
        let admission = self.admission.handshakes.is_some().then(|| Arc::clone(&self.admission));
        let run = async move {
            let _occupancy = occupancy;
            match detached.attach() {
                Ok(accepted) => match admission {
                    Some(admission) => serve_in_slot(&*serve, &admission, accepted, drain).await,
                    None => serve(accepted, drain).await,
                },
                Err(error) => not_served(name, &error),
            }
        };
        self.connections.spawn_on(&self.threads, thread, name, run.instrument(span));
    }

    /// Starts no more, and waits until the last one has ended.
    pub(super) async fn finish(self) {
        let Self { connections, drain, serve, .. } = self;
        drop((drain, serve));
        connections.wait().await;
    }
}

/// Serves a connection once it has its handshake slot.
async fn serve_in_slot<F, Fut>(serve: &F, admission: &Admission, accepted: Accepted, drain: Watch)
where
    F: Fn(Accepted, Watch) -> Fut,
    Fut: Future<Output = ()>,
{
    let accepted = tokio::select! {
        biased;
        () = drain.forced() => return,
        accepted = admission.slot(accepted) => accepted,
    };
    if let Some(accepted) = accepted {
        // Boxed: a connection that waits does not hold the memory that serving it takes.
        Box::pin(serve(accepted, drain)).await;
    }
}

fn not_served(listener: &'static str, error: &std::io::Error) {
    tracing::warn!(listener, %error, "cannot register an accepted connection with its thread, it is closed");
}

/// Disabled unless the scope logs at debug, and then costs nothing: at info, lines of a connection name it themselves.
fn connection_span(listener: &'static str, accepted: &Accepted) -> Span {
    tracing::debug_span!("connection", listener, src = %accepted.source, original_dst = %accepted.original)
}
