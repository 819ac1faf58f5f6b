//! What this crate requires of the agent above it.

use std::time::Instant;

use isthmus_model::PodUid;
use isthmus_rt::BoxFuture;

use crate::Item;

/// The connections of an agent that ends.
pub trait Source: Send + Sync {
    /// A successor is there: nothing new is accepted from now on.
    fn close(&self);

    /// The next unit of one of these pods, at rest; `None` when there are no more that can be taken.
    fn next<'a>(&'a self, pods: &'a [PodUid]) -> BoxFuture<'a, Option<Box<dyn Taken>>>;
}

/// A unit that is at rest. Dropped otherwise than by these, its connections are reset.
pub trait Taken: Send {
    /// Its pod.
    fn pod(&self) -> &PodUid;

    /// Its encoding. The first item is small; descriptors stay open until the unit is released.
    fn items(&self) -> &[Item];

    /// How many connections it holds.
    fn connections(&self) -> usize;

    /// Since when its connections stand still.
    fn since(&self) -> Instant;

    /// It is the successor's: what this process has of it is closed, without a word to a peer.
    fn release(self: Box<Self>);

    /// It stays here, and goes on.
    fn restore(self: Box<Self>);
}

/// What takes connections over.
pub trait Receiver: Send + Sync {
    /// The pods that are served here.
    fn pods(&self) -> Vec<PodUid>;

    /// Makes a unit ready to run, without reading or writing any of its sockets. The error is for the predecessor's log.
    fn prepare(&self, pod: PodUid, items: Vec<Item>) -> BoxFuture<'_, Result<Box<dyn Prepared>, String>>;
}

/// A unit that can run here. Dropped, its descriptors are closed and nothing else happens: the predecessor has them, too.
pub trait Prepared: Send {
    /// How many connections it holds.
    fn connections(&self) -> usize;

    /// The unit is this process's: it goes on.
    fn run(self: Box<Self>);
}
