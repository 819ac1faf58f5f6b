//! Who may run, and who waits: credit, debt and queues. No clock, task or waker of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// What a pod that waits may spend in a round, in nanoseconds.
const SHARE: i64 = 200_000;
/// What every pod but the greediest may spend in a millisecond, in nanoseconds: half a core. One that uses less never
/// waits.
const GAIN: u64 = 500_000;
/// The time over which the greediest is found, in milliseconds, and what it must have spent in it, in nanoseconds.
const WINDOW: u64 = 20;
const GREEDY: i64 = 2_000_000;
/// What can be saved of it, in nanoseconds.
const SAVED: i64 = 5_000_000;
/// What a turn costs at most, in nanoseconds. One that took longer was not running all the time: the machine has other
/// things to do.
const DEAREST: i64 = 5 * SHARE;
/// A pod with no more connections than this never waits: nobody waits long for so few turns.
const FEW: u64 = 12;
/// How long after its last turn a pod counts as active, in milliseconds.
const ACTIVE: u64 = 1_000;
/// How long after one of its turns had to wait a pod counts as busy, in milliseconds.
const BUSY: u64 = 200;
/// Those that wait and are let go in one round, at most.
const AT_ONCE: i64 = 32;

/// A pod's credit. Read and spent without a lock.
#[derive(Debug, Default)]
pub(super) struct Account {
    id: u64,
    /// When this window ends, in milliseconds.
    window: Arc<AtomicU64>,
    /// In nanoseconds; below zero it is a debt.
    credit: AtomicI64,
    /// What a turn costs, in nanoseconds: a moving average.
    cost: AtomicI64,
    /// When its last turn began, in milliseconds.
    seen: AtomicU64,
    /// What was spent in this window, in nanoseconds.
    spent: AtomicI64,
    /// Those that take turns.
    members: AtomicU64,
    /// Whether nobody spent more in the last one, or it was so before and spends half as much at least.
    greedy: AtomicBool,
    /// When one of its turns had to wait last, in milliseconds.
    waited: AtomicU64,
}

/// The accounts, and who waits. `W` wakes one that waits.
#[derive(Debug)]
pub(super) struct Rounds<W> {
    next: u64,
    queues: BTreeMap<u64, Queue<W>>,
    /// When this window ends, in milliseconds.
    window: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Queue<W> {
    account: Arc<Account>,
    /// By number, the longest waiting first.
    waiting: VecDeque<(u64, W)>,
}

impl<W> Default for Rounds<W> {
    fn default() -> Self {
        Self { next: 0, queues: BTreeMap::new(), window: Arc::default() }
    }
}

// === impl Account ===

impl Account {
    /// Whether there is something left to spend, and nothing to be done first; notes that it is wanted.
    pub(super) fn may_run(&self, now: u64) -> bool {
        if self.seen.load(Ordering::Relaxed) < now {
            let since = now - self.seen.swap(now, Ordering::Relaxed).min(now);
            let since = if self.greedy.load(Ordering::Relaxed) { 0 } else { since };
            self.add(i64::try_from(since.saturating_mul(GAIN)).unwrap_or(SAVED), SAVED);
        }
        self.credit.load(Ordering::Relaxed) > 0 && now < self.window.load(Ordering::Relaxed)
    }

    /// More credit, up to a limit; what there is.
    fn add(&self, gain: i64, limit: i64) -> i64 {
        let more = |credit: i64| (credit < limit).then(|| credit.saturating_add(gain).min(limit));
        match self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(before) => before.saturating_add(gain).min(limit),
            Err(credit) => credit,
        }
    }

    /// A turn took so long.
    pub(super) fn spend(&self, time: Duration) {
        let time = i64::try_from(time.as_nanos()).unwrap_or(DEAREST).min(DEAREST);
        self.credit.fetch_sub(time, Ordering::Relaxed);
        self.spent.fetch_add(time, Ordering::Relaxed);
        // Two threads may do this at once, and one is lost: it is an average.
        let cost = self.cost.load(Ordering::Relaxed);
        self.cost.store(cost + (time - cost) / 8, Ordering::Relaxed);
    }

