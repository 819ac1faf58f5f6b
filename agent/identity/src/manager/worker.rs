//! The loop around the schedule: it owns every state change, makes the requests, and answers those who wait.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_model::SpiffeId;
use isthmus_rt::task::Tasks;
use tokio::sync::mpsc;

use super::{Command, Config, Published, Reply, State};
use crate::cert::{CertError, Certificate, rfc3339};
use crate::csr;
use crate::schedule::{Job, Priority, Schedule, Validity};
use crate::source::{FetchError, SignError, Signer};
use crate::trust::Trust;

/// The longest sleep, so that a clock that was set forward is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(super) struct Worker {
    signer: Arc<dyn Signer>,
    config: Config,
    schedule: Schedule,
    states: HashMap<SpiffeId, State>,
    waiting: HashMap<SpiffeId, Vec<Reply>>,
    published: Published,
    /// Requests under way; they end with the worker.
    requests: Tasks,
    outage: Outage,
    /// The expiry that was last warned of.
    expired_root: Option<SystemTime>,
}

/// What was said of the failures since the last success. An outage is a line for each of its reasons, not one for each
/// attempt and identity.
#[derive(Default)]
struct Outage {
    failures: u64,
    told: BTreeSet<String>,
}

/// Reasons of one outage that are told; texts that never repeat must not fill the log.
const REASONS: usize = 8;

/// The end of one request.
struct Done {
    job: Job,
    outcome: Result<Certificate, SignError>,
}

/// Reports the end of a request even when it panics, so that its place in the schedule is freed.
struct Report {
    job: Option<Job>,
    to: mpsc::UnboundedSender<Done>,
}

