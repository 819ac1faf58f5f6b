//! Attacks by an xDS server that speaks the protocol.

use std::time::Duration;

use anyhow::{Result, ensure};
use isthmus_kit::istiod::{raw_resource, resource, response};
use isthmus_kit::lab;
use isthmus_proto::discovery::Resource;
use isthmus_proto::{type_url, workload};

use crate::plane::{Expected, Plane, PlaneLab, named, workload};
use crate::world::Cue;

const ADDRESS: &str = type_url::ADDRESS;
const MIB: usize = 1 << 20;

/// Workloads of other nodes, from a number on.
fn workloads(from: usize, count: usize) -> Vec<Resource> {
    let one = |at: usize| {
        let at = u32::try_from(at).unwrap_or_default();
        named(workload(&format!("w{at}"), &(0x0b00_0000 + at).to_be_bytes(), "elsewhere"))
    };
    (from..from + count).map(one).collect()
}

/// Ten thousand resources, each with something impossible in it.
pub(crate) fn resources_that_are_no_resources_are_one_line() -> Result<()> {
    let odd = |at: usize| {
        let name = format!("odd-{at}");
        let mut bad = workload(&name, &[11, 0, 0], "elsewhere");
        match at % 6 {
            0 => return raw_resource(ADDRESS, &name, "1", b"\xff\xffgarbage".to_vec()),
            // Deeper than any message: groups within groups.
            1 => return raw_resource(ADDRESS, &name, "1", vec![0x0b; 10_000]),
            2 => return raw_resource("type.googleapis.com/odd", &name, "1", Vec::new()),
            3 => {
                let ports = workload::PortList {
                    ports: vec![workload::Port {
                        service_port: 99_999,
                        target_port: u32::MAX,
                        ..Default::default()
                    }],
                };
                bad.services.insert("ns/odd".to_owned(), ports);
            }
            4 => bad.trust_domain = "a/b\nc".to_owned(),
            _ => {}
        }
        let address = workload::Address { r#type: Some(workload::address::Type::Workload(bad)) };
        resource(ADDRESS, &name, "1", &address)
    };
    let removed = ["", "c1//Pod/ns/nobody", "\n", "ns/none.ns.svc.cluster.local"];
    let attack = move |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        let all = (0..10_000).map(odd).collect();
        plane.stream.push(&response(ADDRESS, "odd", all, &removed));
        let nack = plane.stream.recv().await?;
        let detail = nack.error_detail.map(|detail| detail.message).unwrap_or_default();
        ensure!(detail.contains("odd-0") && detail.len() < 16 * 1024, "a NACK of {} bytes", detail.len());
        // Known workloads again, under names that are not theirs.
        let stranger = workload("stranger", &[11, 0, 0, 1], "elsewhere");
        let address = workload::Address { r#type: Some(workload::address::Type::Workload(stranger)) };
        let misnamed = (0..1_000).map(|at| resource(ADDRESS, &format!("mis-{at}"), "1", &address)).collect();
        plane.stream.push(&response(ADDRESS, "misnamed", misnamed, &[]));
        plane.stream.recv().await?;
        cue.hold().await;
        Ok(())
    };
    lab::block_on(async { PlaneLab::new()?.judge(Expected::blame(&["refused", "odd-"]), attack).await })
}

pub(crate) fn a_resource_of_ten_megabytes_is_refused() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        let mut large = workload("large", &[11, 0, 0, 1], "elsewhere");
        large.workload_name = "x".repeat(10 * MIB);
        plane.stream.push(&response(ADDRESS, "large", vec![named(large)], &[]));
        let nack = plane.stream.recv().await?;
        ensure!(nack.error_detail.is_some(), "it was accepted");
        let long = raw_resource(ADDRESS, &"n".repeat(10 * MIB), &"v".repeat(10 * MIB), Vec::new());
        plane.stream.push(&response(ADDRESS, "long", vec![long], &[]));
        plane.stream.recv().await?;
        cue.hold().await;
        Ok(())
    };
    lab::block_on(async { PlaneLab::new()?.judge(Expected::blame(&["refused", "large"]), attack).await })
}

pub(crate) fn a_response_of_200_megabytes_is_refused() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        let body = vec![0x5a; 2 * MIB];
        let all = (0..99).map(|at| raw_resource(ADDRESS, &format!("r{at}"), "1", body.clone())).collect();
        plane.stream.push(&response(ADDRESS, "huge", all, &[]));
        let mut attempts = 0;
        let again = async {
            loop {
                let stream = plane.next_stream().await?;
                attempts += 1;
                let all =
                    (0..99).map(|at| raw_resource(ADDRESS, &format!("r{at}"), "1", body.clone())).collect();
                stream.push(&response(ADDRESS, "huge", all, &[]));
            }
        };
        tokio::select! {
            ended = again => { let _: Result<()> = ended; }
            () = cue.hold() => {}
        }
        ensure!(attempts < 20, "{attempts} attempts");
        Ok(())
    };
    // It is read up to the limit, again and again.
    let expected = Expected { cpu: 100, ..Expected::blame(&["ISTHMUS_CONFIG_BUDGET"]) };
    lab::block_on(async { PlaneLab::new()?.judge(expected, attack).await })
}

