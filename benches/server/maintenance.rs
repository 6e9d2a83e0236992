//! What keeps a store of a million keys in order, and what others wait for meanwhile.
//!
//! ```text
//! fill ─► snapshot ─► snapshot, puts meanwhile ─► { overwrite ─► compact, puts meanwhile ─► defragment, puts meanwhile }
//! fill ─► overwrite ─► compact ─► overwrite ─► compact ─► defragment: the file after each
//! ```
//! Each work with puts meanwhile is preceded by the same puts alone, which are its measure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::load::{Ask, VALUE_BYTES, micros, shuffled};
use crate::meanwhile::{Puts, put_meanwhile};
use crate::process::{Server, Span};
use crate::report::{Report, mib};
use crate::requests::puts;
use crate::{Failure, Plan};

/// Clients that fill and overwrite.
const CLIENTS: usize = 1000;

/// How often memory is looked at while a snapshot streams.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let wanted = ["snapshot", "snapshot-put", "compact-put", "defrag-put"];
    if wanted.iter().any(|name| plan.has(name))
        && let Err(error) = in_order(plan, report)
    {
        report.failed(error);
    }
    if plan.has("reuse")
        && let Err(error) = reuse(plan, report)
    {
        report.failed(format!("reuse: {error}").into());
    }
    Ok(())
}

/// All that shares one filled store.
fn in_order(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let mut servers = plan.start()?;
    for server in &servers {
        fill(plan, server)?;
    }
    if plan.has("snapshot")
        && let Err(error) = snapshot(plan, &mut servers, report)
    {
        report.failed(format!("snapshot: {error}").into());
    }
    if plan.has("snapshot-put")
        && let Err(error) = snapshot_put(plan, &servers, report)
    {
        report.failed(format!("snapshot-put: {error}").into());
    }
    if plan.has("compact-put") || plan.has("defrag-put") {
        compact_and_defragment(plan, &servers, report)?;
    }
    Ok(())
}

/// Puts every key once, and has all of it settled.
fn fill(plan: &Plan, server: &Server) -> Result<(), Failure> {
    let keys = plan.scale.million;
    eprintln!("{}: filling with {keys} keys", server.name);
    let ask = Ask::PutEach(shuffled(keys, plan.seed));
    puts(plan, ask, CLIENTS, keys).run_out(server)?;
    compact(server)?;
    rest(server)
}

/// As many puts again as there are keys.
fn overwrite(plan: &Plan, server: &Server) -> Result<(), Failure> {
    let keys = plan.scale.million;
    eprintln!("{}: putting {keys} times", server.name);
    puts(plan, Ask::Put { keys }, CLIENTS, keys).run_out(server)?;
    rest(server)
}

/// Lets server and disk come to rest, so that what follows does not pay for what was before.
fn rest(server: &Server) -> Result<(), Failure> {
    server.wait_quiet()?;
    rustix::fs::sync();
    server.wait_quiet()
}

/// Compacts all there is, until it has left the disk; in milliseconds.
fn compact(server: &Server) -> Result<f64, Failure> {
    let begin = Instant::now();
    server.client(async |mut client| {
        let newest = client.revision().await?;
        client.compact(newest).await
    })?;
    Ok(millis(begin))
}

fn defragment(server: &Server) -> Result<f64, Failure> {
    let begin = Instant::now();
    server.client(async |mut client| client.defragment().await)?;
    Ok(millis(begin))
}

/// Reads a snapshot as fast as it comes; answers its size.
fn read_snapshot(plan: &Plan, server: &Server) -> Result<u64, Failure> {
    let bytes = server.client(async |mut client| client.snapshot().await)?;
    // Every key is in it, with a value of noise.
    if bytes < plan.scale.million * VALUE_BYTES as u64 {
        return Err(format!("{}: a snapshot of {bytes} bytes", server.name).into());
    }
    Ok(bytes)
}

fn millis(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

fn snapshot(plan: &Plan, servers: &mut [Server; 2], report: &mut Report) -> Result<(), Failure> {
    // What a server that has just been filled holds free would hide what a snapshot takes.
    let mut restarted = [0.0; 2];
    for (server, restarted) in servers.iter_mut().zip(&mut restarted) {
        server.kill_and_restart()?;
        *restarted = snapshot_once(plan, server)?[ABOVE_IDLE];
    }
    report.measure(
        "snapshot",
        "resident MiB above idle, just restarted",
        restarted,
    );
    let measures = [
        "ms",
        "MiB/s",
        "MiB of the file",
        "resident MiB above idle",
        "of it anonymous (not a mapped file)",
        "server CPU ms",
        "client cores",
    ];
    report.in_turn(plan, "snapshot", measures, |index| {
        snapshot_once(plan, &servers[index])
    })
}

/// Its place among the measures.
const ABOVE_IDLE: usize = 3;

fn snapshot_once(plan: &Plan, server: &Server) -> Result<[f64; 7], Failure> {
    rest(server)?;
    let idle = server.usage()?;
    let span = Span::begin(server)?;
    let (read, peak) = watch_memory(server, || read_snapshot(plan, server))?;
    let span = span.end(server)?;
    let above = |peak: u64, idle: u64| mib(peak.saturating_sub(idle));
    Ok([
        span.secs * 1000.0,
        mib(read) / span.secs,
        mib(read),
        above(peak.resident_bytes, idle.resident_bytes),
        above(peak.anonymous_bytes, idle.anonymous_bytes),
        span.server_cpu.as_secs_f64() * 1000.0,
        span.client_cores,
    ])
}

/// The most memory that was seen during some work.
#[derive(Default)]
struct Peak {
    resident_bytes: u64,
    anonymous_bytes: u64,
}

fn watch_memory<T>(
    server: &Server,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, Peak), Failure> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut peak = Peak::default();
            while !over.load(Ordering::Relaxed) {
                let now = server.usage()?;
                peak.resident_bytes = peak.resident_bytes.max(now.resident_bytes);
                peak.anonymous_bytes = peak.anonymous_bytes.max(now.anonymous_bytes);
                std::thread::sleep(LOOK_EVERY);
            }
            Ok::<_, Failure>(peak)
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let peak = watching
            .join()
            .map_err(|_| "the watching thread panicked")?;
        Ok((done?, peak?))
    })
}

