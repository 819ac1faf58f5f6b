//! The predecessor's side of the conversation, without I/O: whose a unit is at each moment.

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The successor has named its pods.
    Wants,
    /// A unit is at rest.
    Taken,
    /// There is no further unit, or no time for one.
    NoMore,
    /// The successor can run the unit.
    Accepted,
    /// It cannot.
    Refused,
    /// The commit was sent.
    Committed,
    /// The conversation broke: the socket failed, a frame was not understood or out of order, or none came in time.
    Broken,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Accepts nothing more, and takes the first unit.
    Close,
    /// Takes the next unit.
    Take,
    /// Sends the unit, and waits for the answer.
    Offer,
    /// Sends the commit.
    Commit,
    /// The unit is the successor's; the next one is taken.
    Release,
    /// The successor refused the unit: it goes on here, and the next one is taken.
    Refuse,
    /// The unit goes on here, and the conversation is over.
    Return,
    /// Says that there is no more, and the conversation is over.
    Finish,
    /// The conversation is over, and no unit is in between.
    Stop,
}

/// Where the conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Greeting,
    Taking,
    Offered,
    Committing,
    Over,
}

/// The conversation.
#[derive(Debug, Clone, Default)]
pub struct Sending(State);

impl Sending {
    /// The action that follows from an event. An event that is not expected breaks the conversation.
    pub fn step(&mut self, event: &Event) -> Action {
        let (next, action) = match (self.0, event) {
            (State::Greeting, Event::Wants) => (State::Taking, Action::Close),
            (State::Taking, Event::Taken) => (State::Offered, Action::Offer),
            (State::Taking, Event::NoMore) => (State::Over, Action::Finish),
            (State::Offered, Event::Accepted) => (State::Committing, Action::Commit),
            (State::Offered, Event::Refused) => (State::Taking, Action::Refuse),
            (State::Committing, Event::Committed) => (State::Taking, Action::Release),
            // A commit that was not sent was not received.
            (State::Offered | State::Committing, _) => (State::Over, Action::Return),
            (State::Greeting | State::Taking | State::Over, _) => (State::Over, Action::Stop),
        };
        self.0 = next;
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 7] = [
        Event::Wants,
        Event::Taken,
        Event::NoMore,
        Event::Accepted,
        Event::Refused,
        Event::Committed,
        Event::Broken,
    ];

    #[test]
    fn a_unit_is_committed_after_it_was_accepted() {
        let mut sending = Sending::default();
        let events = [
            Event::Wants,
            Event::Taken,
            Event::Accepted,
            Event::Committed,
            Event::Taken,
            Event::Refused,
            Event::NoMore,
        ];
        let actions = events.map(|event| sending.step(&event));
        use Action::{Close, Commit, Finish, Offer, Refuse, Release};
        assert_eq!(actions, [Close, Offer, Commit, Release, Offer, Refuse, Finish]);
    }

    /// All sequences of up to seven events: a unit is released only after its commit was sent, and each unit that was taken
    /// is released or goes on here, once.
    #[test]
    fn a_taken_unit_has_one_owner_whatever_happens() {
        fn walk(sending: &Sending, held: bool, committed: bool, depth: usize) {
            if depth == 0 {
                return;
            }
            for event in &EVENTS {
                // A unit is at rest, or a commit sent, only when it was asked for.
                let is_possible = match event {
                    Event::Taken | Event::NoMore => sending.0 == State::Taking,
                    Event::Committed => sending.0 == State::Committing,
                    _ => true,
                };
                if !is_possible {
                    continue;
                }
                let mut next = sending.clone();
                let action = next.step(event);
                let held = held || *event == Event::Taken;
                let committed = committed || *event == Event::Committed;
                let (held, committed) = match action {
                    Action::Release => {
                        assert!(held && committed, "{sending:?} {event:?}");
                        (false, false)
                    }
                    Action::Refuse | Action::Return => {
                        assert!(held && !committed, "{sending:?} {event:?}");
                        (false, false)
                    }
                    Action::Take | Action::Close | Action::Finish | Action::Stop => {
                        assert!(!held, "{sending:?} {event:?} leaves a unit behind");
                        (false, false)
                    }
                    Action::Offer | Action::Commit => (held, committed),
                };
                walk(&next, held, committed, depth - 1);
            }
        }
        walk(&Sending::default(), false, false, 7);
    }
}
