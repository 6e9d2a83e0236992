//! The ends of leases: how late they are, and what others wait for meanwhile.
//!
//! Every lease here has one key. Its end is when a watcher, which hears of nothing but deletes,
//! hears that its key is gone. A lease runs from somewhere between the request that asked for it
//! and the answer, so it must not end before the request and its TTL, and is late by what it ends
//! after the answer and its TTL. The watcher and the holders run on one thread, the clients that
//! put meanwhile on their own.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use metastore::proto::etcdserverpb::WatchCreateRequest;
use metastore::proto::etcdserverpb::watch_create_request::FilterType;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::audience::Ears;
use crate::client::Client;
use crate::load::{Ask, Load, Outcome, histogram, micros};
use crate::process::Server;
use crate::report::Report;
use crate::requests::puts;
use crate::stream::FREELY;
use crate::watch::runtime;
use crate::watch_stream::WatchStream;
use crate::{Failure, Plan, block_on};

/// Clients that put while leases end one by one.
const WRITERS: usize = 1000;

/// Leases are granted so far apart, by connections that take turns.
const GRANT_EVERY: Duration = Duration::from_millis(2);
const GRANT_CONNECTIONS: usize = 10;

const TTL_SECS_MIN: u64 = 2;
const TTL_SECS_MAX: u64 = 6;

/// Clients that put while many leases end at once, and those that grant them before.
const MASS_WRITERS: usize = 10;
const MASS_GRANTERS: usize = 100;

/// One in so many is granted to see how long that takes.
const MASS_TRIED: u64 = 20;

/// So long without the end of any lease, and the item has failed.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Leases end one by one, at any moment.
pub(crate) fn one_by_one(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "late p50 ms",
        "late p99 ms",
        "late max ms",
        "ended early",
        "puts/s meanwhile",
        "put p99 µs meanwhile",
    ];
    let servers = plan.start()?;
    let early = Cell::new(0);
    report.in_turn(plan, "lease-expiry", measures, |index| {
        let server = &servers[index];
        let mut driving = writers(plan, WRITERS).start(server)?;
        driving.wait(plan.scale.warm_up)?;
        driving.measure()?;
        let ends = block_on(end_one_by_one(plan, server)).map_err(|error| server.explain(error))?;
        let puts = driving.stop()?;
        server.wait_quiet()?;
        early.update(|early| early + ends.early);
        let millis = |quantile| micros(&ends.late, quantile) / 1000.0;
        Ok([
            millis(0.5),
            millis(0.99),
            millis(1.0),
            ends.early as f64,
            puts.latencies.len() as f64 / puts.elapsed.as_secs_f64(),
            micros(&puts.latencies, 0.99),
        ])
    })?;
    none(early.get())
}

/// A lease that ends early takes from its holder what it relies on, so that no figure mends it.
fn none(early: u64) -> Result<(), Failure> {
    match early {
        0 => Ok(()),
        _ => Err(format!("{early} leases ended early").into()),
    }
}

fn writers(plan: &Plan, clients: usize) -> Load {
    Load {
        ask: Ask::Put {
            keys: plan.scale.keys,
        },
        clients,
        requests_max: None,
        seed: plan.seed,
        threads: plan.threads,
    }
}

async fn end_one_by_one(plan: &Plan, server: &Server) -> Result<Ends, Failure> {
    let count = plan.scale.ending_leases;
    let held = Held::default();
    let mut ends = Ends::listen(server, &held).await?;
    let ended = tokio::spawn(async move {
        ends.until(count).await?;
        Ok::<_, Failure>(ends)
    });
    let mut clients = Vec::new();
    for _ in 0..GRANT_CONNECTIONS {
        clients.push(Client::open(server.port).await?);
    }
    let mut clock = interval(GRANT_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut holders = JoinSet::new();
    for number in 0..count {
        clock.tick().await;
        let ttl_secs = TTL_SECS_MIN + number % (TTL_SECS_MAX - TTL_SECS_MIN + 1);
        let mut client = clients[number as usize % clients.len()].clone();
        let held = held.clone();
        holders.spawn(async move { held.hold(&mut client, number, ttl_secs).await });
    }
    while let Some(holding) = holders.join_next().await {
        holding??;
    }
    ended.await?
}

/// All end within one second.
pub(crate) fn all_at_once(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "ms from the last end until all are gone",
        "leases ended/s",
        "ended early",
        "put p99 µs before",
        "put p99 µs meanwhile",
        "put max µs meanwhile",
        "puts/s before",
        "puts/s meanwhile",
    ];
    // Once, since etcd takes a thousand a second.
    let [etcd, ours] = [0, 1].map(|index| {
        let server = plan.start_one(index)?;
        end_all_at_once(plan, &server).map_err(|error| server.explain(error))
    });
    let (etcd, ours) = (etcd?, ours?);
    for (measure, pair) in measures.into_iter().zip(etcd.into_iter().zip(ours)) {
        report.measure("lease-mass", measure, pair.into());
    }
    none((etcd[EARLY] + ours[EARLY]) as u64)
}

/// How long it takes at most until all leases are there, to judge by a few that stay.
fn holding_time(plan: &Plan, server: &Server) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let few = plan.scale.mass_leases / MASS_TRIED;
    puts(plan, Ask::GrantEach, MASS_GRANTERS, few).run_out(server)?;
    // A grant and a put each; and as much again, for a machine that is busier by then.
    Ok(begin.elapsed() * MASS_TRIED as u32 * 2 * 2)
}

/// Its place among the measures.
const EARLY: usize = 2;