const PUT_MEASURES: [&str; 9] = [
    "put p99 µs quiet",
    "put p99 µs meanwhile",
    "put p99 meanwhile : quiet",
    "put p50 µs quiet",
    "put p50 µs meanwhile",
    "put max µs quiet",
    "put max µs meanwhile",
    "puts refused meanwhile",
    "ms that it took",
];

/// The same puts without the work, and with it; the work answers how long it took.
fn beside(
    plan: &Plan,
    server: &Server,
    work: impl FnOnce() -> Result<f64, Failure>,
) -> Result<[f64; PUT_MEASURES.len()], Failure> {
    let (quiet, ()) = put_meanwhile(plan, server, || {
        std::thread::sleep(plan.scale.measured);
        Ok(())
    })?;
    if quiet.refused > 0 {
        return Err(format!("{}: puts were refused by an idle server", server.name).into());
    }
    rest(server)?;
    let (meanwhile, took) = put_meanwhile(plan, server, work)?;
    rest(server)?;
    let at = |puts: &Puts, quantile| micros(&puts.latencies, quantile);
    Ok([
        at(&quiet, 0.99),
        at(&meanwhile, 0.99),
        at(&meanwhile, 0.99) / at(&quiet, 0.99),
        at(&quiet, 0.5),
        at(&meanwhile, 0.5),
        at(&quiet, 1.0),
        at(&meanwhile, 1.0),
        meanwhile.refused as f64,
        took,
    ])
}

/// Snapshots one after another, for as long as puts are measured otherwise.
fn snapshot_put(plan: &Plan, servers: &[Server; 2], report: &mut Report) -> Result<(), Failure> {
    report.in_turn(plan, "snapshot-put", PUT_MEASURES, |index| {
        let server = &servers[index];
        beside(plan, server, || {
            let begin = Instant::now();
            let mut taken = 0;
            while begin.elapsed() < plan.scale.measured {
                read_snapshot(plan, server)?;
                taken += 1;
            }
            Ok(millis(begin) / f64::from(taken))
        })
    })
}

/// In rounds, since each needs as many new revisions; what is defragmented is what compaction left.
fn compact_and_defragment(
    plan: &Plan,
    servers: &[Server; 2],
    report: &mut Report,
) -> Result<(), Failure> {
    let mut compacted = [Vec::new(), Vec::new()];
    let mut defragmented = [Vec::new(), Vec::new()];
    let mut failure = None;
    for round in 1..=plan.runs {
        for (index, server) in servers.iter().enumerate() {
            eprintln!(
                "compact-put, defrag-put: round {round} of {}, {}",
                plan.runs, server.name
            );
            overwrite(plan, server)?;
            if plan.has("compact-put") {
                compacted[index].push(beside(plan, server, || compact(server))?);
            } else {
                compact(server)?;
            }
            if plan.has("defrag-put") && failure.is_none() {
                match beside(plan, server, || defragment(server)) {
                    Ok(figures) => defragmented[index].push(figures),
                    Err(error) => failure = Some(format!("defrag-put: {error}")),
                }
            }
        }
    }
    if plan.has("compact-put") {
        report.medians("compact-put", PUT_MEASURES, compacted);
    }
    match failure {
        Some(failure) => report.failed(failure.into()),
        None if plan.has("defrag-put") => {
            report.medians("defrag-put", PUT_MEASURES, defragmented);
        }
        None => {}
    }
    Ok(())
}

/// The database's file while the same amount is written again and again.
fn reuse(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "file MiB, filled",
        "file MiB, all overwritten",
        "file MiB, compacted",
        "file MiB, all overwritten again",
        "file MiB, compacted again",
        "second time : first, overwritten",
        "MiB of the data folder, compacted again",
    ];
    // Once: sizes hardly vary.
    let servers = plan.start()?;
    let [etcd, ours] = [0, 1].map(|index| write_again(plan, &servers[index]));
    for (measure, pair) in measures.into_iter().zip(etcd?.into_iter().zip(ours?)) {
        report.measure("reuse", measure, pair.into());
    }
    let [etcd, ours] = [0, 1].map(|index| {
        let server = &servers[index];
        let took = defragment(server)?;
        server.wait_quiet()?;
        Ok::<_, Failure>([mib(server.database_bytes()?), took])
    });
    for (measure, pair) in ["file MiB, defragmented", "ms that it took"]
        .into_iter()
        .zip(etcd?.into_iter().zip(ours?))
    {
        report.measure("reuse", measure, pair.into());
    }
    Ok(())
}

fn write_again(plan: &Plan, server: &Server) -> Result<[f64; 7], Failure> {
    let file = || Ok::<_, Failure>(mib(server.database_bytes()?));
    fill(plan, server)?;
    let filled = file()?;
    let mut after = Vec::new();
    for _time in 0..2 {
        overwrite(plan, server)?;
        let overwritten = file()?;
        compact(server)?;
        server.wait_quiet()?;
        after.push((overwritten, file()?));
    }
    let [(first, compacted), (second, again)] = after[..] else {
        unreachable!("it is done twice");
    };
    Ok([
        filled,
        first,
        compacted,
        second,
        again,
        second / first,
        mib(server.disk_bytes()?),
    ])
}