/// Removals only, which are kept by no budget of resources.
pub(crate) fn a_response_without_end_is_refused() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        let names: Vec<String> = (0..3_000_000).map(|at| format!("c1//Pod/ns/gone-{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        plane.stream.push(&response(ADDRESS, "removals", Vec::new(), &names));
        plane.next_stream().await?;
        cue.hold().await;
        Ok(())
    };
    let expected = Expected { cpu: 100, ..Expected::blame(&["ISTHMUS_CONFIG_BUDGET"]) };
    lab::block_on(async { PlaneLab::new()?.judge(expected, attack).await })
}

pub(crate) fn millions_of_workloads_are_refused() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        let mut sent = 0;
        let endless = async {
            loop {
                plane.stream.push(&response(ADDRESS, "more", workloads(sent, 20_000), &[]));
                sent += 20_000;
                if plane.stream.recv().await?.error_detail.is_some() {
                    break;
                }
            }
            anyhow::Ok(())
        };
        endless.await?;
        eprintln!("{sent} workloads until the agent refused");
        ensure!(sent >= 60_000, "a mesh of {sent} workloads is not unheard of");
        cue.hold().await;
        // What is removed is no longer counted.
        let names: Vec<String> = workloads(0, sent).into_iter().map(|resource| resource.name).collect();
        for part in names.chunks(20_000) {
            let part: Vec<&str> = part.iter().map(String::as_str).collect();
            plane.stream.push(&response(ADDRESS, "fewer", Vec::new(), &part));
            plane.stream.recv().await?;
        }
        Ok(())
    };
    let expected = Expected { cpu: 100, ..Expected::blame(&["ISTHMUS_CONFIG_BUDGET"]) };
    lab::block_on(async { PlaneLab::new()?.judge(expected, attack).await })
}

pub(crate) fn a_server_that_reads_no_acknowledgement_is_left() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        // The same resource for ever. The scripted server reads, but its acknowledgements go nowhere.
        let again = response(ADDRESS, "again", workloads(0, 1), &[]);
        let endless = async {
            loop {
                for _ in 0..100 {
                    plane.stream.push(&again);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                while plane.stream.try_recv().is_some() {}
            }
        };
        tokio::select! {
            () = endless => {}
            () = cue.hold() => {}
        }
        Ok(())
    };
    let expected = Expected { blamed: &[], complaints: 4, cpu: 100 };
    lab::block_on(async { PlaneLab::new()?.judge(expected, attack).await })
}

pub(crate) fn nonces_that_repeat_and_types_that_are_unknown_change_nothing() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let mut plane = plane;
        for at in 0..5_000 {
            let kind = format!("type.googleapis.com/odd.Type{at}{}", "x".repeat(1_000));
            plane.stream.push(&response(&kind, "same", Vec::new(), &[]));
            plane.stream.push(&response(ADDRESS, "same", Vec::new(), &[]));
        }
        for _ in 0..10_000 {
            ensure!(plane.stream.recv().await?.error_detail.is_none());
        }
        cue.hold().await;
        Ok(())
    };
    lab::block_on(async {
        PlaneLab::new()?.judge(Expected { blamed: &[], complaints: 3, cpu: 40 }, attack).await
    })
}

pub(crate) fn a_stream_that_is_reset_after_each_response_is_one_line() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let Plane { mut istiod, stream, .. } = plane;
        stream.abort("on purpose\n2026\terror\tforged");
        let mut attempts = 0;
        let endless = async {
            loop {
                let mut stream = istiod.next_stream().await?;
                attempts += 1;
                stream.subscriptions().await?;
                stream.push(&response(ADDRESS, "once", workloads(0, 1), &[]));
                stream.recv().await?;
                stream.abort(&format!("on purpose, request {attempts}"));
            }
        };
        tokio::select! {
            ended = endless => { let _: Result<()> = ended; }
            () = cue.hold() => {}
        }
        eprintln!("{attempts} attempts");
        ensure!(attempts < 20, "{attempts} attempts");
        Ok(())
    };
    lab::block_on(async {
        PlaneLab::new()?
            .judge(Expected::blame(&["xDS stream ended", "127.0.0.1:15012", "on purpose"]), attack)
            .await
    })
}
