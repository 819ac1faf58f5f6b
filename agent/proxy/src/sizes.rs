//! Limits of the memory that a connection's task holds while the connection is open. State that only the setup needs is
//! boxed and freed after it; this test fails when such state moves back into the long-lived future.

use std::sync::Arc;

use isthmus_rt::drain::Watch;

use crate::accept::Accepted;
use crate::context::PodContext;
use crate::inbound;
use crate::outbound;

/// Size in bytes of the future that an async function of three arguments returns.
fn of<A, B, C, Fut>(_: impl Fn(A, B, C) -> Fut) -> usize {
    size_of::<Fut>()
}

#[test]
fn a_connections_task_stays_small() {
    // As the test profile lays futures out; optimized ones are smaller.
    let outbound = of::<Arc<PodContext>, Accepted, Watch, _>(outbound::serve);
    let plaintext = of::<Arc<PodContext>, Accepted, Watch, _>(inbound::plaintext::serve);
    let tunnel = of::<Arc<PodContext>, Accepted, Watch, _>(inbound::accept);
    let stream = of(inbound::serve_stream);
    for (what, size, limit) in [
        ("an outbound connection", outbound, 3 * 1024),
        ("a plaintext connection", plaintext, 4 * 1024),
        ("an inbound tunnel", tunnel, 14 * 1024),
        ("an inbound stream", stream, 3 * 1024),
    ] {
        assert!(size <= limit, "{what} takes {size} bytes, more than {limit}");
    }
}
