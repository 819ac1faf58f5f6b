//! A connection that is taken apart and put together at any point goes on as if nothing had happened.

use super::split::{client_script, server_script};
use super::wire::{connect, data, feed, serving, window};
use crate::{Connection, Event, Settings};

#[test]
fn parts_hold_all_of_a_connection() {
    let scripts = [
        (Connection::server(Settings::default()), server_script()),
        (super::split::asking_client(), client_script()),
    ];
    for (start, script) in scripts {
        let mut whole = start.clone();
        let mut moved = start;
        for byte in script {
            assert_eq!(feed(&mut whole, &[byte]), feed(&mut moved, &[byte]));
            let parts = moved.into_parts();
            assert_eq!(parts, whole.clone().into_parts());
            moved = Connection::from_parts(parts);
            assert_eq!(whole.output(), moved.output());
        }
    }
}

#[test]
fn unreported_events_move_too() {
    let mut server = serving(2);
    let mut left = 65_535;
    while left > 0 {
        let part = server.reserve_data(1, left);
        server.data_header(1, part, false).unwrap();
        left -= part;
    }
    assert_eq!(server.reserve_data(3, 1), 0);
    let input = [window(0, 10), data(3, b"x"), connect(5)].concat();
    let mut at = 0;
    assert_eq!(server.receive(&input, &mut at), Ok(Some(Event::Window { stream: 3 })));
    let mut moved = Connection::from_parts(server.into_parts());
    assert!(matches!(moved.receive(&input, &mut at), Ok(Some(Event::Data { stream: 3, .. }))));
    assert!(matches!(moved.receive(&input, &mut at), Ok(Some(Event::Request { stream: 5, .. }))));
}