    /// One more takes turns.
    pub(super) fn join(&self) {
        self.members.fetch_add(1, Ordering::Relaxed);
    }

    /// One takes turns no more.
    pub(super) fn part(&self) {
        self.members.fetch_sub(1, Ordering::Relaxed);
    }

    /// Nothing is owed any more.
    pub(super) fn forgive(&self) {
        self.credit.store(SAVED, Ordering::Relaxed);
    }

    /// A round's share. How many turns the credit is worth then.
    fn replenish(&self) -> usize {
        let credit = self.add(SHARE, SHARE);
        if credit <= 0 {
            return 0;
        }
        let turns = (credit / self.cost.load(Ordering::Relaxed).max(1)).clamp(1, AT_ONCE);
        usize::try_from(turns).unwrap_or_default()
    }

    /// Whether it is the greediest and could have used more.
    pub(super) fn is_flooding(&self, now: u64) -> bool {
        self.greedy.load(Ordering::Relaxed) && self.waited.load(Ordering::Relaxed) + BUSY > now
    }

    fn is_active(&self, now: u64) -> bool {
        self.seen.load(Ordering::Relaxed) + ACTIVE > now
    }
}

// === impl Rounds ===

impl<W: Clone> Rounds<W> {
    /// One more pod.
    pub(super) fn open(&mut self) -> Arc<Account> {
        self.next += 1;
        let (id, window) = (self.next, Arc::clone(&self.window));
        let account = Account { id, window, credit: SAVED.into(), ..Account::default() };
        let account = Arc::new(account);
        let queue = Queue { account: Arc::clone(&account), waiting: VecDeque::new() };
        self.queues.insert(account.id, queue);
        account
    }

    /// A pod is gone: those that still wait for its turns.
    pub(super) fn close(&mut self, account: &Account) -> Vec<W> {
        let queue = self.queues.remove(&account.id);
        queue.into_iter().flat_map(|queue| queue.waiting).map(|(_, waker)| waker).collect()
    }

    /// Takes a turn of a pod that has spent its share. While it has few connections, or no other pod is active, it need
    /// not wait.
    ///
    /// # Errors
    /// With the number under which it waits for its turn.
    pub(super) fn enter(&mut self, account: &Account, now: u64, waker: &W) -> Result<(), u64> {
        self.roll(now);
        if account.may_run(now) {
            return Ok(());
        }
        let mut others = self.queues.values().map(|queue| &queue.account).filter(|one| one.id != account.id);
        let has_few = account.members.load(Ordering::Relaxed) <= FEW;
        if has_few || !others.any(|other| other.is_active(now)) {
            account.forgive();
            return Ok(());
        }
        self.next += 1;
        let Some(queue) = self.queues.get_mut(&account.id) else { return Ok(()) };
        account.waited.store(now.max(1), Ordering::Relaxed);
        queue.waiting.push_back((self.next, waker.clone()));
        Err(self.next)
    }

