//! The worker: drives the [`Schedule`], makes signing requests, owns every state change and replies to waiting readers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_model::SpiffeId;
use isthmus_rt::task::Tasks;
use tokio::sync::{mpsc, oneshot};

use super::config::Config;
use super::outage::Outage;
use super::state::{CertState, PublishedStates};
use crate::cert::{CertError, Certificate, rfc3339};
use crate::csr;
use crate::schedule::{Job, Priority, Schedule, Validity};
use crate::source::{FetchError, SignError, Signer};
use crate::trust::Trust;

/// The longest sleep: a wall clock that is set forward makes a renewal due earlier than the timer knows.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(super) struct Worker {
    signer: Arc<dyn Signer>,
    config: Config,
    schedule: Schedule,
    states: HashMap<SpiffeId, CertState>,
    waiting: HashMap<SpiffeId, Vec<Reply>>,
    published: PublishedStates,
    /// Requests in flight; they are aborted with the worker.
    requests: Tasks,
    outage: Outage,
    /// The root expiry that was last warned of.
    warned_root_expiry: Option<SystemTime>,
}

/// What the manager's handle asks of the worker.
pub(super) enum Command {
    Fetch(SpiffeId, Reply),
    Prefetch(SpiffeId),
    Forget(SpiffeId),
}

/// Where a waiting reader gets its answer.
pub(super) type Reply = oneshot::Sender<Result<Arc<Certificate>, FetchError>>;

/// The result of one signing request.
struct Completion {
    job: Job,
    outcome: Result<Certificate, SignError>,
}

/// Sends the result of a request even when its task panics, so that its slot in the schedule is freed.
struct CompletionGuard {
    job: Option<Job>,
    to: mpsc::UnboundedSender<Completion>,
}

