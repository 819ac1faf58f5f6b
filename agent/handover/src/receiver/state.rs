//! The successor's side of the conversation, without I/O: puts units together, and says when one runs.

use std::os::fd::OwnedFd;

use isthmus_hbone::handover::{MAX_ITEM, wipe};
use zeroize::Zeroizing;

use crate::Item;
use crate::frame::{Frame, Piece};

/// Bytes of a unit.
const MAX_UNIT: usize = 256 * 1024 * 1024;

/// What is done next.
#[derive(Debug)]
pub enum Action {
    /// Waits for the next frame.
    Wait,
    /// Names the pods that are served here.
    Welcome {
        /// The predecessor's build.
        build: String,
    },
    /// Makes the unit ready, and reports the outcome with [`Receiving::prepared`].
    Prepare {
        /// Its pod.
        pod: String,
        /// The unit.
        items: Vec<Item>,
    },
    /// The unit that is ready runs.
    Run,
    /// The conversation is over.
    Stop,
    /// The frame was not expected: the conversation is over.
    Break(&'static str),
}

/// Where the conversation is.
#[derive(Debug, Default)]
enum State {
    #[default]
    Fresh,
    Idle,
    Filling(Filling),
    /// A unit is made ready.
    Preparing,
    /// It is ready, and its commit is awaited.
    Ready,
    Over,
}

/// A unit whose items arrive.
#[derive(Debug)]
struct Filling {
    pod: String,
    missing: u32,
    items: Vec<Item>,
    socket: Option<OwnedFd>,
    pieces: Vec<Zeroizing<Vec<u8>>>,
    item_length: usize,
    length: usize,
}

/// The conversation.
#[derive(Debug)]
pub struct Receiving {
    state: State,
    /// The pods that may be offered.
    pods: Vec<String>,
}

impl Receiving {
    /// A conversation in which units of these pods are asked for.
    #[must_use]
    pub fn new(pods: Vec<String>) -> Self {
        Self { state: State::Fresh, pods }
    }

    /// The action that follows from a frame.
    pub fn step(&mut self, frame: Frame, sockets: Vec<OwnedFd>) -> Action {
        let (next, action) = match (std::mem::replace(&mut self.state, State::Over), frame) {
            (State::Fresh, Frame::Hello { build }) => (State::Idle, Action::Welcome { build }),
            (State::Idle, Frame::Offer { pod, items }) if self.pods.contains(&pod) => {
                (State::Filling(Filling::new(pod, items)), Action::Wait)
            }
            (State::Idle, Frame::Offer { .. }) => {
                (State::Over, Action::Break("a unit of a pod that was not asked for"))
            }
            (State::Filling(filling), Frame::Pieces(pieces)) => filling.add(pieces, sockets),
            (State::Ready, Frame::Commit) => (State::Idle, Action::Run),
            (State::Idle, Frame::Finished) => (State::Over, Action::Stop),
            _ => (State::Over, Action::Break("a frame out of order")),
        };
        self.state = next;
        action
    }

    /// The unit was made ready, or not; the frame that says so.
    pub fn prepared(&mut self, outcome: Result<(), String>) -> Frame {
        match outcome {
            Ok(()) => {
                self.state = State::Ready;
                Frame::Accepted
            }
            Err(reason) => {
                self.state = State::Idle;
                Frame::Refused { reason }
            }
        }
    }
}

impl Filling {
    fn new(pod: String, missing: u32) -> Self {
        let (items, pieces) = (Vec::new(), Vec::new());
        Self { pod, missing, items, socket: None, pieces, item_length: 0, length: 0 }
    }

    fn add(mut self, pieces: Vec<Piece>, sockets: Vec<OwnedFd>) -> (State, Action) {
        let broken = |what| (State::Over, Action::Break(what));
        let mut sockets = sockets.into_iter();
        for Piece { data, last, has_socket } in pieces {
            self.item_length += data.len();
            self.length += data.len();
            if self.missing == 0 {
                return broken("more items than it offered");
            }
            if self.item_length > MAX_ITEM || self.length > MAX_UNIT {
                return broken("a unit that is too long");
            }
            if has_socket && !self.pieces.is_empty() {
                return broken("a descriptor within an item");
            }
            if has_socket {
                self.socket = sockets.next();
            }
            self.pieces.push(data);
            if last {
                self.complete_item();
            }
        }
        if self.missing > 0 {
            return (State::Filling(self), Action::Wait);
        }
        (State::Preparing, Action::Prepare { pod: self.pod, items: self.items })
    }

