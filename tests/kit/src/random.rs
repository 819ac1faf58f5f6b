//! Random sequences of events for state machines that are compared with an oracle.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Calls `sequence` `count` times, each with a generator of its own. `ISTHMUS_SEQUENCES` is another count, for long runs;
/// `ISTHMUS_SEED` repeats one sequence, whose seed a failure prints.
pub fn sequences(count: u64, sequence: impl Fn(&mut fastrand::Rng)) {
    let setting = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let run = |seed: u64| {
        let one = AssertUnwindSafe(|| sequence(&mut fastrand::Rng::with_seed(seed)));
        if let Err(panic) = catch_unwind(one) {
            eprintln!("the sequence of ISTHMUS_SEED={seed} failed");
            resume_unwind(panic);
        }
    };
    if let Some(seed) = setting("ISTHMUS_SEED") {
        return run(seed);
    }
    let first = fastrand::u64(..);
    for number in 0..setting("ISTHMUS_SEQUENCES").unwrap_or(count) {
        run(first.wrapping_add(number));
    }
}
