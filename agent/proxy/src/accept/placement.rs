//! Which data thread a listener's connections are carried by. Knows nothing of the threads' loads.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;

use isthmus_rt::threads::Preference;

/// How a listener's connections are placed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Placement {
    /// With the tunnel to their destination: each thread has tunnels of its own, and connections of one client to one
    /// original destination share a thread.
    WithTunnel {
        /// Tells clients apart, since they do not share tunnels.
        client: u64,
    },
    /// Where they were accepted.
    Here,
    /// A tunnel that was accepted, with all of its streams, where there is least to do.
    Tunnel,
}

impl Placement {
    /// With the tunnels of this client.
    pub(crate) fn with_tunnels_of(client: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        Self::WithTunnel { client: hasher.finish() }
    }

    /// What a connection to this destination prefers.
    pub(super) fn of(self, original: SocketAddr) -> Preference {
        match self {
            Self::WithTunnel { client } => {
                let mut hasher = DefaultHasher::new();
                (client, original).hash(&mut hasher);
                Preference::Key(hasher.finish())
            }
            Self::Here => Preference::Here,
            Self::Tunnel => Preference::LeastLoaded,
        }
    }

    /// Whether connections stay for long, and are to be spread by their number, too.
    pub(super) fn is_for_long(self) -> bool {
        matches!(self, Self::Tunnel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_and_a_destination_are_one_key() {
        let (one, other) = (Placement::with_tunnels_of("ns/a"), Placement::with_tunnels_of("ns/b"));
        let [http, https] = ["10.0.0.1:80", "10.0.0.1:443"].map(|address| address.parse().unwrap());
        assert_eq!(one.of(http), Placement::with_tunnels_of("ns/a").of(http));
        assert_ne!(one.of(http), one.of(https));
        assert_ne!(one.of(http), other.of(http));
    }
}
