//! How an agent that ends gives its connections to the one that replaces it: the socket between the two, who may connect
//! to it, and the conversation on it.
//!
//! It carries *units*: items of bytes with a descriptor each, of one pod. It must not know what is in them, what a mesh is,
//! or how a pod is served: [`Source`] and [`Receiver`] are implemented above.
//!
//! ```text
//! predecessor                                successor
//!   hello ──────────────────────────────────►
//!         ◄────────────────────────────────── wants: the pods that it serves
//!   (closes its listeners)
//!   offer, items with descriptors ──────────►  decodes, proves the peer; runs nothing
//!         ◄────────────────────────────────── accepted, or refused: it goes on at the predecessor
//!   commit ─────────────────────────────────►  runs it
//!   offer …
//!   finished ───────────────────────────────►
//! ```
//!
//! A unit is the predecessor's until its commit is sent, and the successor's from then on; a conversation that breaks before
//! the commit leaves it where it is, one that breaks after it resets the unit's connections. Both sides are machines without
//! I/O, of events and actions: [`sender::Sending`], [`receiver::Receiving`].
//!
//! ```text
//! sender  receiver  →  channel  →  frame        seams  metrics
//! ```

mod channel;
pub mod frame;
pub mod metrics;
pub mod receiver;
mod seams;
pub mod sender;

pub use isthmus_hbone::handover::Item;
pub use metrics::{Metrics, Outcome};
pub use receiver::Listener;
pub use seams::{Prepared, Receiver, Source, Taken};
pub use sender::{Left, Summary, hand_over};

/// The version of the conversation and of everything in it. An agent hands over to one of its own version only.
pub const VERSION: u32 = 1;