fn end_all_at_once(plan: &Plan, server: &Server) -> Result<[f64; 8], Failure> {
    let count = plan.scale.mass_leases;
    eprintln!("lease-mass: {count} leases, {}", server.name);
    let held = Held::default();
    let (warm_up, measured) = (plan.scale.warm_up, plan.scale.measured);
    let first_end = Instant::now() + holding_time(plan, server)? + 2 * warm_up + measured;
    // Nothing ends before, so this runtime may stand still.
    let runtime = runtime()?;
    let mut ends = runtime.block_on(async {
        let ends = Ends::listen(server, &held).await?;
        hold_until(server, &held, count, first_end).await?;
        Ok::<_, Failure>(ends)
    })?;
    let last_end = held.last_end().ok_or("no lease is held")?;
    let before = writers(plan, MASS_WRITERS).run_for(server, warm_up, measured)?;
    let mut driving = writers(plan, MASS_WRITERS).start(server)?;
    let left = first_end.checked_duration_since(Instant::now());
    driving.wait(left.ok_or("the leases were not there in time")?)?;
    driving.measure()?;
    runtime.block_on(ends.until(count))?;
    let meanwhile = driving.stop()?;
    let since = |instant| {
        ends.last_at
            .saturating_duration_since(instant)
            .as_secs_f64()
    };
    let rate = |outcome: &Outcome| outcome.latencies.len() as f64 / outcome.elapsed.as_secs_f64();
    Ok([
        since(last_end) * 1000.0,
        count as f64 / since(first_end),
        ends.early as f64,
        micros(&before.latencies, 0.99),
        micros(&meanwhile.latencies, 0.99),
        micros(&meanwhile.latencies, 1.0),
        rate(&before),
        rate(&meanwhile),
    ])
}

/// Many clients grant leases, each of a TTL that ends it within the second behind `first_end`.
async fn hold_until(
    server: &Server,
    held: &Held,
    count: u64,
    first_end: Instant,
) -> Result<(), Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let mut holders = JoinSet::new();
    for _ in 0..MASS_GRANTERS {
        let mut client = Client::open(server.port).await?;
        let (held, next) = (held.clone(), Arc::clone(&next));
        holders.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, Failure>(());
                }
                let left = first_end.saturating_duration_since(Instant::now());
                let ttl_secs = left.as_secs() + 1;
                if ttl_secs < TTL_SECS_MIN {
                    return Err(format!("only {number} leases were granted in time").into());
                }
                held.hold(&mut client, number, ttl_secs).await?;
            }
        });
    }
    while let Some(holding) = holders.join_next().await {
        holding??;
    }
    Ok(())
}

/// The leases that are there, by number.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<HashMap<u64, End>>>);

/// When a lease is to end: not before `earliest`, and then at once, but surely from `latest` on.
#[derive(Clone, Copy)]
struct End {
    earliest: Instant,
    latest: Instant,
}

impl Held {
    /// Grants a lease and puts its key.
    async fn hold(&self, client: &mut Client, number: u64, ttl_secs: u64) -> Result<(), Failure> {
        let ttl = Duration::from_secs(ttl_secs);
        let asked_at = Instant::now();
        let id = client.grant(0, ttl_secs).await?;
        let end = End {
            earliest: asked_at + ttl,
            latest: Instant::now() + ttl,
        };
        self.0
            .lock()
            .expect("no holder panicked")
            .insert(number, end);
        let key = format!("{LEASED}{number:06}");
        client
            .put_with_lease(key.into(), Bytes::from_static(b"held"), id)
            .await
    }

    fn remove(&self, number: u64) -> Option<End> {
        self.0.lock().expect("no holder panicked").remove(&number)
    }

    fn last_end(&self) -> Option<Instant> {
        let held = self.0.lock().expect("no holder panicked");
        held.values().map(|end| end.latest).max()
    }
}

/// What the keys of leases begin with.
const LEASED: &str = "/registry/leased/";
const BEHIND_LEASED: &str = "/registry/leased0";

/// The watcher that hears of the ends.
struct Ends {
    stream: WatchStream,
    ears: Ears,
    held: Held,
    late: Histogram<u64>,
    early: u64,
    last_at: Instant,
}

impl Ends {
    async fn listen(server: &Server, held: &Held) -> Result<Self, Failure> {
        let mut stream = WatchStream::open(server.port, FREELY).await?;
        let request = WatchCreateRequest {
            key: LEASED.into(),
            range_end: BEHIND_LEASED.into(),
            filters: vec![FilterType::Noput.into()],
            ..WatchCreateRequest::default()
        };
        stream.create(&[request]).await?;
        let mut created = false;
        while !created {
            let read = stream.read(|answer| {
                created = answer.created && !answer.canceled;
                Ok(())
            });
            read.await?;
        }
        Ok(Self {
            stream,
            ears: Ears::new(1),
            held: held.clone(),
            late: histogram(),
            early: 0,
            last_at: Instant::now(),
        })
    }

    /// Reads until so many leases have ended.
    async fn until(&mut self, count: u64) -> Result<(), Failure> {
        while self.late.len() < count {
            let read = self.stream.read(|answer| {
                self.last_at = answer.read_at;
                self.ears.hear(&answer, |event| {
                    let end = number(event.key).and_then(|number| self.held.remove(number));
                    let end = end.ok_or("a key went that no lease held, or went twice")?;
                    self.early += u64::from(answer.read_at < end.earliest);
                    let late = answer.read_at.saturating_duration_since(end.latest);
                    self.late.record(late.as_nanos() as u64)?;
                    Ok(())
                })?;
                Ok(())
            });
            tokio::time::timeout(STALL_MAX, read)
                .await
                .map_err(|_| format!("no lease ended within {STALL_MAX:?}"))??;
        }
        Ok(())
    }
}

fn number(key: &[u8]) -> Option<u64> {
    let digits = key.strip_prefix(LEASED.as_bytes())?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
