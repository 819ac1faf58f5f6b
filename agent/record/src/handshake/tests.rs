//! What only this module can do wrong: hand over the secrets of another connection.

use super::{HandshakeError, Handshaker, Progress};
use crate::tests::support::Configs;
use crate::{Role, Suite};

fn finished(configs: &Configs) -> (Handshaker, Handshaker) {
    let (mut client, mut server) = (configs.ours(Role::Client), configs.ours(Role::Server));
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let at_client = client.step(&mut to_client, &mut to_server).unwrap();
        let at_server = server.step(&mut to_server, &mut to_client).unwrap();
        if (at_client, at_server) == (Progress::Done, Progress::Done) {
            return (client, server);
        }
    }
    panic!("no end of the handshake");
}

#[test]
fn secrets_of_another_connection_are_refused() {
    let configs = Configs::new(Suite::Aes128GcmSha256);
    let ((mut one, _), (mut other, mut server)) = (finished(&configs), finished(&configs));
    std::mem::swap(&mut one.secrets, &mut other.secrets);
    for mixed_up in [one, other] {
        assert!(matches!(mixed_up.into_session(), Err(HandshakeError::Secrets)));
    }
    server.secrets = std::sync::Arc::default();
    assert!(matches!(server.into_session(), Err(HandshakeError::Secrets)));
}
