//! The tables: printed as the figures come, and compared with the targets at the end.

use crate::load::Outcome;
use crate::{Failure, NAMES, Plan};

const MIB: f64 = (1 << 20) as f64;

/// What a target may ask for.
enum Bound {
    /// Ours is at most so many times etcd's.
    RatioMax(f64),
    /// Ours is at least so many times etcd's.
    RatioMin(f64),
    /// Ours is at most this, whatever etcd's is.
    OursMax(f64),
}

use Bound::{OursMax, RatioMax, RatioMin};

/// (work, measure, bound), as the project set them.
const TARGETS: [(&str, &str, Bound); 45] = [
    ("put-1", P50, RatioMax(0.65)),
    ("put-1000", PER_SEC, RatioMin(1.4)),
    ("put-1000", CPU, RatioMax(0.6)),
    ("load-1m", "puts/s", RatioMin(1.4)),
    (
        "load-1m",
        "server CPU µs/put, flush and sweep included",
        RatioMax(0.6),
    ),
    ("get-500", PER_SEC, RatioMin(1.4)),
    ("get-500", CPU, RatioMax(0.5)),
    ("list-100", CPU, RatioMax(0.5)),
    ("put-during-flush", MAX, OursMax(100_000.0)),
    ("put-during-sweep", MAX, OursMax(100_000.0)),
    (
        "load-1m",
        "written B/put, flush and sweep included",
        OursMax(4096.0),
    ),
    (
        "load-1m",
        "written B/put, flush and sweep included",
        RatioMax(1.0),
    ),
    ("load-1m", "resident MiB after the load", RatioMax(0.4)),
    (
        "load-1m",
        "resident MiB after flush and sweep",
        RatioMax(0.4),
    ),
    (
        "load-1m",
        "restart ms after sync and kill -9",
        RatioMax(0.2),
    ),
    ("pages", "pages : one list", OursMax(1.5)),
    ("pages", "all pages, ms", RatioMax(1.0)),
    ("watch-fanout", "events/s", RatioMin(2.0)),
    ("watch-fanout", "server CPU µs/event", RatioMax(0.5)),
    ("watch-latency", "put to event p50 µs", RatioMax(0.7)),
    ("watch-latency", "put to event p99 µs", RatioMax(0.7)),
    ("watch-catchup", "ms until all have all", RatioMax(0.5)),
    ("watch-idle", "resident MiB with them", RatioMax(0.5)),
    ("watch-idle", "resident MiB due to them", RatioMax(0.5)),
    ("watch-idle", "put p50 with : without", OursMax(1.1)),
    ("watch-stuck", "put p99 with : without", OursMax(1.2)),
    (
        "watch-stuck",
        "put to event p99 with : without",
        OursMax(1.2),
    ),
    (
        "watch-stuck",
        "anonymous MiB due to the stuck one",
        OursMax(STUCK_MIB_MAX),
    ),
    ("lease-grant", PER_SEC, RatioMin(1.0)),
    ("lease-grant", CPU, RatioMax(1.0)),
    ("lease-put", PER_SEC, RatioMin(1.0)),
    ("lease-put", CPU, RatioMax(1.0)),
    ("lease-keepalive", "keep-alives/s", RatioMin(1.0)),
    ("lease-keepalive", "server CPU µs/keep-alive", RatioMax(1.0)),
    (
        "lease-keepalive",
        "server cores, by the clock",
        RatioMax(1.0),
    ),
    ("lease-expiry", "late p99 ms", RatioMax(1.0)),
    ("lease-expiry", "ended early", OursMax(0.0)),
    (
        "lease-memory",
        "resident MiB due to them",
        OursMax(LEASES_MIB_MAX),
    ),
    (
        "snapshot",
        "resident MiB above idle",
        OursMax(SNAPSHOT_MIB_MAX),
    ),
    ("snapshot-put", "put p99 meanwhile : quiet", OursMax(2.0)),
    ("snapshot-put", "put p99 µs meanwhile", RatioMax(1.0)),
    ("compact-put", "put p99 meanwhile : quiet", OursMax(2.0)),
    ("compact-put", "put p99 µs meanwhile", RatioMax(1.0)),
    ("defrag-put", "put p99 meanwhile : quiet", OursMax(2.0)),
    ("defrag-put", "put p99 µs meanwhile", RatioMax(1.0)),
];