    /// Whether the turn of one that waits has come. If not, `waker` is for when it does.
    pub(super) fn has_turn(&mut self, account: &Account, number: u64, waker: &W) -> bool {
        let Some(queue) = self.queues.get_mut(&account.id) else { return true };
        match queue.waiting.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => {
                queue.waiting[at].1.clone_from(waker);
                false
            }
            Err(_) => true,
        }
    }

    /// One that waited is gone.
    pub(super) fn leave(&mut self, account: &Account, number: u64) {
        let Some(queue) = self.queues.get_mut(&account.id) else { return };
        if let Ok(at) = queue.waiting.binary_search_by_key(&number, |(number, _)| *number) {
            queue.waiting.remove(at);
        }
    }

    /// Finds the greediest of the last window, when that is over. What it has saved is lost: from now on it waits.
    fn roll(&mut self, now: u64) {
        if now < self.window.load(Ordering::Relaxed) {
            return;
        }
        self.window.store(now + WINDOW, Ordering::Relaxed);
        let spent = |queue: &Queue<W>| (queue.account.spent.swap(0, Ordering::Relaxed), queue.account.id);
        let spent: Vec<(i64, u64)> = self.queues.values().map(spent).collect();
        let most = spent.iter().max().copied().filter(|(spent, _)| *spent >= GREEDY);
        for (Queue { account, .. }, (spent, id)) in self.queues.values().zip(spent) {
            let was = account.greedy.load(Ordering::Relaxed);
            // One that was is held back, and would otherwise seem not to be any more.
            let is = most.is_some_and(|(most, greediest)| id == greediest || (was && spent >= most / 2));
            account.greedy.store(is, Ordering::Relaxed);
            if is {
                account.credit.fetch_min(0, Ordering::Relaxed);
            }
        }
    }

    /// The next round: who has a turn now, and whether nobody is left who waits.
    pub(super) fn next(&mut self, now: u64) -> (Vec<W>, bool) {
        self.roll(now);
        let (mut woken, mut is_over) = (Vec::new(), true);
        for queue in self.queues.values_mut().filter(|queue| !queue.waiting.is_empty()) {
            let turns = queue.account.replenish().min(queue.waiting.len());
            woken.extend(queue.waiting.drain(..turns).map(|(_, waker)| waker));
            is_over &= queue.waiting.is_empty();
        }
        (woken, is_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Duration = Duration::from_nanos(SHARE.unsigned_abs());

    fn rounds() -> (Rounds<u8>, Arc<Account>, Arc<Account>) {
        let mut rounds = Rounds::default();
        let (busy, other) = (rounds.open(), rounds.open());
        for account in [&busy, &other] {
            (0..=FEW).for_each(|_| account.join());
        }
        // A while later.
        assert_eq!((rounds.enter(&busy, 5_000, &0), rounds.enter(&other, 5_000, &0)), (Ok(()), Ok(())));
        (rounds, busy, other)
    }

    /// Spends all there is, by so many turns of one share each.
    fn exhaust(account: &Account) {
        while account.credit.load(Ordering::Relaxed) > 0 {
            account.spend(ONE);
        }
    }

    #[test]
    fn who_has_spent_everything_waits_for_the_next_round() {
        let (mut rounds, busy, other) = rounds();
        exhaust(&busy);
        assert!(!busy.may_run(5_000) && other.may_run(5_000));
        let first = rounds.enter(&busy, 5_000, &1).unwrap_err();
        assert!(!rounds.has_turn(&busy, first, &1));
        assert_eq!(rounds.next(5_000), (vec![1], true));
        assert!(rounds.has_turn(&busy, first, &1));
    }

    #[test]
    fn no_more_are_let_go_than_the_share_is_worth_and_in_their_order() {
        let (mut rounds, busy, _other) = rounds();
        exhaust(&busy);
        for waker in 0..3 {
            rounds.enter(&busy, 5_000, &waker).unwrap_err();
        }
        assert_eq!(rounds.next(5_000), (vec![0], false));
        busy.spend(ONE);
        assert_eq!(rounds.next(5_000), (vec![1], false));
        // Twice its share: the round after the next.
        busy.spend(ONE * 2);
        assert_eq!(rounds.next(5_000), (vec![], false));
        assert_eq!(rounds.next(5_000), (vec![2], true));
        // What costs a quarter of it or a little more, several at a time.
        (0..200).for_each(|_| busy.spend(ONE / 4));
        for waker in 0..9 {
            rounds.enter(&busy, 5_000, &waker).unwrap_err();
        }
        let more = std::iter::repeat_with(|| rounds.next(5_000).0.len()).find(|let_go| *let_go > 0);
        assert!(more.is_some_and(|more| (2..=4).contains(&more)), "{more:?}");
    }

    #[test]
    fn who_uses_less_than_half_a_core_never_waits() {
        let (mut rounds, calm, busy) = rounds();
        for now in 5_000..10_000 {
            assert_eq!(rounds.enter(&calm, now, &1), Ok(()));
            calm.spend(Duration::from_micros(499));
            busy.spend(Duration::from_micros(501));
        }
        // But no more is saved than a burst of this length.
        assert_eq!(rounds.enter(&calm, 100_000, &1), Ok(()));
        assert_eq!(calm.credit.load(Ordering::Relaxed), SAVED);
    }

    #[test]
    fn nobody_who_is_alone_waits() {
        let (mut rounds, busy, other) = rounds();
        (0..1000).for_each(|_| busy.spend(ONE * 9));
        assert_eq!(rounds.enter(&other, 5_500, &2), Ok(()));
        assert!(rounds.enter(&busy, 5_500, &1).is_err());
        assert_eq!(rounds.enter(&busy, 5_500 + ACTIVE, &1), Ok(()));
        assert!(busy.may_run(5_500 + ACTIVE), "what was owed is forgotten");
    }

    #[test]
    fn the_greediest_has_nothing_saved_and_saves_nothing() {
        let (mut rounds, busy, other) = rounds();
        for now in 5_000..5_000 + WINDOW {
            assert_eq!((rounds.enter(&busy, now, &1), rounds.enter(&other, now, &2)), (Ok(()), Ok(())));
            busy.spend(Duration::from_micros(100));
            other.spend(Duration::from_micros(99));
        }
        let now = 5_000 + WINDOW;
        assert!(!busy.may_run(now) && !other.may_run(now), "the window is over: somebody has to look");
        assert_eq!(rounds.enter(&other, now, &2), Ok(()));
        assert!(rounds.enter(&busy, now + 10, &1).is_err() && busy.is_flooding(now + 10));
        assert_eq!((rounds.enter(&other, now + 10, &2), other.is_flooding(now + 10)), (Ok(()), false));
        assert_eq!(rounds.next(now + 10), (vec![1], true));
        // Somebody else is.
        (0..10).for_each(|_| other.spend(Duration::from_millis(1)));
        (0..5).for_each(|_| busy.spend(Duration::from_millis(1)));
        assert!(rounds.enter(&other, now + WINDOW, &2).is_err());
        assert!(rounds.enter(&busy, now + WINDOW, &1).is_err(), "and the first one still is");
        (0..10).for_each(|_| other.spend(Duration::from_millis(1)));
        assert!(rounds.enter(&other, now + 2 * WINDOW, &2).is_err());
        assert_eq!(rounds.enter(&busy, now + 3 * WINDOW, &1), Ok(()), "it has calmed down");
    }

    #[test]
    fn who_has_few_connections_does_not_wait() {
        let (mut rounds, busy, _other) = rounds();
        exhaust(&busy);
        assert!(rounds.enter(&busy, 5_000, &1).is_err());
        busy.part();
        assert_eq!(rounds.enter(&busy, 5_000, &1), Ok(()));
    }

    #[test]
    fn who_leaves_is_not_woken_and_who_stays_can_change_its_waker() {
        let (mut rounds, busy, _other) = rounds();
        exhaust(&busy);
        let gone = rounds.enter(&busy, 5_000, &1).unwrap_err();
        let stays = rounds.enter(&busy, 5_000, &2).unwrap_err();
        rounds.leave(&busy, gone);
        assert!(!rounds.has_turn(&busy, stays, &3));
        assert_eq!(rounds.next(5_000), (vec![3], true));
        exhaust(&busy);
        rounds.enter(&busy, 5_000, &4).unwrap_err();
        assert_eq!(rounds.close(&busy), [4]);
        assert!(rounds.has_turn(&busy, stays + 1, &4), "without the pod nobody waits");
    }
}
