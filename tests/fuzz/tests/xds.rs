//! Arbitrary responses of a control plane, from their bytes to the decisions on the resulting state.

use isthmus_fuzz::Choices;
use isthmus_fuzz::mesh::Mesh;
use isthmus_fuzz::resources::{damaged, first, response};
use isthmus_proto::discovery::DeltaDiscoveryResponse;
use prost::Message as _;

/// Several responses in sequence: the state stays consistent, every resource is found, and everything can be removed.
#[test]
fn resources_become_decisions() {
    bolero::check!().with_max_len(2048).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let (mut mesh, seed) = (Mesh::default(), u64::from(choices.byte()));
        mesh.take(first());
        while !choices.is_over() {
            mesh.take(response(&mut choices));
        }
        mesh.ask(seed);
        mesh.empty();
    });
}

/// A response with damaged bytes is refused or means something else; it must not panic.
#[test]
fn responses_are_bytes() {
    bolero::check!().with_max_len(1024).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let whole = response(&mut choices).encode_to_vec();
        let message = damaged(&mut choices, whole);
        if let Ok(response) = DeltaDiscoveryResponse::decode(message.as_slice()) {
            let mut mesh = Mesh::default();
            mesh.take(response);
            mesh.empty();
        }
    });
}

/// Resources with arbitrary bytes for bodies.
#[test]
fn bodies_are_bytes() {
    use isthmus_proto::{security::Authorization, workload::Address};
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut texts = isthmus_model::Interner::default();
        if let Ok(message) = Address::decode(bytes) {
            let _ = isthmus_model::wire::address(message, &mut texts);
        }
        if let Ok(message) = Authorization::decode(bytes) {
            let outline = isthmus_model::wire::outline(&message);
            let read = isthmus_model::wire::policy(message);
            assert!(read.is_err() || outline.is_some(), "a policy that can be read has an outline");
        }
    });
}

/// The harness above would find nothing if its resources were never accepted, or its queries never resolved.
#[test]
fn generated_responses_reach_every_kind_of_decision() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut reached = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(2048).collect();
        let (mut choices, mut mesh) = (Choices::new(&bytes), Mesh::default());
        mesh.take(first());
        reached.extend(mesh.ask(seed));
        while !choices.is_over() {
            mesh.take(response(&mut choices));
        }
        reached.extend(mesh.ask(seed));
    }
    let all = ["deny", "double hbone", "hbone", "name", "passthrough", "tcp"];
    assert!(reached.iter().eq(all.iter()), "{reached:?}");
}
