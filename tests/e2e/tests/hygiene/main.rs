//! Habits that no compiler checks: module comments, waits in tests, paths of a machine in the repository, and a catalogue
//! of errors that agrees with the code.

mod errors;
mod security;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Test files that sleep on the real clock: file, number of sleeps, and why no signal or `isthmus_kit::wait` will do.
const SLEEPS: [(&str, usize, &str); 32] = [
    ("agent/rt/src/threads/tests.rs", 3, "the time of a measurement, and a task that sleeps"),
    ("benches/benches/handshakes.rs", 2, "the rate of requests"),
    ("benches/benches/lab/meter.rs", 1, "the time of a measurement"),
    ("benches/benches/memory.rs", 1, "samples memory until it is stable"),
    ("deploy/charts/tests/charts/api_server.rs", 1, "polls a child process, without a runtime"),
    ("deploy/playground/tests/scenarios.rs", 2, "polls a child process, without a runtime"),
    ("deploy/playground/tests/world.rs", 1, "polls a child process, without a runtime"),
    ("tests/e2e/tests/fidelity/heavy.rs", 1, "starts connections at given times"),
    ("tests/e2e/tests/enrol/kills.rs", 2, "random pauses are the test"),
    ("tests/e2e/tests/hostile/ca.rs", 1, "the time in which requests are counted"),
    ("tests/e2e/tests/hostile/frames.rs", 1, "the time in which connections are counted"),
    ("tests/e2e/tests/hostile/gateway.rs", 4, "the rate of attacks, and the time in which one fills buffers"),
    ("tests/e2e/tests/hostile/plane.rs", 2, "the time of a measurement, and the pace of the victim"),
    ("tests/e2e/tests/hostile/xds.rs", 1, "the rate of an attack"),
    ("tests/e2e/tests/handover/apps.rs", 1, "the pace of applications"),
    ("tests/e2e/tests/handover/kills.rs", 1, "a random moment is the test"),
    ("tests/e2e/tests/handover/main.rs", 2, "how long connections carry traffic between two upgrades"),
    ("agent/hbone/tests/copy.rs", 1, "how long a copy under load goes on"),
    ("tests/e2e/tests/hostile/cgroup.rs", 1, "polls a process that exits, in a drop"),
    ("tests/e2e/tests/rules_packets/established.rs", 1, "the time in which nothing may leave the pod"),
    ("tests/e2e/tests/hostile/limits.rs", 1, "the rate of an attack"),
    ("tests/e2e/tests/hostile/peers.rs", 3, "the rate of an attack, and the time in which it fills buffers"),
    ("tests/e2e/tests/hostile/pods.rs", 1, "the time in which an attack fills buffers"),
    ("tests/e2e/tests/hostile/world.rs", 1, "samples memory until it is given back"),
    ("tests/e2e/tests/leak.rs", 1, "random pauses are the test"),
    ("tests/e2e/tests/two_clusters/restart.rs", 1, "the rate of requests"),
    ("tests/e2e/tests/two_clusters/whole.rs", 2, "polls /proc, without a runtime"),
    ("agent/hbone/tests/moved/load.rs", 3, "the pace of senders, and a receiver that does not read yet"),
    ("agent/hbone/tests/moved/main.rs", 3, "how long a tunnel under load stays in one process"),
    ("agent/hbone/tests/moved/random.rs", 1, "a step of a random schedule"),
    ("tests/kit/src/lab/harness.rs", 1, "the time limit of a test"),
    ("tests/kit/src/wait.rs", 1, "the one place that polls"),
];

/// Folders that are not part of the sources.
const SKIPPED: [&str; 3] = [".git", "target", "node_modules"];

/// Every text file of the repository, by its path from the root, with its contents.
fn files() -> Result<Vec<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("root")?;
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path: PathBuf = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_symlink() || SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                files.push((path.strip_prefix(root)?.to_string_lossy().into_owned(), text));
            }
        }
    }
    Ok(files)
}

fn is_rust(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "rs")
}

/// Whether a file holds nothing but tests, or what tests are made of.
fn is_test(file: &str) -> bool {
    ["tests", "benches"].iter().any(|folder| file.split('/').any(|part| part == *folder))
        || file.ends_with("/tests.rs")
}

#[test]
fn every_module_opens_with_its_comment() {
    let is_module = |file: &str| is_rust(file) && !file.ends_with("/tests.rs");
    let bare = |(file, text): &(String, String)| is_module(file) && !text.starts_with("//!");
    let found: Vec<_> = files().unwrap().into_iter().filter(bare).map(|(file, _)| file).collect();
    assert!(found.is_empty(), "without `//!` in the first line: {found:#?}");
}

/// A sleep makes a test slow when it is too long and flaky when it is too short. Under a paused clock it is exact.
#[test]
fn tests_wait_for_signals_and_do_not_sleep() {
    let mut found = Vec::new();
    for (file, text) in files().unwrap().into_iter().filter(|(file, _)| is_rust(file) && is_test(file)) {
        let virtual_time = text.contains("start_paused") && !file.starts_with("tests/kit/");
        if virtual_time || file == file!() {
            continue;
        }
        let sleeps = text.matches("::sleep(").count();
        let listed = SLEEPS.iter().find(|(known, ..)| *known == file).map_or(0, |(_, count, _)| *count);
        if sleeps != listed {
            found.push(format!("{file}: {sleeps} sleeps, {listed} are listed"));
        }
    }
    assert!(found.is_empty(), "wait with isthmus_kit::wait, or give the reason in this test: {found:#?}");
}

/// Each poll is charged to a pod, since every group of tasks of a pod's data plane is on its share. (Only `agent/rt` spawns.)
#[test]
fn no_task_of_a_pod_is_without_its_share_of_cpu_time() {
    let (mut groups, mut uncharged) = (0, Vec::new());
    for (file, text) in files().unwrap() {
        let is_data_plane =
            ["agent/proxy/src/", "agent/dns/src/"].iter().any(|crate_| file.starts_with(crate_));
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        if !is_data_plane || is_test(&file) {
            continue;
        }
        for statement in product.split("Tasks::new(").skip(1) {
            groups += 1;
            if !statement.split(';').next().is_some_and(|rest| rest.contains(".on(")) {
                uncharged.push(file.clone());
            }
        }
    }
    assert!(groups >= 5, "found only {groups}");
    assert!(uncharged.is_empty(), "not charged to a pod: {uncharged:?}");
}

#[test]
fn no_file_contains_a_path_of_one_machine() {
    // Composed, so that this file does not contain them.
    let folders = ["home", "root", "work", "Users"].map(|folder| format!("/{folder}/"));
    // Where every node of GKE has its CNI plugins.
    let everywhere = format!("{}kubernetes/bin", folders[0]);
    let named = |text: &str| {
        let text = text.replace(&everywhere, "");
        folders.iter().find(|folder| text.contains(folder.as_str())).cloned()
    };
    let found: Vec<_> = files()
        .unwrap()
        .into_iter()
        .filter_map(|(file, text)| named(&text).map(|path| (file, path)))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}
