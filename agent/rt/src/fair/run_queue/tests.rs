//! The properties of deficit round robin, in a model of a runtime: one worker with a queue of woken tasks, first in first
//! out, and a keeper behind it whenever it is empty or has served an event interval.

use std::collections::HashMap;

use super::*;

const EVENT_INTERVAL: usize = 61;
const MICRO: Duration = Duration::from_micros(1);

/// A task of the model: its tenant, and what one poll of it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    id: usize,
    tenant: usize,
    cost: Duration,
}

/// One worker. Saturating tasks wake themselves at the end of each poll.
struct Worker {
    queue: RunQueue<Task>,
    credits: Vec<Arc<CpuCredit>>,
    woken: VecDeque<Task>,
    tickets: HashMap<usize, Ticket>,
    now: Duration,
    used: Vec<Duration>,
    /// When a task of each tenant was polled last.
    polled_at: Vec<Duration>,
    /// Polls that were put off.
    put_off: usize,
    saturating: bool,
}

impl Worker {
    fn new(tenants: usize) -> Self {
        let mut queue = RunQueue::new();
        let credits: Vec<_> = (0..tenants).map(|_| queue.add_tenant()).collect();
        Self {
            queue,
            credits,
            woken: VecDeque::new(),
            tickets: HashMap::new(),
            now: Duration::ZERO,
            used: vec![Duration::ZERO; tenants],
            polled_at: vec![Duration::ZERO; tenants],
            put_off: 0,
            saturating: true,
        }
    }

    fn spawn(&mut self, tenant: usize, count: usize, cost: Duration) {
        for _ in 0..count {
            let id = self.woken.len() + self.tickets.len() + tenant * 10_000;
            self.wake(Task { id, tenant, cost });
        }
    }

    fn wake(&mut self, task: Task) {
        let credit = Arc::clone(&self.credits[task.tenant]);
        credit.mark_runnable();
        self.queue.activate(&credit);
        self.woken.push_back(task);
    }

    fn poll(&mut self, task: Task) {
        let credit = Arc::clone(&self.credits[task.tenant]);
        let ticket = self.tickets.get(&task.id).copied();
        let may_run = match ticket {
            Some(ticket) => !self.queue.is_queued(&credit, ticket, &task),
            None if credit.try_acquire() => true,
            None => match self.queue.acquire(&credit, &task) {
                Ok(()) => true,
                Err(wait) => {
                    self.tickets.insert(task.id, wait.ticket);
                    self.put_off += 1;
                    false
                }
            },
        };
        if !may_run {
            return;
        }
        self.now += task.cost;
        self.used[task.tenant] += task.cost;
        self.polled_at[task.tenant] = self.now;
        credit.charge(task.cost);
        if ticket.is_some() {
            self.tickets.remove(&task.id);
            let next = self.queue.finish(&credit);
            self.woken.extend(next.released);
        }
        if self.saturating {
            self.wake(task);
        }
    }

    fn end_round(&mut self) {
        let round = self.queue.end_round();
        self.woken.extend(round.released);
    }

    /// What the worker does between two polls of the I/O driver.
    fn run_interval(&mut self) {
        for _ in 0..EVENT_INTERVAL {
            match self.woken.pop_front() {
                Some(task) => self.poll(task),
                None => break,
            }
        }
        self.end_round();
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.run_interval();
        }
    }
}

#[test]
fn a_tenant_that_is_active_alone_never_waits() {
    let mut worker = Worker::new(2);
    worker.spawn(0, 1_000, 20 * MICRO);
    worker.run_for(QUANTUM * 1_000);
    assert_eq!(worker.put_off, 0);
}

#[test]
fn a_tenant_that_becomes_the_only_active_one_is_served_without_a_pause() {
    let mut worker = Worker::new(2);
    worker.spawn(0, 100, 20 * MICRO);
    worker.spawn(1, 1, 20 * MICRO);
    worker.run_for(QUANTUM * 10);
    worker.woken.retain(|task| task.tenant == 0);
    let mut rounds_without_progress = 0;
    for _ in 0..1_000 {
        let before = worker.now;
        worker.run_interval();
        rounds_without_progress += usize::from(worker.now == before);
    }
    // Only until what was left of the other tenant's round is forgotten.
    assert!(rounds_without_progress <= usize::from(WAKE_LASTS) + 2, "{rounds_without_progress}");
}