/// 64 MB.
const SNAPSHOT_MIB_MAX: f64 = 64e6 / MIB;

/// 200 MB, for a million leases.
const LEASES_MIB_MAX: f64 = 200e6 / MIB;

/// A quarter of what it is kept from hearing: more would be a backlog.
const STUCK_MIB_MAX: f64 = 16.0;

const PER_SEC: &str = "requests/s";
const P50: &str = "p50 µs";
const P99: &str = "p99 µs";
const MAX: &str = "max µs";
const CPU: &str = "server CPU µs/req";
const WRITTEN: &str = "written B/req";
const RESIDENT: &str = "resident MiB";
const PEAK: &str = "peak MiB";
const CLIENT: &str = "client cores";

const MEASURES: [&str; 9] = [PER_SEC, P50, P99, MAX, CPU, WRITTEN, RESIDENT, PEAK, CLIENT];

/// One measure of one work item, for both servers.
struct Fact {
    work: &'static str,
    measure: &'static str,
    /// etcd's and ours.
    pair: [f64; 2],
}

#[derive(Clone, Copy, PartialEq)]
enum Table {
    Requests,
    Measures,
}

/// All figures of a run, and the table that was printed last.
#[derive(Default)]
pub(crate) struct Report {
    facts: Vec<Fact>,
    open: Option<Table>,
    failures: usize,
}

impl Report {
    /// Three rows: etcd, ours, and the ratios. `rounds` holds each server's.
    pub(crate) fn requests(&mut self, work: &'static str, rounds: [Vec<Outcome>; 2]) {
        let rounds = rounds.map(|rounds| rounds.iter().map(figures).collect::<Vec<_>>());
        self.open(Table::Requests);
        let pairs: Vec<[f64; 2]> = (0..MEASURES.len())
            .map(|column| {
                [0, 1].map(|server| over_rounds(MEASURES[column], &rounds[server], column))
            })
            .collect();
        for (server, name) in NAMES.iter().enumerate() {
            let cells = pairs.iter().map(|pair| number(pair[server])).collect();
            row(if server == 0 { work } else { "" }, name, cells);
        }
        row("", "ratio", pairs.iter().map(|pair| ratio(*pair)).collect());
        for (measure, pair) in MEASURES.into_iter().zip(pairs) {
            self.facts.push(Fact {
                work,
                measure,
                pair,
            });
        }
    }

