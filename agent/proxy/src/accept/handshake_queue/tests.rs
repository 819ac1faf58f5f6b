use std::collections::HashSet;

use super::*;

const GRACE: Duration = Duration::from_secs(1);
const LIMIT: usize = 256;
const WAITING: usize = 1024;

/// A queue, and what became of each handshake.
struct Table {
    queue: HandshakeQueue,
    sources: HashMap<Id, Source>,
    granted: HashSet<Id>,
    ended: HashSet<Id>,
    now: Instant,
}

impl Table {
    fn new(limit: usize, waiting: usize) -> Self {
        Self {
            queue: HandshakeQueue::new(limit, waiting, GRACE),
            sources: HashMap::new(),
            granted: HashSet::new(),
            ended: HashSet::new(),
            now: Instant::now(),
        }
    }

    fn request(&mut self, source: &str) -> Id {
        let source = Source::of(source.parse().unwrap());
        let id = self.queue.request(source);
        self.sources.insert(id, source);
        self.advance();
        id
    }

    fn release(&mut self, id: Id) {
        self.queue.release(self.sources[&id], id);
        self.granted.remove(&id);
        self.advance();
    }

    fn advance(&mut self) {
        for action in self.queue.advance(self.now) {
            match action {
                Action::Grant(id) => assert!(self.granted.insert(id)),
                Action::Evict(id) => assert!(self.granted.remove(&id) && self.ended.insert(id)),
                Action::Refuse(id) => assert!(!self.granted.contains(&id) && self.ended.insert(id)),
            }
        }
        assert_eq!(self.queue.taken, self.granted.len());
        assert_eq!(self.queue.taken, self.queue.slots.values().map(VecDeque::len).sum::<usize>());
        assert_eq!(self.queue.taken, self.queue.networks.values().sum::<usize>());
        assert_eq!(self.queue.queued, self.queue.waiting.values().map(VecDeque::len).sum::<usize>());
        assert!(self.queue.taken <= self.queue.limit && self.queue.queued <= self.queue.waiting_limit);
        assert!(
            self.queue.queued == 0 || self.queue.taken == self.queue.limit,
            "nobody waits beside a free slot"
        );
    }

    fn sleep(&mut self, by: Duration) {
        self.now += by;
        self.advance();
    }