impl Worker {
    pub(super) fn new(signer: Arc<dyn Signer>, config: Config, published: Published) -> Self {
        Self {
            schedule: Schedule::new(config.limits.clone(), fastrand::Rng::new()),
            signer,
            config,
            states: HashMap::new(),
            waiting: HashMap::new(),
            published,
            requests: Tasks::new("certificate requests"),
            outage: Outage::default(),
            expired_root: None,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let (done_tx, mut done) = mpsc::unbounded_channel();
        loop {
            while let Some(job) = self.schedule.next(self.now()) {
                self.request(job, done_tx.clone());
            }
            let sleep = self.schedule.wake_at().map_or(LONGEST_SLEEP, |due| {
                due.duration_since(self.now()).unwrap_or_default().min(LONGEST_SLEEP)
            });
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(end) = done.recv() => self.done(end),
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    fn now(&self) -> SystemTime {
        (self.config.clock)()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Want(id, reply) => self.want(id, reply),
            Command::Prefetch(id) => {
                if !self.states.contains_key(&id) {
                    self.schedule.wanted(&id, Priority::Prefetch, self.now());
                    self.set(id, State::Initializing);
                }
            }
            Command::Forget(id) => {
                self.schedule.forget(&id);
                self.states.remove(&id);
                self.publish();
                self.answer(&id, &Err(FetchError::Forgotten(id.clone())));
            }
        }
    }

    fn want(&mut self, id: SpiffeId, reply: Reply) {
        let now = self.now();
        match self.states.get(&id) {
            // It was signed while the question was on its way.
            Some(State::Available(certificate)) if certificate.is_valid_at(now) => {
                let _ = reply.send(Ok(Arc::clone(certificate)));
                return;
            }
            // Fail fast until a retry succeeds.
            Some(State::Unavailable(reason)) => {
                let _ = reply.send(Err(FetchError::Unavailable { identity: id, reason: reason.clone() }));
                return;
            }
            Some(State::Initializing) => {}
            Some(State::Available(_)) | None => self.set(id.clone(), State::Initializing),
        }
        self.schedule.wanted(&id, Priority::RealTime, now);
        self.waiting.entry(id).or_default().push(reply);
    }

    /// Makes one request in a task of its own.
    fn request(&self, job: Job, to: mpsc::UnboundedSender<Done>) {
        let signer = Arc::clone(&self.signer);
        let (ttl, deadline, check) = (self.config.ttl, self.config.deadline, self.config.check_identity);
        let trust = self.config.trust.clone();
        self.requests.spawn("sign", async move {
            let id = job.identity.clone();
            let report = Report { job: Some(job), to };
            let signed = tokio::time::timeout(deadline, sign(&*signer, id, ttl, check, &trust)).await;
            report.send(signed.unwrap_or(Err(SignError::Deadline(deadline))));
        });
    }

    fn done(&mut self, Done { job, outcome }: Done) {
        let now = self.now();
        let outcome = outcome.and_then(|certificate| match certificate.is_valid_at(now) {
            true => Ok(certificate),
            false => Err(CertError::Expired(rfc3339(certificate.not_after())).into()),
        });
        self.config.metrics.signed(outcome.is_ok());
        self.outage.observe(outcome.as_ref().err());
        let id = job.identity.clone();
        match outcome {
            Ok(certificate) => {
                let validity =
                    Validity { not_before: certificate.not_before(), not_after: certificate.not_after() };
                if self.schedule.signed(&job, validity, now) {
                    self.config.trust.learn(certificate.trusted(), validity.not_after, now);
                    self.look_at_roots(certificate.roots_expire(), now);
                    let certificate = Arc::new(certificate);
                    tracing::debug!(identity = %id, expires = %rfc3339(validity.not_after), "certificate signed");
                    self.set(id.clone(), State::Available(Arc::clone(&certificate)));
                    self.answer(&id, &Ok(certificate));
                }
            }
            Err(error) => {
                if self.schedule.failed(&job, now) {
                    self.failed(id, &error, now);
                }
            }
        }
    }

    fn failed(&mut self, id: SpiffeId, error: &SignError, now: SystemTime) {
        let reason = error.to_string();
        match self.states.get(&id) {
            Some(State::Available(old)) if old.is_valid_at(now) => {
                let expires = rfc3339(old.not_after());
                if self.outage.is_news(&reason) {
                    tracing::warn!(
                        identity = %id, error = %reason, %expires,
                        "certificate was not renewed, the old one is kept; the same of others is not logged"
                    );
                } else {
                    tracing::debug!(identity = %id, error = %reason, %expires, "certificate was not renewed");
                }
            }
            known => {
                // An outage is one line for an identity, not one per attempt.
                if matches!(known, Some(State::Unavailable(told)) if *told == reason) {
                    tracing::debug!(identity = %id, error = %reason, "still no certificate");
                } else {
                    tracing::warn!(identity = %id, error = %reason, "no certificate");
                }
                self.set(id.clone(), State::Unavailable(reason.clone()));
                self.answer(&id, &Err(FetchError::Unavailable { identity: id.clone(), reason }));
            }
        }
    }

    /// Tells of a root that has expired, once: what it signed is still accepted here, but perhaps not elsewhere.
    fn look_at_roots(&mut self, expire: SystemTime, now: SystemTime) {
        self.config.metrics.roots_expire(expire);
        if expire > now {
            self.expired_root = None;
        } else if self.expired_root.replace(expire) != Some(expire) {
            tracing::warn!(expired = %rfc3339(expire), "a root of the mesh has expired: rotate it");
        }
    }

    fn answer(&mut self, id: &SpiffeId, answer: &Result<Arc<Certificate>, FetchError>) {
        for reply in self.waiting.remove(id).unwrap_or_default() {
            // Whoever asked may have given up.
            let _ = reply.send(answer.clone());
        }
    }

    fn set(&mut self, id: SpiffeId, state: State) {
        self.states.insert(id, state);
        self.publish();
    }

    fn publish(&self) {
        let count = |wanted: fn(&State) -> bool| self.states.values().filter(|state| wanted(state)).count();
        self.config.metrics.identities([
            ("initializing", count(|state| matches!(state, State::Initializing))),
            ("available", count(|state| matches!(state, State::Available(_)))),
            ("unavailable", count(|state| matches!(state, State::Unavailable(_)))),
        ]);
        self.published.store(Arc::new(self.states.clone()));
    }
}

// === impl Outage ===

impl Outage {
    /// Counts a failure, or ends the outage.
    fn observe(&mut self, failure: Option<&SignError>) {
        if failure.is_some() {
            self.failures += 1;
            return;
        }
        let Self { failures, told } = std::mem::take(self);
        if !told.is_empty() {
            tracing::info!(failures, "certificates are signed again");
        }
    }

    /// Whether this reason is to be told; it is not the next time.
    fn is_news(&mut self, reason: &str) -> bool {
        self.told.len() < REASONS && self.told.insert(reason.to_owned())
    }
}

async fn sign(
    signer: &dyn Signer,
    id: SpiffeId,
    ttl: Duration,
    check_identity: bool,
    trust: &Trust,
) -> Result<Certificate, SignError> {
    let request = csr::generate(&id).map_err(|error| SignError::Request(error.to_string()))?;
    let chain = signer.sign(&id, request.pem, ttl).await?;
    let certificate = Certificate::with_trust(id, request.key, &chain, trust)?;
    if check_identity {
        certificate.check_identity()?;
    }
    Ok(certificate)
}

// === impl Report ===

impl Report {
    fn send(mut self, outcome: Result<Certificate, SignError>) {
        if let Some(job) = self.job.take() {
            let _ = self.to.send(Done { job, outcome });
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            let outcome = Err(SignError::Request("the request ended without an answer".to_owned()));
            let _ = self.to.send(Done { job, outcome });
        }
    }
}