impl Worker {
    pub(super) fn new(signer: Arc<dyn Signer>, config: Config, published: PublishedStates) -> Self {
        Self {
            schedule: Schedule::new(config.limits.clone(), fastrand::Rng::new()),
            signer,
            config,
            states: HashMap::new(),
            waiting: HashMap::new(),
            published,
            requests: Tasks::new("certificate requests"),
            outage: Outage::default(),
            warned_root_expiry: None,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let (completed, mut completions) = mpsc::unbounded_channel();
        loop {
            while let Some(job) = self.schedule.next(self.now()) {
                self.start_request(job, completed.clone());
            }
            let sleep = self.schedule.wake_at().map_or(LONGEST_SLEEP, |due| {
                due.duration_since(self.now()).unwrap_or_default().min(LONGEST_SLEEP)
            });
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                Some(completion) = completions.recv() => self.handle_completion(completion),
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    fn now(&self) -> SystemTime {
        (self.config.clock)()
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Fetch(id, reply) => self.fetch(id, reply),
            Command::Prefetch(id) => {
                if !self.states.contains_key(&id) {
                    self.schedule.request(&id, Priority::Prefetch, self.now());
                    self.set(id, CertState::Initializing);
                }
            }
            Command::Forget(id) => {
                self.schedule.forget(&id);
                self.states.remove(&id);
                self.publish();
                self.reply_all(&id, &Err(FetchError::Forgotten(id.clone())));
            }
        }
    }

    fn fetch(&mut self, id: SpiffeId, reply: Reply) {
        let now = self.now();
        match self.states.get(&id) {
            // It was signed while the command was in the channel.
            Some(CertState::Available(certificate)) if certificate.is_valid_at(now) => {
                let _ = reply.send(Ok(Arc::clone(certificate)));
                return;
            }
            // Fails fast until a retry succeeds.
            Some(CertState::Unavailable(reason)) => {
                let _ = reply.send(Err(FetchError::Unavailable { identity: id, reason: reason.clone() }));
                return;
            }
            Some(CertState::Initializing) => {}
            Some(CertState::Available(_)) | None => self.set(id.clone(), CertState::Initializing),
        }
        self.schedule.request(&id, Priority::RealTime, now);
        self.waiting.entry(id).or_default().push(reply);
    }

    /// Makes one signing request in a task of its own.
    fn start_request(&self, job: Job, to: mpsc::UnboundedSender<Completion>) {
        let signer = Arc::clone(&self.signer);
        let (ttl, deadline, check) = (self.config.ttl, self.config.deadline, self.config.check_identity);
        let trust = self.config.trust.clone();
        self.requests.spawn("sign", async move {
            let id = job.identity.clone();
            let completion = CompletionGuard { job: Some(job), to };
            let signed = tokio::time::timeout(deadline, sign(&*signer, id, ttl, check, &trust)).await;
            completion.send(signed.unwrap_or(Err(SignError::Deadline(deadline))));
        });
    }

    fn handle_completion(&mut self, Completion { job, outcome }: Completion) {
        let now = self.now();
        let outcome = outcome.and_then(|certificate| match certificate.is_valid_at(now) {
            true => Ok(certificate),
            false => Err(CertError::Expired(rfc3339(certificate.not_after())).into()),
        });
        let outcome = outcome.and_then(|certificate| {
            certificate.check_acceptable(now)?;
            Ok(certificate)
        });
        self.config.metrics.signed(outcome.is_ok());
        self.outage.observe(outcome.as_ref().err());
        let id = job.identity.clone();
        match outcome {
            Ok(certificate) => {
                let validity =
                    Validity { not_before: certificate.not_before(), not_after: certificate.not_after() };
                if self.schedule.signed(&job, validity, now) {
                    self.config.trust.learn_roots(certificate.trusted(), validity.not_after, now);
                    self.check_root_expiry(certificate.roots_expire(), now);
                    let certificate = Arc::new(certificate);
                    tracing::debug!(identity = %id, expires = %rfc3339(validity.not_after), "certificate signed");
                    self.set(id.clone(), CertState::Available(Arc::clone(&certificate)));
                    self.reply_all(&id, &Ok(certificate));
                }
            }
            Err(error) => {
                if self.schedule.failed(&job, now) {
                    self.handle_failure(id, &error, now);
                }
            }
        }
    }

    fn handle_failure(&mut self, id: SpiffeId, error: &SignError, now: SystemTime) {
        let reason = error.to_string();
        match self.states.get(&id) {
            Some(CertState::Available(old)) if old.is_valid_at(now) => {
                let expires = rfc3339(old.not_after());
                if self.outage.should_report(&reason) {
                    tracing::warn!(
                        identity = %id, error = %reason, %expires,
                        "certificate renewal failed, the current certificate stays in use until it expires; the same \
                         error of other identities is logged at debug level"
                    );
                } else {
                    tracing::debug!(identity = %id, error = %reason, %expires, "certificate renewal failed");
                }
            }
            known => {
                // One warning per identity and reason, not one per attempt.
                if matches!(known, Some(CertState::Unavailable(reported)) if *reported == reason) {
                    tracing::debug!(identity = %id, error = %reason, "certificate signing failed again");
                } else {
                    tracing::warn!(
                        identity = %id, error = %reason,
                        "no certificate: signing failed, connections of this identity fail until a retry succeeds"
                    );
                }
                self.set(id.clone(), CertState::Unavailable(reason.clone()));
                self.reply_all(&id, &Err(FetchError::Unavailable { identity: id.clone(), reason }));
            }
        }
    }

    /// Warns once of an expired root: certificates that it signed are still accepted here, but other implementations may
    /// refuse them.
    fn check_root_expiry(&mut self, expire: SystemTime, now: SystemTime) {
        self.config.metrics.roots_expire(expire);
        if expire > now {
            self.warned_root_expiry = None;
        } else if self.warned_root_expiry.replace(expire) != Some(expire) {
            tracing::warn!(expired = %rfc3339(expire), "a root certificate of the mesh has expired: rotate it");
        }
    }

    fn reply_all(&mut self, id: &SpiffeId, answer: &Result<Arc<Certificate>, FetchError>) {
        for reply in self.waiting.remove(id).unwrap_or_default() {
            // Fails only when the reader gave up.
            let _ = reply.send(answer.clone());
        }
    }

    fn set(&mut self, id: SpiffeId, state: CertState) {
        self.states.insert(id, state);
        self.publish();
    }

    fn publish(&self) {
        let count =
            |wanted: fn(&CertState) -> bool| self.states.values().filter(|state| wanted(state)).count();
        self.config.metrics.identities([
            ("initializing", count(|state| matches!(state, CertState::Initializing))),
            ("available", count(|state| matches!(state, CertState::Available(_)))),
            ("unavailable", count(|state| matches!(state, CertState::Unavailable(_)))),
        ]);
        self.published.store(Arc::new(self.states.clone()));
    }
}

async fn sign(
    signer: &dyn Signer,
    id: SpiffeId,
    ttl: Duration,
    check_identity: bool,
    trust: &Trust,
) -> Result<Certificate, SignError> {
    let request = csr::generate(&id)?;
    let chain = signer.sign(&id, request.pem, ttl).await?;
    let certificate = Certificate::with_trust(id, request.key, &chain, trust)?;
    if check_identity {
        certificate.check_identity()?;
    }
    Ok(certificate)
}

// === impl CompletionGuard ===

impl CompletionGuard {
    fn send(mut self, outcome: Result<Certificate, SignError>) {
        if let Some(job) = self.job.take() {
            let _ = self.to.send(Completion { job, outcome });
        }
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            let _ = self.to.send(Completion { job, outcome: Err(SignError::Aborted) });
        }
    }
}
