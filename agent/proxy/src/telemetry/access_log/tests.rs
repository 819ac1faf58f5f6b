//! Keys, order and quoting of events compared with ztunnel's.

use isthmus_kit::logs::LogCapture;
use tracing::Level;

use super::*;
use crate::telemetry::line_limits::FailureKey;

fn capture_one(log: impl FnOnce()) -> (Level, Vec<String>) {
    let capture = LogCapture::start(|metadata| metadata.target() == "access");
    log();
    let mut events = capture.take();
    assert_eq!(events.len(), 1);
    let event = events.remove(0);
    (event.level, event.fields)
}

fn line(authority: Option<&Authority>) -> Line<'_> {
    Line {
        src: "10.11.0.5:41000".parse().unwrap(),
        src_workload: Some("sleep-1"),
        src_namespace: Some("sample"),
        src_identity: Some("spiffe://td/ns/sample/sa/sleep".into()),
        src_cluster: Some("east"),
        dst: "10.21.0.7:15008".parse().unwrap(),
        dst_hbone: authority,
        dst_service: Some("helloworld.sample.svc.cluster.local"),
        dst_workload: Some("helloworld-v2"),
        dst_namespace: Some("sample"),
        dst_identity: Some("spiffe://td/ns/sample/sa/helloworld".into()),
        dst_cluster: Some("west"),
        direction: Direction::Outbound,
    }
}

#[test]
fn a_closed_connection_has_all_keys_in_order() {
    let authority: Authority = "10.21.0.7:5000".parse().unwrap();
    let ending = Ending {
        bytes_sent: 1,
        bytes_recv: 2,
        duration: Duration::from_millis(13),
        error: Some("no".into()),
        closed_by: Some("peer"),
        policy: Some("sample/only".into()),
        tries: Some(2),
        tried: Some("10.0.0.1:15008 refused"),
        gave_up: Some("no other endpoint"),
        handovers: Some(3),
    };
    let (level, fields) = capture_one(|| closed(&line(Some(&authority)), &ending));
    assert_eq!(level, Level::ERROR);
    assert_eq!(
        fields,
        [
            "message=connection complete",
            "src.addr=10.11.0.5:41000",
            "src.workload=\"sleep-1\"",
            "src.namespace=\"sample\"",
            "src.identity=\"spiffe://td/ns/sample/sa/sleep\"",
            "src.cluster=\"east\"",
            "dst.addr=10.21.0.7:15008",
            "dst.hbone_addr=10.21.0.7:5000",
            "dst.service=\"helloworld.sample.svc.cluster.local\"",
            "dst.workload=\"helloworld-v2\"",
            "dst.namespace=\"sample\"",
            "dst.identity=\"spiffe://td/ns/sample/sa/helloworld\"",
            "dst.cluster=\"west\"",
            "direction=\"outbound\"",
            "bytes_sent=1",
            "bytes_recv=2",
            "duration=\"13ms\"",
            "error=\"no\"",
            "closed_by=\"peer\"",
            "policy=\"sample/only\"",
            "tries=2",
            "tried=\"10.0.0.1:15008 refused\"",
            "gave_up=\"no other endpoint\"",
            "handovers=3",
        ]
    );
}

#[test]
fn keys_without_a_value_are_left_out() {
    let unknown = Line {
        src_workload: None,
        src_namespace: None,
        src_identity: None,
        src_cluster: None,
        dst_service: None,
        dst_workload: None,
        dst_namespace: None,
        dst_identity: None,
        dst_cluster: None,
        ..line(None)
    };
    let ending = Ending {
        bytes_sent: 0,
        bytes_recv: 0,
        duration: Duration::ZERO,
        error: None,
        closed_by: None,
        policy: None,
        tries: None,
        tried: None,
        gave_up: None,
        handovers: None,
    };
    let (level, fields) = capture_one(|| closed(&unknown, &ending));
    assert_eq!(level, Level::INFO);
    let keys: Vec<&str> = fields.iter().map(|field| field.split('=').next().unwrap()).collect();
    assert_eq!(
        keys,
        ["message", "src.addr", "dst.addr", "direction", "bytes_sent", "bytes_recv", "duration"]
    );
    assert_eq!(capture_one(|| opened(&unknown)).0, Level::DEBUG);
}

#[test]
fn a_connection_without_a_record_is_a_warning_with_four_keys() {
    let (level, fields) = capture_one(|| {
        let ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        failed(&Metrics::default(), ends, Direction::Inbound, &"too late");
    });
    assert_eq!(level, Level::WARN);
    assert_eq!(
        fields,
        [
            "message=connection failed",
            "src.addr=10.0.0.1:1",
            "dst.addr=10.0.0.2:2",
            "direction=\"inbound\"",
            "error=\"too late\"",
        ]
    );
}

#[test]
fn a_source_that_fails_too_often_is_reported_by_its_number() {
    let left = LeftOut {
        key: FailureKey {
            direction: Direction::Inbound,
            local: [10, 0, 0, 2].into(),
            source: [10, 0, 0, 1].into(),
            flag: "TLS_FAILURE",
        },
        count: 27_000,
        last: "garbage".to_owned(),
    };
    let (level, fields) = capture_one(|| left_out(&left));
    assert_eq!(level, Level::WARN);
    assert_eq!(
        fields,
        [
            "message=connections failed too often to be logged one by one",
            "src.ip=10.0.0.1",
            "pod.ip=10.0.0.2",
            "direction=\"inbound\"",
            "response_flags=\"TLS_FAILURE\"",
            "count=27000",
            "last_error=\"garbage\"",
        ]
    );
}
