//! Arbitrary packets of a node role on the ZDS socket, and the table of pods.

use std::fs::File;
use std::os::fd::OwnedFd;

use isthmus_fuzz::Choices;
use isthmus_fuzz::resources::damaged;
use isthmus_inpod::Blame;
use isthmus_inpod::table::{AddAction, Entry, NetnsHandle, PodTable};
use isthmus_inpod::wire::{self, Request};
use isthmus_proto::zds::{self, workload_request::Payload};
use prost::Message as _;

/// Stands for a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Netns(u8);

impl NetnsHandle for Netns {
    type Id = u8;
    fn id(&self) -> u8 {
        self.0
    }
}

fn packet(choices: &mut Choices<'_>) -> Vec<u8> {
    let uid = choices.name(&["u1", "u2", "u3", ""]);
    let info = |choices: &mut Choices<'_>| zds::WorkloadInfo {
        name: choices.name(&["a", "b"]),
        namespace: choices.name(&["ns"]),
        service_account: choices.name(&["sa", ""]),
    };
    let payload = match choices.byte() % 8 {
        0 => None,
        1 => Some(Payload::Keep(zds::KeepWorkload { uid })),
        2 | 3 => Some(Payload::Del(zds::DelWorkload { uid })),
        4 => Some(Payload::SnapshotSent(zds::SnapshotSent {})),
        _ => {
            let workload_info = (!choices.rarely(8)).then(|| info(choices));
            Some(Payload::Add(zds::AddWorkload { uid, workload_info }))
        }
    };
    let message = zds::WorkloadRequest { payload }.encode_to_vec();
    damaged(choices, message)
}

fn descriptors(choices: &mut Choices<'_>) -> Vec<OwnedFd> {
    let count = [1, 1, 1, 0, 0, 2][usize::from(choices.byte() % 6)];
    (0..count).filter_map(|_| File::open("/dev/null").ok().map(Into::into)).collect()
}

/// Checks that the answer fits into the node role's buffer and decodes to what was encoded.
fn answered(error: Option<&str>) {
    let bytes = wire::ack(error);
    assert!(bytes.len() < 1024, "{} bytes", bytes.len());
    let response = zds::WorkloadResponse::decode(bytes.as_slice()).unwrap_or_else(|error| panic!("{error}"));
    let Some(zds::workload_response::Payload::Ack(ack)) = response.payload else { panic!("no answer") };
    assert!(!ack.error.contains('\n'));
    assert_eq!(
        ack.error.is_empty(),
        error.is_none_or(|error| error.lines().next().is_none_or(str::is_empty))
    );
}

#[test]
fn every_packet_is_answered_and_the_table_stays_consistent() {
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let mut table = PodTable::<Netns>::default();
        let now = tokio::time::Instant::now();
        table.connected();
        while !choices.is_over() {
            let packet = packet(&mut choices);
            let outcome = wire::decode(&packet, descriptors(&mut choices));
            match outcome {
                Err(error) => answered(Some(&error.to_string())),
                Ok(Request::Add { pod, netns: _ }) => {
                    let netns = Netns(choices.byte() % 2);
                    match table.add(&pod.uid, &netns) {
                        AddAction::None => answered(None),
                        AddAction::Start | AddAction::Restart => {
                            let works = !choices.rarely(3);
                            let result =
                                if works { Ok(()) } else { Err((Blame::Pod, "it does not start".into())) };
                            table.started(Entry { pod, netns }, result, now);
                            answered((!works).then_some("it does not start"));
                        }
                    }
                }
                Ok(Request::Keep(uid)) => answered(table.keep(uid).err().map(|e| e.to_string()).as_deref()),
                Ok(Request::Del(uid)) => {
                    let _ = table.del(&uid);
                    answered(None);
                }
                Ok(Request::SnapshotSent) => {
                    answered(table.snapshot_sent().err().map(|e| e.to_string()).as_deref());
                }
            }
            if choices.rarely(16) {
                table.disconnected();
                table.connected();
            }
            let (running, pending) = (table.running().len(), table.pending().len());
            assert!(table.running().all(|(uid, _)| table.pending().all(|(entry, _)| entry.pod.uid != *uid)));
            assert_eq!(table.next_retry().is_some(), pending > 0);
            assert!(running + pending <= 4 + bytes.len(), "more pods than packets");
        }
    });
}

#[test]
fn every_error_fits_into_an_answer() {
    bolero::check!().for_each(|bytes: &[u8]| answered(Some(&String::from_utf8_lossy(bytes))));
}
