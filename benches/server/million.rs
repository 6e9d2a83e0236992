//! A store of a million keys: what it costs to fill, to keep, to start again and to page through.
//!
//! ```text
//! load ─► memory, disk ─► compact (flush and sweep) ─► bytes written ─► pages ─► more puts ─► sync ─► kill -9 ─► restart
//! ```

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use metastore::proto::etcdserverpb::RangeRequest;

use crate::client::Client;
use crate::load::{Ask, key, shuffled};
use crate::process::Server;
use crate::report::{Report, median, mib};
use crate::requests::puts;
use crate::{Failure, Plan};

const CLIENTS: usize = 1000;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let (load, pages) = (plan.has("load-1m"), plan.has("pages"));
    if !load && !pages {
        return Ok(());
    }
    let mut servers = plan.start()?;
    let paged_keys = plan.scale.pages * plan.scale.page_keys;
    let keys = if load { plan.scale.million } else { paged_keys };
    let mut filled = Vec::new();
    for server in &servers {
        filled.push(fill(plan, server, keys)?);
    }
    if load {
        let pair: [Vec<(&'static str, f64)>; 2] = filled.try_into().expect("there are two servers");
        let [etcd, ours] = pair;
        for ((measure, etcd), (_, ours)) in etcd.into_iter().zip(ours) {
            report.measure("load-1m", measure, [etcd, ours]);
        }
    }
    if pages && let Err(error) = page(plan, &servers, report) {
        report.failed(format!("pages: {error}").into());
    }
    if load {
        restart(plan, &mut servers, report)?;
    }
    Ok(())
}

/// Loads the keys and then has them flushed and swept; each measure with its name.
fn fill(plan: &Plan, server: &Server, keys: u64) -> Result<Vec<(&'static str, f64)>, Failure> {
    eprintln!("load-1m: {keys} keys, {}", server.name);
    let before = server.usage()?;
    let ask = Ask::PutEach(shuffled(keys, plan.seed));
    let loaded = puts(plan, ask, CLIENTS, keys).run_out(server)?;
    let loaded_disk = server.disk_bytes()?;
    let begin = Instant::now();
    server.client(async |mut client| {
        let newest = client.revision().await?;
        client.compact(newest).await
    })?;
    let compacted_in = begin.elapsed();
    let settled = server.usage()?.since(before);
    server.wait_quiet()?;
    let puts = keys as f64;
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    Ok(vec![
        ("puts/s", puts / loaded.elapsed.as_secs_f64()),
        ("p50 µs", micros(loaded.latencies.value_at_quantile(0.5))),
        ("p99 µs", micros(loaded.latencies.value_at_quantile(0.99))),
        ("max µs", micros(loaded.latencies.max())),
        (
            "client cores",
            loaded.client.cpu.as_secs_f64() / loaded.elapsed.as_secs_f64(),
        ),
        (
            "server CPU µs/put",
            loaded.server.cpu.as_secs_f64() * 1e6 / puts,
        ),
        (
            "server CPU µs/put, flush and sweep included",
            settled.cpu.as_secs_f64() * 1e6 / puts,
        ),
        ("written B/put", loaded.server.written_bytes as f64 / puts),
        (
            "written B/put, flush and sweep included",
            settled.written_bytes as f64 / puts,
        ),
        (
            "resident MiB after the load",
            mib(loaded.server.resident_bytes),
        ),
        (
            "of it anonymous (not a mapped file)",
            mib(loaded.server.anonymous_bytes),
        ),
        (
            "resident MiB after flush and sweep",
            mib(settled.resident_bytes),
        ),
        (
            "of it anonymous after flush and sweep",
            mib(settled.anonymous_bytes),
        ),
        ("peak MiB", mib(settled.peak_bytes)),
        ("data on disk MiB after the load", mib(loaded_disk)),
        (
            "data on disk MiB after flush and sweep",
            mib(server.disk_bytes()?),
        ),
        (
            "physical compaction after the load, ms",
            compacted_in.as_secs_f64() * 1000.0,
        ),
    ])
}

/// All pages against one list, at one revision: the time of each, in rounds.
fn page(plan: &Plan, servers: &[Server; 2], report: &mut Report) -> Result<(), Failure> {
    let mut paged = [Vec::new(), Vec::new()];
    let mut listed = [Vec::new(), Vec::new()];
    for round in 1..=plan.runs {
        for (index, server) in servers.iter().enumerate() {
            eprintln!("pages: round {round} of {}, {}", plan.runs, server.name);
            let (pages_ms, list_ms) = server.client(async |mut client| {
                let revision = client.revision().await?;
                let list_ms = list_through(&mut client, plan, revision).await?;
                let pages_ms = page_through(&mut client, plan, revision).await?;
                Ok((pages_ms, list_ms))
            })?;
            paged[index].push(pages_ms);
            listed[index].push(list_ms);
            server.wait_quiet()?;
        }
    }
    let (paged, listed) = (paged.map(median), listed.map(median));
    report.measure("pages", "all pages, ms", paged);
    report.measure("pages", "one list, ms", listed);
    report.measure(
        "pages",
        "pages : one list",
        [paged[0] / listed[0], paged[1] / listed[1]],
    );
    Ok(())
}

/// As clients page: by limit, each page from behind the last key of the page before.
async fn page_through(client: &mut Client, plan: &Plan, revision: i64) -> Result<f64, Failure> {
    let begin = Instant::now();
    let end = key(plan.scale.pages * plan.scale.page_keys);
    let mut from = key(0);
    let mut found = 0;
    for page in 1..=plan.scale.pages {
        let request = RangeRequest {
            key: from.clone(),
            range_end: end.clone(),
            limit: plan.scale.page_keys as i64,
            revision,
            ..RangeRequest::default()
        };
        let answer = client.range(request).await?;
        let last = answer.kvs.last().ok_or("an empty page")?;
        from = behind(&last.key);
        found += answer.kvs.len() as u64;
        if answer.more != (page < plan.scale.pages) {
            return Err(format!("page {page} ended with more = {}", answer.more).into());
        }
    }
    expect(found, plan)?;
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

async fn list_through(client: &mut Client, plan: &Plan, revision: i64) -> Result<f64, Failure> {
    let begin = Instant::now();
    let range_end = key(plan.scale.pages * plan.scale.page_keys);
    let request = RangeRequest {
        key: key(0),
        range_end,
        revision,
        ..RangeRequest::default()
    };
    let answer = client.range(request).await?;
    expect(answer.kvs.len() as u64, plan)?;
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

fn expect(found: u64, plan: &Plan) -> Result<(), Failure> {
    let expected = plan.scale.pages * plan.scale.page_keys;
    if found == expected {
        return Ok(());
    }
    Err(format!("found {found} keys instead of {expected}").into())
}

/// The first key after this one.
fn behind(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// `kill -9` and restart, in rounds, with puts in the log that no flush has settled.
fn restart(plan: &Plan, servers: &mut [Server; 2], report: &mut Report) -> Result<(), Failure> {
    for server in &*servers {
        let ask = Ask::Put {
            keys: plan.scale.million,
        };
        puts(plan, ask, CLIENTS, plan.scale.tail_puts).run_out(server)?;
        server.wait_quiet()?;
    }
    let mut restarts = [Vec::new(), Vec::new()];
    for round in 1..=plan.runs {
        for (server, restarts) in servers.iter_mut().zip(&mut restarts) {
            eprintln!("restart: round {round} of {}, {}", plan.runs, server.name);
            rustix::fs::sync();
            restarts.push(server.kill_and_restart()?.as_secs_f64() * 1000.0);
        }
    }
    report.measure(
        "load-1m",
        "restart ms after sync and kill -9",
        restarts.map(median),
    );
    Ok(())
}