    /// How long a handshake waits for its slot while `attack` goes on, one step per millisecond.
    fn wait_for(&mut self, id: Id, mut attack: impl FnMut(&mut Self)) -> Duration {
        let start = self.now;
        while !self.granted.contains(&id) {
            assert!(!self.ended.contains(&id), "it was refused");
            assert!(self.now - start < 30 * GRACE, "it waits for ever");
            self.sleep(Duration::from_millis(1));
            attack(self);
        }
        self.now - start
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_address_delays_no_other() {
    let mut table = Table::new(LIMIT, WAITING);
    let flood = |table: &mut Table| {
        table.request("10.1.0.1");
    };
    for _ in 0..3000 {
        table.sleep(Duration::from_millis(1));
        flood(&mut table);
    }
    for honest in ["10.2.0.1", "10.1.0.2"] {
        let id = table.request(honest);
        assert_eq!(table.wait_for(id, flood), Duration::ZERO, "{honest}");
        // It keeps its slot for its whole grace.
        for _ in 0..900 {
            table.sleep(Duration::from_millis(1));
            flood(&mut table);
        }
        assert!(table.granted.contains(&id), "{honest}");
        table.release(id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_that_is_faster_than_the_shortest_grace_delays_others_by_that() {
    let mut table = Table::new(LIMIT, WAITING);
    for _ in 0..LIMIT + 10 {
        table.request("10.1.0.1");
    }
    let id = table.request("10.1.0.2");
    assert_eq!(table.wait_for(id, |_| ()), GRACE / OVER_ADDRESS);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_a_whole_network_delays_other_networks_by_a_quarter_of_the_grace_at_most() {
    for (prefix, honest) in [("10.1.0.", "10.2.0.1"), ("fd00:0:0:", "fd00:0:1::1")] {
        let mut table = Table::new(LIMIT, WAITING);
        let mut next = 0_u32;
        let mut flood = move |table: &mut Table| {
            next = (next + 1) % 250;
            let tail = if prefix.contains(':') { "::1" } else { "" };
            table.request(&format!("{prefix}{next}{tail}"));
        };
        for _ in 0..3000 {
            table.sleep(Duration::from_millis(1));
            flood(&mut table);
        }
        let id = table.request(honest);
        let waited = table.wait_for(id, &mut flood);
        assert!(waited <= GRACE / OVER_NETWORK, "{honest}: {waited:?}");
        // A client of the same network shares with the flood, and is served in turn.
        let beside = format!("{prefix}{}", if prefix.contains(':') { "ffff::1" } else { "255" });
        let id = table.request(&beside);
        let waited = table.wait_for(id, flood);
        assert!(waited <= GRACE, "{beside}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_within_its_share_has_its_whole_grace() {
    let mut table = Table::new(2, 4);
    let (first, second) = (table.request("10.0.0.1"), table.request("10.0.0.2"));
    table.sleep(GRACE / 2);
    let third = table.request("10.0.0.3");
    assert_eq!(table.queue.due(), Some(table.now + GRACE / 2));
    table.sleep(GRACE / 2 - Duration::from_millis(1));
    assert!(table.ended.is_empty());
    table.sleep(Duration::from_millis(1));
    assert!(
        table.ended.contains(&first) && table.granted.contains(&third) && table.granted.contains(&second)
    );
}

#[tokio::test(start_paused = true)]
async fn an_honest_burst_waits_and_loses_none() {
    let mut table = Table::new(LIMIT, WAITING);
    // One client with many, and a hundred with some; a handshake takes 5 ms.
    let mut open = VecDeque::new();
    for at in 0..1200_usize {
        let source = if at % 3 == 0 { "10.1.0.1".to_owned() } else { format!("10.1.1.{}", at % 100) };
        open.push_back(table.request(&source));
    }
    while !open.is_empty() {
        table.sleep(Duration::from_millis(5));
        let done: Vec<Id> = open.iter().filter(|id| table.granted.contains(id)).copied().collect();
        assert!(!done.is_empty());
        open.retain(|id| !done.contains(id));
        done.into_iter().for_each(|id| table.release(id));
    }
    assert!(table.ended.is_empty(), "{} were ended", table.ended.len());
}

#[tokio::test(start_paused = true)]
async fn of_too_many_that_wait_the_newest_of_the_busiest_is_refused() {
    let mut table = Table::new(1, 4);
    let holder = table.request("10.0.0.1");
    let flood: Vec<Id> = (0..4).map(|_| table.request("10.1.0.1")).collect();
    let other = table.request("10.2.0.1");
    assert_eq!(table.ended, HashSet::from([flood[3]]));
    let another = table.request("10.3.0.1");
    assert_eq!(table.ended, HashSet::from([flood[3], flood[2]]));
    table.release(flood[1]);
    table.release(holder);
    assert!(table.granted.contains(&flood[0]), "first come, first served while none has a slot");
    table.release(flood[0]);
    assert!(table.granted.contains(&other));
    table.release(other);
    assert!(table.granted.contains(&another));
    table.release(another);
    assert!(
        table.queue.slots.is_empty() && table.queue.networks.is_empty() && table.queue.waiting.is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn random_sequences_keep_the_limits_and_serve_everyone() {
    for seed in 0..50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut table = Table::new(rng.usize(1..20), rng.usize(1..20));
        let mut all = Vec::new();
        for _ in 0..400 {
            match rng.u8(0..4) {
                0 | 1 => all.push(table.request(&format!("10.{}.0.{}", rng.u8(0..3), rng.u8(0..5)))),
                2 if !all.is_empty() => {
                    let id = all.swap_remove(rng.usize(..all.len()));
                    table.release(id);
                }
                _ => table.sleep(Duration::from_millis(rng.u64(0..300))),
            }
        }
        for id in all {
            table.release(id);
        }
        assert_eq!((table.queue.taken, table.queue.queued, table.queue.due()), (0, 0, None), "seed {seed}");
    }
}
