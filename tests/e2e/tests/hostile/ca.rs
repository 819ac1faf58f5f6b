//! Attacks by a CA: the answers to a node that renews its certificates, and asks for a new one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use isthmus_kit::istiod::{Answer, Istiod, Signing, response};
use isthmus_kit::lab;
use isthmus_kit::pki::{Ca, Spec};
use isthmus_proto::type_url;

use crate::plane::{Expected, Plane, PlaneLab, named, workload};
use crate::world::Cue;

const MINUTE: Duration = Duration::from_secs(60);

/// Signs as asked, but for what a test changes; what the leaf says is not checked.
fn signed(ca: &Ca, signing: &Signing, change: impl FnOnce(&mut Spec)) -> Answer {
    let identity = signing.impersonated().unwrap_or_default().to_owned();
    let mut spec = Spec { uris: vec![identity], ..Spec::default() };
    change(&mut spec);
    match ca.sign(&signing.request.csr, &spec) {
        Ok(leaf) => Answer::Chain(vec![leaf, ca.root_pem()]),
        Err(error) => Answer::refusal(3, &error.to_string()),
    }
}

/// Signs at half of the lifetime already, so that certificates are renewed at once.
fn due(ca: Arc<Ca>) -> impl Fn(&Signing) -> Answer {
    move |signing| {
        signed(&ca, signing, |spec| {
            spec.not_before = SystemTime::now() - 10 * MINUTE;
            spec.not_after = SystemTime::now() + 10 * MINUTE;
        })
    }
}

type Nonsense = fn(&Ca, &Signing) -> Answer;

/// Lets each answer meet renewals, and the first certificate of a new workload of the node. Bounds the requests.
async fn answers(plane: Plane, cue: Cue, nonsense: &[Nonsense], most_per_answer: usize) -> Result<()> {
    let mut asked = 0;
    for (at, answer) in nonsense.iter().enumerate() {
        let (ca, answer) = (Arc::clone(&plane.ca), *answer);
        let before = plane.istiod.signings().len();
        plane.istiod.on_sign(move |signing| answer(&ca, signing));
        let new = u8::try_from(at)?;
        let new = named(workload(&format!("new-{at}"), &[10, 77, 1, 100 + new], "n0"));
        plane.stream.push(&response(type_url::ADDRESS, "new", vec![new], &[]));
        met(&plane.istiod, before + 3).await?;
        // Time for what a tight loop would do.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        asked = plane.istiod.signings().len() - before;
        eprintln!("answer {at}: {asked} requests");
        ensure!(asked <= most_per_answer, "answer {at}: {asked} requests");
    }
    cue.hold().await;
    ensure!(asked > 0, "nothing was asked");
    Ok(())
}

/// Waits until the CA was asked so often.
async fn met(istiod: &Istiod, count: usize) -> Result<()> {
    isthmus_kit::wait::until("requests", async || istiod.signings().len() >= count).await
}

async fn judge(expected: Expected, nonsense: &'static [Nonsense], most: usize) -> Result<()> {
    let attack = move |plane: Plane, cue: Cue| async move { answers(plane, cue, nonsense, most).await };
    PlaneLab::new()?.due().judge(expected, attack).await
}

/// A CA whose certificates are due for renewal at once.
pub(crate) fn sane(istiod: &Istiod, ca: &Arc<Ca>) {
    istiod.on_sign(due(Arc::clone(ca)));
}

fn pem(der: usize) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", "QUFB".repeat(der))
}

pub(crate) fn an_answer_that_is_no_certificate_is_refused() -> Result<()> {
    const NONSENSE: &[Nonsense] = &[
        |_, _| Answer::Chain(Vec::new()),
        |ca, _| Answer::Chain(vec![ca.root_pem()]),
        |_, _| Answer::Chain(vec![String::new(), String::new()]),
        |_, _| Answer::Chain(vec!["\u{0}\n2026\terror\tforged".to_owned(), "roots".to_owned()]),
        |ca, _| Answer::Chain(vec![pem(200), ca.root_pem()]),
        |ca, signing| match signed(ca, signing, |_| {}) {
            Answer::Chain(chain) => Answer::Chain(vec![chain[0].clone(), pem(200)]),
            other => other,
        },
    ];
    let expected = Expected { complaints: 40, ..Expected::blame(&["unusable answer from the CA"]) };
    lab::block_on(judge(expected, NONSENSE, 14))
}

