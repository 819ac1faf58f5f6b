//! Which thread a new connection is carried by: a pure choice from the threads' loads. No clock, no thread.

/// At this load, in thousandths of a core, a thread's new connections go elsewhere if there is a better place.
const OVERLOADED: u64 = 500;
/// How much less loaded another thread must be to take over a connection. Measured loads fluctuate, and each further
/// thread costs a tunnel of its own.
const MARGIN: u64 = 250;
/// What a connection counts that is too new to have been measured: a burst of five fills a thread.
const EACH_ARRIVAL: u64 = 100;

/// What a new connection would rather have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// The thread that connections of this key are on, which has a tunnel to their destination. When it is loaded, the
    /// key's next choice, where connections of the key make a second tunnel, and so on.
    Key(u64),
    /// The thread where it was accepted: nothing that it needs is anywhere else.
    Here,
    /// The least loaded: it brings a tunnel along.
    LeastLoaded,
}

/// Load of one thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Time that it was busy lately, in thousandths.
    pub(super) busy_permille: u64,
    /// Connections that were given to it since that was measured.
    pub(super) arrivals: u64,
    /// What stays on it for long ([`super::Occupancy`]).
    pub(super) occupants: usize,
}

impl Load {
    fn expected(self) -> u64 {
        self.busy_permille.saturating_add(self.arrivals.saturating_mul(EACH_ARRIVAL))
    }
}

/// The index of the thread, of `count` threads, for a connection that was accepted on the thread `here`.
pub(super) fn choose(
    count: usize,
    load: impl Fn(usize) -> Load,
    here: usize,
    preference: Preference,
) -> usize {
    let least_loaded = |allowed: u64| {
        let found = (0..count).map(|thread| (thread, load(thread)));
        let light = found.filter(|(_, load)| load.expected() <= allowed);
        light
            .min_by_key(|(thread, load)| (load.expected() / MARGIN, load.occupants, *thread != here))
            .map(|(thread, _)| thread)
    };
    let first = match preference {
        Preference::LeastLoaded => return least_loaded(u64::MAX).unwrap_or(here),
        Preference::Here => here,
        Preference::Key(key) => (0..count).max_by_key(|thread| weight(key, *thread)).unwrap_or(here),
    };
    let expected = load(first).expected();
    if expected < OVERLOADED {
        return first;
    }
    let allowed = expected - MARGIN;
    let second = match preference {
        Preference::Key(key) => (0..count)
            .filter(|thread| load(*thread).expected() <= allowed)
            .max_by_key(|thread| weight(key, *thread)),
        _ => least_loaded(allowed),
    };
    second.unwrap_or(first)
}

/// Rendezvous hashing: each key ranks the threads in an order of its own, so that keys spread evenly and no table says
/// which thread has which.
fn weight(key: u64, thread: usize) -> u64 {
    // The finalizer of SplitMix64.
    let mut z = key.wrapping_add((thread as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load { busy_permille: 0, arrivals: 0, occupants: 0 };

    fn busy(permille: u64) -> Load {
        Load { busy_permille: permille, ..IDLE }
    }

    fn on(loads: &[Load], here: usize, preference: Preference) -> usize {
        choose(loads.len(), |thread| loads[thread], here, preference)
    }

    /// A key whose order of three threads is this.
    fn key(order: [usize; 3]) -> u64 {
        (0..).find(|key| order.is_sorted_by_key(|thread| std::cmp::Reverse(weight(*key, *thread)))).unwrap()
    }

    #[test]
    fn a_key_has_one_thread_until_that_is_loaded_and_then_the_next_of_its_order() {
        let key = key([2, 0, 1]);
        for (case, loads, expected) in [
            ("idle", [IDLE, IDLE, IDLE], 2),
            ("a little", [IDLE, IDLE, busy(499)], 2),
            ("loaded", [IDLE, IDLE, busy(500)], 0),
            ("the second is not better", [busy(251), IDLE, busy(500)], 1),
            ("none is better", [busy(251), busy(251), busy(500)], 2),
            ("the second is loaded, too, but less", [busy(700), busy(800), busy(1000)], 0),
            ("arrivals count", [IDLE, IDLE, Load { arrivals: 5, ..IDLE }], 0),
            ("occupants do not", [IDLE, IDLE, Load { occupants: 100, ..IDLE }], 2),
        ] {
            for here in 0..3 {
                assert_eq!(on(&loads, here, Preference::Key(key)), expected, "{case}, accepted on {here}");
            }
        }
    }

    #[test]
    fn keys_spread_over_threads_and_few_move_when_there_is_one_more() {
        let (keys, threads) = (10_000, 4);
        let place = |key, threads| choose(threads, |_| IDLE, 0, Preference::Key(key));
        let mut found = vec![0; threads];
        (0..keys).for_each(|key| found[place(key, threads)] += 1);
        assert!(found.iter().all(|count| (2_300..2_700).contains(count)), "{found:?}");
        let moved: Vec<_> =
            (0..keys).filter(|key| place(*key, threads) != place(*key, threads + 1)).collect();
        assert!(moved.iter().all(|key| place(*key, threads + 1) == threads), "only to the new one");
        assert!((1_800..2_200).contains(&moved.len()), "a fifth: {}", moved.len());
    }

    #[test]
    fn a_burst_of_one_key_spreads_before_its_load_is_measured() {
        let mut loads = [IDLE; 2];
        for _ in 0..8 {
            let thread = on(&loads, 0, Preference::Key(7));
            loads[thread].arrivals += 1;
        }
        let mut arrivals = loads.map(|load| load.arrivals);
        arrivals.sort_unstable();
        assert_eq!(arrivals, [3, 5]);
    }

    #[test]
    fn a_connection_without_a_tunnel_stays_unless_its_thread_is_loaded() {
        for (loads, expected) in [
            ([IDLE, busy(499), IDLE], 1),
            ([busy(100), busy(500), busy(0)], 0),
            ([busy(260), busy(900), busy(0)], 2),
            ([busy(900), busy(900), busy(900)], 1),
        ] {
            assert_eq!(on(&loads, 1, Preference::Here), expected, "{loads:?}");
        }
    }

    #[test]
    fn a_tunnel_goes_to_the_least_loaded_thread_and_among_equals_to_the_one_with_the_fewest() {
        let with = |occupants| Load { occupants, ..IDLE };
        for (loads, expected) in [
            ([IDLE, IDLE, IDLE], 1),
            ([with(1), with(2), with(1)], 0),
            ([busy(300), busy(600), with(9)], 2),
            ([Load { busy_permille: 200, ..with(1) }, busy(240), with(2)], 1),
        ] {
            assert_eq!(on(&loads, 1, Preference::LeastLoaded), expected, "{loads:?}");
        }
    }
}