    /// Rounds in turn; each measure of `turn` becomes a row, with the median of its rounds.
    pub(crate) fn in_turn<const N: usize>(
        &mut self,
        plan: &Plan,
        work: &'static str,
        measures: [&'static str; N],
        turn: impl Fn(usize) -> Result<[f64; N], Failure>,
    ) -> Result<(), Failure> {
        let mut rounds = [Vec::new(), Vec::new()];
        for round in 1..=plan.runs {
            for (index, rounds) in rounds.iter_mut().enumerate() {
                let name = NAMES[index];
                eprintln!("{work}: round {round} of {}, {name}", plan.runs);
                rounds.push(turn(index)?);
            }
        }
        self.medians(work, measures, rounds);
        Ok(())
    }

    /// Each measure becomes a row, with the median of each server's rounds.
    pub(crate) fn medians<const N: usize>(
        &mut self,
        work: &'static str,
        measures: [&'static str; N],
        rounds: [Vec<[f64; N]>; 2],
    ) {
        for (column, measure) in measures.into_iter().enumerate() {
            let over_rounds =
                |rounds: &Vec<[f64; N]>| median(rounds.iter().map(|round| round[column]).collect());
            self.measure(
                work,
                measure,
                [over_rounds(&rounds[0]), over_rounds(&rounds[1])],
            );
        }
    }

    /// One row: a single measure.
    pub(crate) fn measure(&mut self, work: &'static str, measure: &'static str, pair: [f64; 2]) {
        self.open(Table::Measures);
        let [etcd, ours] = pair.map(number);
        println!(
            "| {work:13} | {measure:44} | {etcd:>9} | {ours:>9} | {:>6} |",
            ratio(pair)
        );
        self.facts.push(Fact {
            work,
            measure,
            pair,
        });
    }

    /// What could not be measured, told where its figures would stand.
    pub(crate) fn failed(&mut self, error: Failure) {
        println!("\n**failed**: {error}");
        self.open = None;
        self.failures += 1;
    }

    pub(crate) fn failures(&self) -> usize {
        self.failures
    }

    /// Which targets this run reached.
    pub(crate) fn targets(&self) {
        println!("\n| target | measure | asked | etcd | metastore | ratio | |");
        println!("|---|---|--:|--:|--:|--:|---|");
        for (work, measure, bound) in &TARGETS {
            let asked = match bound {
                RatioMax(most) => format!("≤ {most}×"),
                RatioMin(least) => format!("≥ {least}×"),
                OursMax(most) => format!("≤ {}", number(*most)),
            };
            let fact = self
                .facts
                .iter()
                .find(|fact| (fact.work, fact.measure) == (work, measure));
            let Some(Fact { pair, .. }) = fact else {
                println!("| {work} | {measure} | {asked} | | | | not run |");
                continue;
            };
            let reached = match bound {
                RatioMax(most) => pair[1] <= most * pair[0],
                RatioMin(least) => pair[1] >= least * pair[0],
                OursMax(most) => pair[1] <= *most,
            };
            let [etcd, ours] = pair.map(number);
            let verdict = if reached { "ok" } else { "**missed**" };
            println!(
                "| {work} | {measure} | {asked} | {etcd} | {ours} | {} | {verdict} |",
                ratio(*pair)
            );
        }
    }

    fn open(&mut self, table: Table) {
        if self.open == Some(table) {
            return;
        }
        self.open = Some(table);
        println!();
        match table {
            Table::Requests => {
                row("work", "server", MEASURES.map(String::from).to_vec());
                println!("|---|---{}|", "|--:".repeat(MEASURES.len()));
            }
            Table::Measures => {
                println!(
                    "| work          | {:44} | etcd      | metastore | ratio  |",
                    "measure"
                );
                println!("|---|---|--:|--:|--:|");
            }
        }
    }
}

fn figures(outcome: &Outcome) -> [f64; MEASURES.len()] {
    let requests = outcome.latencies.len() as f64;
    let secs = outcome.elapsed.as_secs_f64();
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    let server = &outcome.server;
    [
        requests / secs,
        micros(outcome.latencies.value_at_quantile(0.5)),
        micros(outcome.latencies.value_at_quantile(0.99)),
        micros(outcome.latencies.max()),
        server.cpu.as_secs_f64() * 1e6 / requests,
        server.written_bytes as f64 / requests,
        server.resident_bytes as f64 / MIB,
        server.peak_bytes as f64 / MIB,
        outcome.client.cpu.as_secs_f64() / secs,
    ]
}

fn over_rounds(measure: &str, rounds: &[[f64; MEASURES.len()]], column: usize) -> f64 {
    let values = rounds.iter().map(|round| round[column]);
    if [MAX, PEAK].contains(&measure) {
        values.fold(0.0, f64::max)
    } else {
        median(values.collect())
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

fn row(work: &str, server: &str, cells: Vec<String>) {
    let cells: Vec<String> = cells.iter().map(|cell| format!(" {cell:>10} |")).collect();
    println!("| {work:16} | {server:9} |{}", cells.concat());
}

fn number(value: f64) -> String {
    if value >= 100.0 || value == value.trunc() {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn ratio([etcd, ours]: [f64; 2]) -> String {
    if etcd == 0.0 {
        "–".into()
    } else {
        format!("{:.2}", ours / etcd)
    }
}