pub(crate) fn a_certificate_that_no_peer_accepts_is_refused() -> Result<()> {
    const NONSENSE: &[Nonsense] = &[
        // Of another key.
        |ca, signing| {
            let leaf = ca.workload(signing.impersonated().unwrap_or_default());
            leaf.map_or(Answer::Silence, |leaf| Answer::Chain(vec![leaf.cert, ca.root_pem()]))
        },
        |ca, signing| {
            signed(ca, signing, |spec| spec.uris = vec!["spiffe://cluster.local/ns/a/sa/b".to_owned()])
        },
        |ca, signing| {
            let uris = (0..1_000).map(|at| format!("spiffe://cluster.local/ns/a/sa/b{at}"));
            signed(ca, signing, |spec| spec.uris = uris.collect())
        },
        |ca, signing| signed(ca, signing, |spec| spec.not_after = SystemTime::now() - MINUTE / 2),
        |ca, signing| signed(ca, signing, |spec| spec.not_before = SystemTime::now() + 10 * MINUTE),
        |ca, signing| signed(ca, signing, |spec| spec.authority = true),
        |ca, signing| signed(ca, signing, |spec| spec.usages.clear()),
        // Under a root that it does not send.
        |ca, signing| match (Ca::new("other"), signed(ca, signing, |_| {})) {
            (Ok(other), Answer::Chain(chain)) => Answer::Chain(vec![chain[0].clone(), other.root_pem()]),
            (_, other) => other,
        },
    ];
    let expected = Expected { complaints: 50, ..Expected::blame(&["unusable answer from the CA"]) };
    lab::block_on(judge(expected, NONSENSE, 14))
}

pub(crate) fn an_answer_that_is_too_large_is_refused() -> Result<()> {
    const NONSENSE: &[Nonsense] = &[
        |ca, signing| match signed(ca, signing, |_| {}) {
            Answer::Chain(chain) => {
                Answer::Chain(vec![chain[0].clone() + &ca.root_pem().repeat(1_000), ca.root_pem()])
            }
            other => other,
        },
        |ca, signing| match signed(ca, signing, |_| {}) {
            Answer::Chain(chain) => Answer::Chain(vec![chain[0].clone(), ca.root_pem().repeat(3_000)]),
            other => other,
        },
        |ca, _| Answer::Chain(vec![pem(10 << 20 >> 2), ca.root_pem()]),
    ];
    let expected = Expected { complaints: 25, ..Expected::blame(&["CA"]) };
    lab::block_on(judge(expected, NONSENSE, 14))
}

pub(crate) fn certificates_that_live_a_second_are_renewed_once_a_second() -> Result<()> {
    const NONSENSE: &[Nonsense] = &[
        |ca, signing| signed(ca, signing, |spec| spec.not_after = SystemTime::now() + Duration::from_secs(1)),
        |ca, signing| {
            signed(ca, signing, |spec| {
                spec.not_before = SystemTime::now();
                spec.not_after = SystemTime::now();
            })
        },
    ];
    let expected = Expected { blamed: &[], complaints: 25, cpu: 60 };
    lab::block_on(judge(expected, NONSENSE, 30))
}

pub(crate) fn a_ca_that_stalls_or_refuses_is_asked_seldom() -> Result<()> {
    const NONSENSE: &[Nonsense] = &[
        |_, _| Answer::refusal(14, "unavailable\nforged"),
        |_, signing| Answer::refusal(7, &format!("denied {}", signing.request.csr.len())),
        |_, _| Answer::refusal(8, &"exhausted ".repeat(500)),
        |_, _| Answer::Silence,
    ];
    let expected = Expected { complaints: 40, ..Expected::blame(&["certificate", "denied"]) };
    lab::block_on(judge(expected, NONSENSE, 14))
}
