//! The measurements that are done in rounds: what each one runs, and the columns of its table.

use std::time::Duration;

use anyhow::Result;
use isthmus_benches::agents::Road;

use crate::bulk;
use crate::meter;
use crate::requests;
use crate::syscalls::Syscalls;
use crate::table::Column;
use crate::tools;
use crate::trips::{self, percentile};
use crate::worlds::World;

/// One table.
pub(crate) struct Measurement {
    /// Its own name.
    pub(crate) name: &'static str,
    /// What `--only` calls it.
    pub(crate) group: &'static str,
    pub(crate) title: &'static str,
    /// How the agents reach each other.
    pub(crate) road: Road,
    pub(crate) columns: &'static [Column],
    work: Work,
}

#[derive(Clone, Copy)]
enum Work {
    /// Streams, and whether the server sends.
    Bulk(usize, bool),
    /// Bytes in each direction.
    Trips(usize),
    /// Connections.
    Requests(usize),
    NewConnections,
    Mixture,
    /// As bulk, by iperf3.
    Iperf3(usize, bool),
    /// Connections of wrk.
    Wrk(usize),
}

const BULK: &[Column] = &[
    Column::new("Gbit/s", 2),
    Column::new("CPU s/GB", 3),
    Column::new("switches/GB", 0),
    Column::new("syscalls", 0),
];
const TRIPS: &[Column] = &[
    Column::new("p50 µs", 1),
    Column::new("p99 µs", 1),
    Column::over_direct("p50 over direct µs", 1, 0),
    Column::new("CPU µs each", 1),
    Column::new("switches each", 2),
    Column::new("syscalls", 2),
];
const REQUESTS: &[Column] = &[
    Column::new("requests/s", 0),
    Column::new("CPU µs each", 1),
    Column::new("switches each", 2),
    Column::new("syscalls", 2),
];
const CONNECTIONS: &[Column] = &[
    Column::new("connections/s", 0),
    Column::new("CPU µs each", 1),
    Column::new("switches each", 2),
    Column::new("syscalls", 2),
];
const MIXTURE: &[Column] = &[
    Column::new("p50 µs", 0),
    Column::new("p99 µs", 0),
    Column::new("bulk Gbit/s", 2),
    Column::new("CPU s/GB", 3),
    Column::new("switches/GB", 0),
    Column::new("syscalls", 0),
];

/// All of them, in the order of the report.
pub(crate) const ALL: [Measurement; 18] = [
    measurement("up", "up", "one stream, the client sends", BULK, Work::Bulk(1, false)),
    measurement("down", "down", "one stream, the server sends", BULK, Work::Bulk(1, true)),
    measurement("streams", "streams", "8 streams, the client sends", BULK, Work::Bulk(8, false)),
    measurement("trips 1", "trips", "round trips of 1 byte", TRIPS, Work::Trips(1)),
    measurement("trips 1K", "trips", "round trips of 1 KiB", TRIPS, Work::Trips(1024)),
    measurement("trips 16K", "trips", "round trips of 16 KiB", TRIPS, Work::Trips(16 * 1024)),
    measurement("trips 64K", "trips", "round trips of 64 KiB", TRIPS, Work::Trips(64 * 1024)),
    measurement("requests 64", "requests", "100 B to 1 KiB on 64 connections", REQUESTS, Work::Requests(64)),
    measurement(
        "requests 1000",
        "requests",
        "100 B to 1 KiB on 1,000 connections",
        REQUESTS,
        Work::Requests(1000),
    ),
    measurement(
        "connections",
        "connections",
        "new connections by 4 clients, one byte there and back",
        CONNECTIONS,
        Work::NewConnections,
    ),
    measurement("mixture", "mixture", "100 requests per second beside a bulk sender", MIXTURE, Work::Mixture),
    measurement("iperf3 up", "tools", "iperf3, one stream up", BULK, Work::Iperf3(1, false)),
    measurement("iperf3 down", "tools", "iperf3, one stream down", BULK, Work::Iperf3(1, true)),
    measurement("iperf3 streams", "tools", "iperf3, 8 streams up", BULK, Work::Iperf3(8, false)),
    measurement("wrk", "tools", "wrk, 64 connections", REQUESTS, Work::Wrk(64)),
    measurement(
        "double up",
        "double",
        "double HBONE: one stream, the client sends",
        BULK,
        Work::Bulk(1, false),
    )
    .double(),
    measurement("double trips", "double", "double HBONE: round trips of 1 KiB", TRIPS, Work::Trips(1024))
        .double(),
    measurement(
        "double connections",
        "double",
        "double HBONE: new connections by 4 clients",
        CONNECTIONS,
        Work::NewConnections,
    )
    .double(),
];

const fn measurement(
    name: &'static str,
    group: &'static str,
    title: &'static str,
    columns: &'static [Column],
    work: Work,
) -> Measurement {
    Measurement { name, group, title, road: Road::Hbone, columns, work }
}

impl Measurement {
    /// The same through a gateway, whose CPU time is counted with the agents'.
    const fn double(self) -> Self {
        Self { road: Road::DoubleHbone, ..self }
    }

    /// One round on one subject: the row of the table. The agents are at rest afterwards.
    pub(crate) fn run(&self, world: &World, time: Duration, syscalls: Option<&Syscalls>) -> Result<Vec<f64>> {
        let row = self.row(world, time, syscalls)?;
        meter::rest(world, self.name)?;
        Ok(row)
    }

    /// The tool that it needs and that is not installed.
    pub(crate) fn missing_tool(&self) -> Option<&'static str> {
        let tool = match self.work {
            Work::Iperf3(..) => "iperf3",
            Work::Wrk(_) => "wrk",
            _ => return None,
        };
        (!tools::is_installed(tool)).then_some(tool)
    }

    fn row(&self, world: &World, time: Duration, syscalls: Option<&Syscalls>) -> Result<Vec<f64>> {
        let mut row = Vec::with_capacity(self.columns.len());
        match self.work {
            Work::Bulk(streams, down) => {
                let spent = bulk::run(world, (streams, down), time, syscalls)?;
                row.push(gigabits(spent.rate()));
                row.extend(spent.each(1e9));
            }
            Work::Trips(size) => {
                let (spent, times) = trips::run(world, size, time, syscalls)?;
                // What is over direct follows from the medians.
                row.extend([percentile(&times, 50), percentile(&times, 99), f64::NAN]);
                row.extend(spent.micros());
            }
            Work::Requests(connections) => {
                let spent = requests::run(world, connections, time, syscalls)?;
                row.push(spent.rate());
                row.extend(spent.micros());
            }
            Work::NewConnections => {
                let spent = requests::new_connections(world, time, syscalls)?;
                row.push(spent.rate());
                row.extend(spent.micros());
            }
            Work::Iperf3(streams, down) => {
                let spent = tools::iperf3(world, (streams, down), time, syscalls)?;
                row.push(gigabits(spent.rate()));
                row.extend(spent.each(1e9));
            }
            Work::Wrk(connections) => {
                let spent = tools::wrk(world, connections, time, syscalls)?;
                row.push(spent.rate());
                row.extend(spent.micros());
            }
            Work::Mixture => {
                let (spent, times) = trips::beside_bulk(world, time, syscalls)?;
                row.extend([percentile(&times, 50), percentile(&times, 99), gigabits(spent.rate())]);
                row.extend(spent.each(1e9));
            }
        }
        Ok(row)
    }
}

fn gigabits(bytes_per_second: f64) -> f64 {
    bytes_per_second * 8.0 / 1e9
}