    /// In one allocation: a buffer that grows leaves copies of its secrets behind.
    fn complete_item(&mut self) {
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.item_length));
        for piece in self.pieces.drain(..) {
            bytes.extend_from_slice(&piece);
            wipe(piece);
        }
        self.item_length = 0;
        self.missing -= 1;
        self.items.push(Item { bytes, socket: self.socket.take() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &[u8], last: bool) -> Piece {
        Piece { data: bytes.to_vec().into(), last, has_socket: false }
    }

    fn pieces(bytes: &[u8], last: bool) -> Frame {
        Frame::Pieces(vec![piece(bytes, last)])
    }

    fn idle() -> Receiving {
        let mut receiving = Receiving::new(vec!["a".into()]);
        let welcome = receiving.step(Frame::Hello { build: "x".into() }, Vec::new());
        assert!(matches!(welcome, Action::Welcome { build } if build == "x"));
        receiving
    }

    fn ready() -> Receiving {
        let mut receiving = idle();
        receiving.step(Frame::Offer { pod: "a".into(), items: 2 }, Vec::new());
        assert!(matches!(receiving.step(pieces(b"on", false), Vec::new()), Action::Wait));
        let rest = Frame::Pieces(vec![piece(b"e", true), piece(b"two", true)]);
        let Action::Prepare { pod, items } = receiving.step(rest, Vec::new()) else {
            panic!("not complete");
        };
        let bytes: Vec<&[u8]> = items.iter().map(|item| item.bytes.as_slice()).collect();
        assert_eq!((pod.as_str(), bytes), ("a", vec![b"one".as_slice(), b"two"]));
        receiving
    }

    #[test]
    fn a_unit_runs_after_it_was_accepted_and_committed() {
        let mut receiving = ready();
        assert_eq!(receiving.prepared(Ok(())), Frame::Accepted);
        assert!(matches!(receiving.step(Frame::Commit, Vec::new()), Action::Run));
        assert!(matches!(receiving.step(Frame::Commit, Vec::new()), Action::Break(_)), "once");
    }

    #[test]
    fn a_refused_unit_cannot_be_committed() {
        let mut receiving = ready();
        assert_eq!(receiving.prepared(Err("no".into())), Frame::Refused { reason: "no".into() });
        assert!(matches!(receiving.step(Frame::Commit, Vec::new()), Action::Break(_)));
    }

    #[test]
    fn nothing_runs_before_it_was_prepared() {
        for frame in
            [Frame::Commit, Frame::Accepted, pieces(b"x", true), Frame::Hello { build: String::new() }]
        {
            assert!(matches!(idle().step(frame.clone(), Vec::new()), Action::Break(_)), "{frame:?}");
            assert!(matches!(ready().step(frame.clone(), Vec::new()), Action::Break(_)), "{frame:?}");
        }
    }

    #[test]
    fn a_pod_that_was_not_asked_for_is_a_violation() {
        let offer = Frame::Offer { pod: "b".into(), items: 1 };
        assert!(matches!(
            idle().step(offer, Vec::new()),
            Action::Break("a unit of a pod that was not asked for")
        ));
    }

    #[test]
    fn descriptors_belong_to_the_items_that_say_so() {
        let socket = || OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
        let mut receiving = idle();
        receiving.step(Frame::Offer { pod: "a".into(), items: 3 }, Vec::new());
        let with = |bytes: &[u8]| Piece { has_socket: true, ..piece(bytes, true) };
        let sent = Frame::Pieces(vec![with(b"x"), piece(b"y", true), with(b"z")]);
        let Action::Prepare { items, .. } = receiving.step(sent, vec![socket(), socket()]) else {
            panic!("not complete");
        };
        let with: Vec<bool> = items.iter().map(|item| item.socket.is_some()).collect();
        assert_eq!(with, [true, false, true]);
    }

    #[test]
    fn pieces_that_do_not_fit_a_unit_are_a_violation() {
        let late = Frame::Pieces(vec![piece(b"on", false), Piece { has_socket: true, ..piece(b"e", true) }]);
        let more = Frame::Pieces(vec![piece(b"x", true), piece(b"y", true)]);
        for sent in [late, more] {
            let mut receiving = idle();
            receiving.step(Frame::Offer { pod: "a".into(), items: 1 }, Vec::new());
            assert!(matches!(receiving.step(sent.clone(), Vec::new()), Action::Break(_)), "{sent:?}");
        }
    }
}