#[test]
fn two_saturating_tenants_get_equal_time_whatever_their_tasks() {
    for (tasks, cost) in [(1, 20), (1, 150), (10, 5), (1_000, 400)] {
        let mut worker = Worker::new(2);
        worker.spawn(0, 1_000, 30 * MICRO);
        worker.spawn(1, tasks, cost * MICRO);
        worker.run_for(QUANTUM * 2_000);
        let ratio = worker.used[0].as_secs_f64() / worker.used[1].as_secs_f64();
        assert!((0.9..1.1).contains(&ratio), "{tasks} tasks of {cost} µs: {ratio}");
    }
}

/// `ISTHMUS_SEQUENCES` is another number of sequences, for long runs; a failure names its seed.
#[test]
fn random_tasks_all_run_whatever_their_tenants_owe() {
    let count = std::env::var("ISTHMUS_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    for _ in 0..count {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let tenants = random.usize(1..6);
        let mut worker = Worker::new(tenants);
        // Each task is woken once, runs once, and sleeps.
        worker.saturating = false;
        let mut expected = vec![Duration::ZERO; tenants];
        let mut id = 0;
        for _ in 0..random.usize(1..60) {
            for _ in 0..random.usize(..40) {
                let (tenant, cost) = (random.usize(..tenants), random.u32(1..3_000) * MICRO);
                id += 1;
                expected[tenant] += cost;
                worker.wake(Task { id, tenant, cost });
            }
            (0..random.usize(..4)).for_each(|_| worker.run_interval());
        }
        // A debt of four quanta is paid in as many rounds, and each look keeps a round open for a while.
        let mut rounds = 0;
        while worker.used != expected {
            worker.run_interval();
            rounds += 1;
            assert!(rounds < 100 + 20 * id, "seed {seed}: held back: {:?} of {expected:?}", worker.used);
        }
        assert!(worker.tickets.is_empty() && worker.woken.is_empty(), "seed {seed}: a task is kept");
    }
}

#[test]
fn a_woken_tenant_waits_for_one_quantum_of_each_other_active_tenant() {
    let cost = 30 * MICRO;
    let mut worker = Worker::new(4);
    for tenant in 1..4 {
        worker.spawn(tenant, 300, cost);
    }
    worker.run_for(QUANTUM * 30);
    for _ in 0..200 {
        let woken_at = worker.now;
        worker.saturating = true;
        worker.wake(Task { id: 0, tenant: 0, cost: MICRO });
        while worker.polled_at[0] <= woken_at {
            worker.run_interval();
        }
        // Interval by interval, so up to one poll beyond the quantum for each.
        let waited = worker.polled_at[0] - woken_at;
        assert!(waited <= (QUANTUM + cost) * 3 + MICRO, "{waited:?}");
        worker.woken.retain(|task| task.tenant != 0);
        worker.run_for(QUANTUM * 7);
    }
}

#[test]
fn a_tenant_woken_while_another_is_alone_waits_for_one_quantum_at_most() {
    let cost = 30 * MICRO;
    let mut worker = Worker::new(2);
    worker.spawn(1, 1_000, cost);
    worker.run_for(QUANTUM * 10);
    let woken_at = worker.now;
    worker.wake(Task { id: 0, tenant: 0, cost: MICRO });
    while worker.polled_at[0] <= woken_at {
        worker.run_interval();
    }
    let waited = worker.polled_at[0] - woken_at;
    assert!(waited <= QUANTUM + cost + MICRO, "{waited:?}");
}

/// Two active tenants, the first of which has spent its quantum.
fn spent() -> (RunQueue<u8>, Arc<CpuCredit>, Arc<CpuCredit>) {
    let mut queue = RunQueue::new();
    let (one, other) = (queue.add_tenant(), queue.add_tenant());
    for credit in [&one, &other] {
        assert_eq!(queue.acquire(credit, &0), Ok(()));
    }
    one.charge(QUANTUM);
    other.charge(MICRO);
    (queue, one, other)
}

fn end_round(queue: &mut RunQueue<u8>) -> Vec<u8> {
    for _ in 0..=WAKE_LASTS {
        let round = queue.end_round();
        if !round.released.is_empty() || !round.is_awaited {
            return round.released;
        }
    }
    Vec::new()
}

