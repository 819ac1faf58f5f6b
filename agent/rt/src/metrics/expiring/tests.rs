use super::*;
use crate::metrics::Registry;
use std::sync::mpsc;

type Text = Vec<(&'static str, String)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(String);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>) -> fmt::Result {
        vec![("workload", self.0.clone())].encode(encoder)
    }
}

impl Coarse for Labels {
    type Kept = Text;

    fn coarse(&self) -> Text {
        vec![("reporter", "source".to_owned())]
    }

    /// `peer#7` is a series of `peer`.
    fn source(&self) -> Option<u64> {
        let (peer, _) = self.0.split_once('#')?;
        Some(peer.bytes().fold(0, |hash, byte| hash * 256 + u64::from(byte)))
    }
}

fn of(name: &str) -> Labels {
    Labels(name.to_owned())
}

fn family(limit: usize) -> (Expiring<Labels, Count>, Registry) {
    let (family, registry) = (Expiring::with_limit(limit), Registry::default());
    registry.register_expiring("istio_seen", "Seen", &family);
    (family, registry)
}

/// What is shown under a name and labels.
fn shown(registry: &Registry, series: &str) -> Option<u64> {
    let text = registry.encode().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.map(|value| value.parse().unwrap())
}

const LIVE: &str = "istio_seen_total{workload=\"a\"}";
const KEPT: &str = "isthmus_expired_seen_total{reporter=\"source\"}";

async fn pass(time: Duration) -> Instant {
    tokio::time::advance(time).await;
    Instant::now()
}

#[tokio::test(start_paused = true)]
async fn an_idle_series_expires_and_restarts_at_zero() {
    let (family, registry) = family(LIMIT);
    family.get_or_create(&of("a")).inc_by(5);
    assert_eq!(family.sweep(Instant::now(), |_| true), 0);
    let now = pass(IDLE - Duration::from_secs(1)).await;
    assert_eq!(family.sweep(now, |_| true), 0, "not yet");
    assert_eq!((shown(&registry, LIVE), shown(&registry, KEPT)), (Some(5), None));
    assert_eq!(family.sweep(pass(Duration::from_secs(1)).await, |_| true), 1);
    assert_eq!((shown(&registry, LIVE), shown(&registry, KEPT)), (None, Some(5)));
    assert_eq!(shown(&registry, "isthmus_metric_series{family=\"istio_seen\"}"), Some(0));
    assert_eq!(shown(&registry, "isthmus_metric_series_expired_total{family=\"istio_seen\"}"), Some(1));
    family.get_or_create(&of("a")).inc();
    assert_eq!((shown(&registry, LIVE), shown(&registry, KEPT)), (Some(1), Some(5)));
    assert_eq!(shown(&registry, "isthmus_metric_series{family=\"istio_seen\"}"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_series_that_changes_or_is_held_or_exists_never_expires() {
    let (family, _) = family(LIMIT);
    let held = family.get_or_create(&of("held"));
    family.get_or_create(&of("here")).inc();
    for _ in 0..100 {
        family.get_or_create(&of("busy")).inc();
        let now = pass(IDLE).await;
        family.sweep(now, |labels| *labels != of("here"));
        assert_eq!(family.series(), 3);
    }
    drop(held);
    assert_eq!(family.sweep(pass(INTERVAL).await, |labels| *labels != of("here")), 1);
    assert_eq!(family.sweep(pass(IDLE).await, |_| true), 2, "now that it is gone too");
}

#[tokio::test(start_paused = true)]
async fn a_change_during_the_sweep_keeps_the_series() {
    let (family, registry) = family(LIMIT);
    family.get_or_create(&of("a")).inc();
    family.sweep(Instant::now(), |_| true);
    let now = pass(IDLE).await;
    let changed = |labels: &Labels| {
        family.get_or_create(labels).inc();
        true
    };
    assert_eq!(family.sweep(now, changed), 0);
    assert_eq!((shown(&registry, LIVE), shown(&registry, KEPT)), (Some(2), None));
}

#[tokio::test(start_paused = true)]
async fn above_the_limit_series_are_counted_under_coarse_labels() {
    let (family, registry) = family(10);
    (0..100).for_each(|n| family.get_or_create(&of(&format!("invented {n}"))).inc());
    assert_eq!(family.series(), 10);
    assert_eq!(shown(&registry, "isthmus_metric_series{family=\"istio_seen\"}"), Some(10));
    assert_eq!(shown(&registry, "isthmus_metric_series_limit{family=\"istio_seen\"}"), Some(10));
    assert_eq!(shown(&registry, KEPT), Some(90));
    family.get_or_create(&of("invented 3")).inc();
    assert_eq!(
        shown(&registry, "istio_seen_total{workload=\"invented 3\"}"),
        Some(2),
        "those there are go on"
    );
    family.sweep(Instant::now(), |_| true);
    family.sweep(pass(IDLE).await, |_| true);
    assert_eq!((family.series(), shown(&registry, KEPT)), (0, Some(101)));
    family.get_or_create(&of("a")).inc();
    assert_eq!(shown(&registry, LIVE), Some(1), "there is room again");
}

/// Many count, one ends series, one looks: no look may see a smaller sum than the one before.
#[test]
fn the_sum_over_both_families_never_falls() {
    const COUNTED: u64 = 20_000;
    let (family, registry) = family(50);
    let (done, stop) = mpsc::channel::<()>();
    let sum = |text: &str| -> u64 {
        let lines = text.lines().filter(|line| line.contains("_seen_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    std::thread::scope(|scope| {
        let sweeping = &family;
        scope.spawn(move || {
            let mut now = Instant::now();
            while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
                now += IDLE;
                sweeping.sweep(now, |_| true);
            }
        });
        let counting = scope.spawn(|| {
            (0..COUNTED).for_each(|n| family.get_or_create(&of(&format!("w{}", n % 100))).inc());
        });
        let mut last = 0;
        loop {
            let finished = counting.is_finished();
            let seen = sum(&registry.encode().unwrap());
            assert!(seen >= last, "{seen} after {last}");
            last = seen;
            if finished {
                break;
            }
        }
        assert_eq!(last, COUNTED);
        drop(done);
    });
    assert_eq!(sum(&registry.encode().unwrap()), COUNTED);
}

#[tokio::test(start_paused = true)]
async fn a_source_takes_at_most_half_of_what_is_free_and_gets_back_what_expired() {
    let (family, registry) = family(90);
    let count = |peer: &str| (0..200).for_each(|n| family.get_or_create(&of(&format!("{peer}#{n}"))).inc());
    count("evil");
    assert_eq!(family.series(), 30, "as many as half of the rest");
    count("evil");
    assert_eq!(family.series(), 30);
    count("other");
    assert_eq!(family.series(), 50, "another source still has room");
    assert_eq!(shown(&registry, KEPT), Some(170 + 170 + 180));
    family.sweep(Instant::now(), |_| true);
    assert_eq!(family.sweep(pass(IDLE).await, |labels| labels.0.starts_with("evil")), 30);
    count("evil");
    assert_eq!(family.series(), 44, "half of the 70 free, less what it took meanwhile");
}
