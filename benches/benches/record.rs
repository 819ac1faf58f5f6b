//! The record layer alone: sealing and opening in place, in bytes of payload per second, for each suite. No I/O.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isthmus_record::{
    HEADER_LEN, OVERHEAD, Opened, Opener, OpenerParts, PartialMessage, Result, Role, Sealer, SealerParts,
    Suite, TrafficSecret,
};

/// Payload sizes: a full record, and one of a request.
const SIZES: [usize; 2] = [16_384, 1024];

fn secret(suite: Suite) -> Result<TrafficSecret> {
    TrafficSecret::new(suite, &[7; 48][..suite.secret_len()])
}

fn sealer(suite: Suite) -> Result<Sealer> {
    Sealer::from_parts(SealerParts { secret: secret(suite)?, sequence: 0, closed: false })
}

fn opener(suite: Suite) -> Result<Opener> {
    let (secret, partial) = (secret(suite)?, PartialMessage::default());
    Opener::from_parts(OpenerParts {
        secret,
        sequence: 0,
        role: Role::Server,
        partial,
        idle_records: 0,
        closed: false,
    })
}

/// Seals, or seals and opens, one record; the difference is what opening costs. A fresh key comes before the limit.
fn record(suite: Suite, record: &mut [u8], ends: &mut (Sealer, Opener), open: bool) -> Result<()> {
    if ends.0.needs_key_update() {
        *ends = (sealer(suite)?, opener(suite)?);
    }
    ends.0.seal(record)?;
    if open {
        let opened = ends.1.open(record)?;
        assert_eq!(opened, Opened::Data(HEADER_LEN..record.len() - OVERHEAD + HEADER_LEN));
    }
    Ok(())
}

fn records(criterion: &mut Criterion) {
    for (name, open) in [("seal", false), ("seal_and_open", true)] {
        let mut group = criterion.benchmark_group(name);
        for (suite, size) in Suite::ALL.into_iter().flat_map(|suite| SIZES.map(|size| (suite, size))) {
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new(format!("{suite:?}"), size), |bencher| {
                let mut buffer = vec![0x5a; size + OVERHEAD];
                let ends = sealer(suite).and_then(|sealer| Ok((sealer, opener(suite)?)));
                let mut ends = ends.unwrap_or_else(|error| panic!("{error}"));
                bencher.iter(|| {
                    record(suite, &mut buffer, &mut ends, open).unwrap_or_else(|error| panic!("{error}"));
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, records);
criterion_main!(benches);