#[test]
fn waiters_are_released_in_order_while_there_is_credit() {
    let (mut queue, one, other) = spent();
    let waits: Vec<Wait> = (1..=3).map(|waiter| queue.acquire(&one, &waiter).unwrap_err()).collect();
    assert!(waits[0].is_stalled && !waits[1].is_stalled, "the end of the round is asked for once");
    assert_eq!(end_round(&mut queue), [1]);
    assert!(!queue.is_queued(&one, waits[0].ticket, &1) && queue.is_queued(&one, waits[1].ticket, &2));
    one.charge(QUANTUM / 2);
    assert_eq!(queue.finish(&one), Next { released: Some(2), is_stalled: false });
    assert!(!queue.is_queued(&one, waits[1].ticket, &2));
    one.charge(QUANTUM);
    assert_eq!(queue.acquire(&other, &4), Ok(()), "while another tenant is active");
    assert_eq!(queue.finish(&one), Next { released: None, is_stalled: true });
    other.charge(MICRO);
    assert_eq!(end_round(&mut queue), [3]);
}

#[test]
fn a_cancelled_waiter_blocks_no_other() {
    let (mut queue, one, _other) = spent();
    let tickets: Vec<Ticket> =
        (1..=3).map(|waiter| queue.acquire(&one, &waiter).unwrap_err().ticket).collect();
    assert_eq!(queue.cancel(&one, tickets[0]), Some(1));
    assert_eq!(end_round(&mut queue), [2]);
    // Released, and gone before it ran: the next one is.
    assert_eq!(queue.cancel(&one, tickets[1]), None);
    assert_eq!(queue.finish(&one).released, Some(3));
    assert_eq!(queue.cancel(&one, tickets[2]), None);
    assert_eq!(queue.finish(&one), Next { released: None, is_stalled: false });
    assert!(one.try_acquire(), "the queue is empty");
}

#[test]
fn debt_is_bounded_and_paid_back_round_by_round() {
    let (mut queue, one, other) = spent();
    one.charge(Duration::from_secs(60));
    assert_eq!(one.balance(), -MAX_CHARGE * QUANTUM_NANOS);
    queue.acquire(&one, &1).unwrap_err();
    let mut rounds = 0;
    while one.balance() <= 0 {
        other.charge(MICRO);
        rounds += usize::from(
            one.balance() < {
                queue.end_round();
                one.balance()
            },
        );
    }
    assert_eq!(rounds, 5);
}

#[test]
fn credit_is_not_saved_for_later_rounds() {
    let (mut queue, one, other) = spent();
    for _ in 0..10 {
        assert_eq!(queue.acquire(&other, &2), Ok(()));
        other.charge(MICRO);
        queue.acquire(&one, &1).unwrap_err();
        assert_eq!(end_round(&mut queue), [1]);
        one.charge(QUANTUM);
        assert_eq!(queue.acquire(&other, &2), Ok(()));
        queue.finish(&one);
        assert!(other.balance() <= QUANTUM_NANOS);
    }
}

#[test]
fn a_wake_up_whose_task_is_gone_does_not_keep_the_round_open_for_ever() {
    let (mut queue, one, other) = spent();
    other.mark_runnable();
    queue.acquire(&one, &1).unwrap_err();
    for _ in 0..WAKE_LASTS {
        assert_eq!(queue.end_round(), Round { released: vec![], is_awaited: true });
    }
    assert_eq!(queue.end_round().released, [1]);
}

#[test]
fn a_tenant_that_runs_on_another_thread_does_not_keep_the_round_open() {
    let (mut queue, one, other) = spent();
    queue.acquire(&one, &1).unwrap_err();
    assert!(other.try_acquire());
    assert_eq!(queue.end_round().released, [1]);
}

#[test]
fn the_waiters_of_a_removed_tenant_are_let_go() {
    let (mut queue, one, _other) = spent();
    let wait = queue.acquire(&one, &1).unwrap_err();
    assert_eq!(queue.remove_tenant(&one), [1]);
    assert!(!queue.is_queued(&one, wait.ticket, &1));
}

#[test]
fn what_was_charged_is_known_whatever_was_forgiven() {
    let mut queue = RunQueue::new();
    let one = queue.add_tenant();
    for _ in 0..10 {
        assert_eq!(queue.acquire(&one, &0), Ok(()));
        one.charge(QUANTUM);
    }
    let charged = queue.charged(&one);
    assert_eq!((charged.own, charged.others), (QUANTUM * 10, Duration::ZERO));
}
