//! The conversation of a hand-over with arbitrary frames: it breaks off or goes on, and runs nothing that was not accepted
//! and committed.

use isthmus_fuzz::Choices;
use isthmus_handover::frame::{Frame, MAX_FRAME, Piece};
use isthmus_handover::receiver::{Action, Receiving};

const PODS: [&str; 2] = ["a", "b"];

fn frame(choices: &mut Choices<'_>) -> Frame {
    match choices.byte() % 8 {
        0 => Frame::Hello { build: "x".to_owned() },
        1 => {
            let pod = if choices.rarely(30) { "other" } else { PODS[usize::from(choices.byte() % 2)] };
            Frame::Offer { pod: pod.to_owned(), items: u32::from(choices.byte() % 4) + 1 }
        }
        2 | 3 => {
            let count = usize::from(choices.byte() % 3) + 1;
            let piece = |choices: &mut Choices<'_>| {
                let (data, last) = (choices.bytes(8).to_vec(), !choices.rarely(60));
                Piece { data: data.into(), last, has_socket: choices.rarely(90) }
            };
            Frame::Pieces((0..count).map(|_| piece(choices)).collect())
        }
        4 | 5 => Frame::Commit,
        6 => Frame::Accepted,
        _ => Frame::Finished,
    }
}

#[test]
fn arbitrary_bytes_are_a_frame_or_refused() {
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        if let Ok(frame) = Frame::decode(bytes) {
            let again = frame.clone().encode();
            assert!(again.len() <= MAX_FRAME);
            assert_eq!(Frame::decode(&again).ok(), Some(frame));
        }
    });
}

#[test]
fn nothing_runs_without_being_accepted_and_committed() {
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let mut receiving = Receiving::new(PODS.map(str::to_owned).to_vec());
        let mut ready = false;
        for _ in 0..64 {
            let sent = frame(&mut choices);
            match receiving.step(sent.clone(), Vec::new()) {
                Action::Prepare { pod, items } => {
                    assert!(PODS.contains(&pod.as_str()) && !items.is_empty());
                    ready = !choices.rarely(100);
                    let outcome = if ready { Ok(()) } else { Err("no".to_owned()) };
                    let answer = receiving.prepared(outcome);
                    assert_eq!(answer == Frame::Accepted, ready);
                }
                Action::Run => {
                    assert!(std::mem::take(&mut ready) && sent == Frame::Commit);
                }
                Action::Break(_) | Action::Stop => return,
                Action::Wait | Action::Welcome { .. } => {}
            }
        }
    });
}
