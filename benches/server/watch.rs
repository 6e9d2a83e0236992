//! Watchers: what a put costs when many hear of it, and what they cost when nothing happens.
//!
//! An item's watchers are shared out to ten clients of one connection and one stream each, as Go's
//! client would have it (see `audience`). They and the writers run on one thread.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use metastore::proto::etcdserverpb::WatchCreateRequest;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::audience::{Audience, Ears};
use crate::client::Client;
use crate::load::{Ask, Load, Outcome, VALUE_BYTES, histogram, key, micros};
use crate::process::{Server, Span};
use crate::report::{Report, mib};
use crate::requests::fill;
use crate::stream::NARROWLY;
use crate::watch_stream::WatchStream;
use crate::writer::Writer;
use crate::{Failure, Plan, block_on};

const FANOUT_WATCHERS: usize = 1000;

/// Puts that are under way or not yet heard by all. One: each put waits until all have heard the
/// one before, which is when etcd delivers the most. With more, the queue of its streams (128
/// answers) overflows, and watchers that missed one go through its catching up.
const FANOUT_AHEAD: [u64; 2] = [1, 4];

const LATENCY_WATCHERS: usize = 100;
const LATENCY_PUT_EVERY: Duration = Duration::from_millis(10);

const CATCH_UP_WATCHERS: usize = 100;

const IDLE_WRITERS: usize = 100;

const STUCK_WRITERS: usize = 100;
const STUCK_VALUE_BYTES: usize = 1024;

/// Those beside the stuck one, each of so many keys of its own.
const FREE_WATCHERS: u64 = 99;
const FREE_WATCHER_KEYS: u64 = 1000;

type Item = fn(&Plan, &mut Report) -> Result<(), Failure>;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let items: [(&str, Item); 5] = [
        ("watch-fanout", fanout),
        ("watch-latency", latency),
        ("watch-catchup", catch_up),
        ("watch-idle", idle),
        ("watch-stuck", stuck),
    ];
    for (name, item) in items {
        if plan.has(name)
            && let Err(error) = item(plan, report)
        {
            report.failed(format!("{name}: {error}").into());
        }
    }
    Ok(())
}

fn fanout(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "events/s",
        "server CPU µs/event",
        "put to event p50 µs",
        "put to event p99 µs",
        "client cores",
        "events/s, 4 puts ahead",
        "server CPU µs/event, 4 puts ahead",
        "put to event p50 µs, 4 puts ahead",
        "put to event p99 µs, 4 puts ahead",
        "client cores, 4 puts ahead",
    ];
    let servers = plan.start()?;
    report.in_turn(plan, "watch-fanout", measures, |index| {
        let server = &servers[index];
        let mut turn = Vec::new();
        for ahead in FANOUT_AHEAD {
            let figures = block_on(fan_out(plan, server, ahead));
            turn.extend(figures.map_err(|error| server.explain(error))?);
            server.wait_quiet()?;
        }
        Ok(turn.try_into().expect("five figures each"))
    })
}

/// A closed loop: the writer goes on when the watchers have heard enough of what it put.
async fn fan_out(plan: &Plan, server: &Server, ahead: u64) -> Result<[f64; 5], Failure> {
    let audience = Audience::open(server.port, &vec![all_keys(0); FANOUT_WATCHERS]).await?;
    let mut writer = Writer::open(server, plan.seed, plan.scale.keys, VALUE_BYTES).await?;
    let mut puts = 0;
    let mut write_for = async |time: Duration| {
        let begin = Instant::now();
        while begin.elapsed() < time {
            writer.put().await?;
            puts += 1;
            let all_heard = (puts + 1_u64).saturating_sub(ahead);
            audience
                .until_heard(all_heard * FANOUT_WATCHERS as u64)
                .await?;
        }
        Ok::<_, Failure>(())
    };
    write_for(plan.scale.warm_up).await?;
    audience.measure();
    let heard = audience.heard();
    let span = Span::begin(server)?;
    write_for(plan.scale.measured).await?;
    let span = span.end(server)?;
    let events = (audience.heard() - heard) as f64;
    let latencies = audience.measured()?;
    Ok([
        events / span.secs,
        span.server_cpu.as_secs_f64() * 1e6 / events,
        micros(&latencies, 0.5),
        micros(&latencies, 0.99),
        span.client_cores,
    ])
}

fn latency(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "put to event p50 µs",
        "put to event p99 µs",
        "put p50 µs",
        "put p99 µs",
        "server CPU µs/event",
        "client cores",
    ];
    let servers = plan.start()?;
    report.in_turn(plan, "watch-latency", measures, |index| {
        let server = &servers[index];
        let turn = block_on(put_by_the_clock(plan, server));
        let turn = turn.map_err(|error| server.explain(error))?;
        server.wait_quiet()?;
        Ok(turn)
    })
}

/// An open loop: a put leaves when its time has come, whether or not the last one was answered.
async fn put_by_the_clock(plan: &Plan, server: &Server) -> Result<[f64; 6], Failure> {
    let audience = Audience::open(server.port, &vec![all_keys(0); LATENCY_WATCHERS]).await?;
    let mut writer = Writer::open(server, plan.seed, plan.scale.keys, VALUE_BYTES).await?;
    let mut clock = tokio::time::interval(LATENCY_PUT_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut puts = JoinSet::new();
    let mut write_for = async |time: Duration| {
        let mut latencies = histogram();
        let begin = Instant::now();
        while begin.elapsed() < time {
            tokio::select! {
                _ = clock.tick() => {
                    let (key, mut writer) = (writer.next_key(), writer.clone());
                    puts.spawn(async move { writer.put_key(key).await });
                }
                Some(put) = puts.join_next() => record(&mut latencies, put?)?,
            }
        }
        while let Some(put) = puts.join_next().await {
            record(&mut latencies, put?)?;
        }
        Ok::<_, Failure>(latencies)
    };
    write_for(plan.scale.warm_up).await?;
    audience.measure();
    let heard = audience.heard();
    let span = Span::begin(server)?;
    // Puts are few a second, and their 99th percentile needs many.
    let puts = write_for(2 * plan.scale.measured).await?;
    audience
        .until_heard(heard + puts.len() * LATENCY_WATCHERS as u64)
        .await?;
    let span = span.end(server)?;
    let events = audience.measured()?;
    Ok([
        micros(&events, 0.5),
        micros(&events, 0.99),
        micros(&puts, 0.5),
        micros(&puts, 0.99),
        span.server_cpu.as_secs_f64() * 1e6 / events.len() as f64,
        span.client_cores,
    ])
}

fn catch_up(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "ms until all have all",
        "events/s",
        "server CPU µs/event",
        "resident MiB after",
        "client cores",
    ];
    let servers = plan.start()?;
    for server in &servers {
        fill(plan, server, plan.scale.caught_up_revisions)?;
    }
    report.in_turn(plan, "watch-catchup", measures, |index| {
        let server = &servers[index];
        let turn = block_on(read_history(plan, server)).map_err(|error| server.explain(error))?;
        server.wait_quiet()?;
        Ok(turn)
    })
}

async fn read_history(plan: &Plan, server: &Server) -> Result<[f64; 5], Failure> {
    let span = Span::begin(server)?;
    let audience = Audience::asked(server.port, &vec![all_keys(1); CATCH_UP_WATCHERS]).await?;
    let events = plan.scale.caught_up_revisions * CATCH_UP_WATCHERS as u64;
    audience.until_heard(events).await?;
    let span = span.end(server)?;
    let events = events as f64;
    Ok([
        span.secs * 1000.0,
        events / span.secs,
        span.server_cpu.as_secs_f64() * 1e6 / events,
        mib(server.usage()?.resident_bytes),
        span.client_cores,
    ])
}

fn idle(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "resident MiB due to them",
        "resident MiB with them",
        "resident MiB without",
        "put p50 µs with",
        "put p50 µs without",
        "put p50 with : without",
        "put p99 with : without",
    ];
    report.in_turn(plan, "watch-idle", measures, |index| {
        // Each on a new server, so that both have the same past.
        let [without, with] = [0, plan.scale.idle_watchers].map(|watchers| {
            let server = plan.start_one(index)?;
            sit_idle(plan, &server, watchers).map_err(|error| server.explain(error))
        });
        let (without, with) = (without?, with?);
        let [p50, p99] = [0.5, 0.99]
            .map(|quantile| [&without, &with].map(|idle| micros(&idle.puts.latencies, quantile)));
        Ok([
            with.due_mib,
            with.resident_mib,
            without.resident_mib,
            p50[1],
            p50[0],
            p50[1] / p50[0],
            p99[1] / p99[0],
        ])
    })
}

/// A server with idle watchers, or without.
struct Idle {
    /// What opening them took.
    due_mib: f64,
    /// After the puts.
    resident_mib: f64,
    puts: Outcome,
}

fn sit_idle(plan: &Plan, server: &Server, watchers: usize) -> Result<Idle, Failure> {
    let resident_mib = || {
        server.wait_quiet()?;
        Ok::<_, Failure>(mib(server.usage()?.resident_bytes))
    };
    let requests: Vec<_> = (0..watchers)
        .map(|number| WatchCreateRequest {
            key: format!("/registry/idle/{number:06}").into(),
            ..WatchCreateRequest::default()
        })
        .collect();
    let before = resident_mib()?;
    // Nothing comes while the puts run on threads of their own, so this runtime may stand still.
    let runtime = runtime()?;
    let audience = runtime.block_on(Audience::open(server.port, &requests))?;
    let due_mib = resident_mib()? - before;
    let load = Load {
        ask: Ask::Put {
            keys: plan.scale.keys,
        },
        clients: IDLE_WRITERS,
        requests_max: None,
        seed: plan.seed,
        threads: plan.threads,
    };
    let puts = load.run_for(server, plan.scale.warm_up, plan.scale.measured)?;
    let resident_mib = resident_mib()?;
    if let Some(last) = requests.last() {
        // They heard nothing, but they are there.
        runtime.block_on(async {
            let mut client = Client::open(server.port).await?;
            client.put(last.key.clone(), Bytes::new()).await?;
            audience.until_heard(1).await
        })?;
    }
    Ok(Idle {
        due_mib,
        resident_mib,
        puts,
    })
}

fn stuck(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "put p99 µs without",
        "put p99 µs with",
        "put p99 with : without",
        "put to event p99 µs without",
        "put to event p99 µs with",
        "put to event p99 with : without",
        "anonymous MiB without",
        "anonymous MiB due to the stuck one",
        "ms until it has all, once it reads",
    ];
    report.in_turn(plan, "watch-stuck", measures, |index| {
        // Each on a new server, so that both have the same past.
        let without = beside(plan, &plan.start_one(index)?, false)?;
        let with = beside(plan, &plan.start_one(index)?, true)?;
        Ok([
            without.put_p99,
            with.put_p99,
            with.put_p99 / without.put_p99,
            without.event_p99,
            with.event_p99,
            with.event_p99 / without.event_p99,
            without.anonymous_mib,
            with.anonymous_mib - without.anonymous_mib,
            with.wake_ms,
        ])
    })
}

/// What others see, with a stuck watcher or without.
struct Beside {
    put_p99: f64,
    event_p99: f64,
    anonymous_mib: f64,
    wake_ms: f64,
}

fn beside(plan: &Plan, server: &Server, stuck: bool) -> Result<Beside, Failure> {
    let runtime = runtime()?;
    let flooded = runtime.block_on(flood(plan, server, stuck));
    let (stream, puts, events) = flooded.map_err(|error| server.explain(error))?;
    server.wait_quiet()?;
    let anonymous_mib = mib(server.usage()?.anonymous_bytes);
    let mut wake_ms = 0.0;
    if let Some(stream) = stream {
        let woken = runtime.block_on(wake(stream, plan.scale.stuck_puts));
        wake_ms = woken.map_err(|error| server.explain(error))?;
    }
    Ok(Beside {
        put_p99: micros(&puts, 0.99),
        event_p99: micros(&events, 0.99),
        anonymous_mib,
        wake_ms,
    })
}

type Flooded = (Option<WatchStream>, Histogram<u64>, Histogram<u64>);

/// Many writers at once. Each put is heard by one watcher, and by the stuck one if it is there; the
/// first few fill all that its client would take.
async fn flood(plan: &Plan, server: &Server, stuck: bool) -> Result<Flooded, Failure> {
    let requests: Vec<_> = (0..FREE_WATCHERS)
        .map(|watcher| WatchCreateRequest {
            key: key(watcher * FREE_WATCHER_KEYS),
            range_end: key((watcher + 1) * FREE_WATCHER_KEYS),
            ..WatchCreateRequest::default()
        })
        .collect();
    let audience = Audience::open(server.port, &requests).await?;
    let stream = if stuck {
        Some(listen_once(server.port).await?)
    } else {
        None
    };
    audience.measure();
    let keys = FREE_WATCHERS * FREE_WATCHER_KEYS;
    let mut writers = JoinSet::new();
    for number in 0..STUCK_WRITERS as u64 {
        let share = (plan.scale.stuck_puts + number) / STUCK_WRITERS as u64;
        let seed = plan.seed + number;
        let mut writer = Writer::open(server, seed, keys, STUCK_VALUE_BYTES).await?;
        writers.spawn(async move {
            let mut latencies = histogram();
            for _ in 0..share {
                record(&mut latencies, writer.put().await)?;
            }
            Ok::<_, Failure>(latencies)
        });
    }
    let mut puts = histogram();
    while let Some(latencies) = writers.join_next().await {
        puts.add(latencies??)?;
    }
    audience.until_heard(puts.len()).await?;
    Ok((stream, puts, audience.measured()?))
}

/// A watcher of all keys whose client reads that it is created, and then no more.
async fn listen_once(port: u16) -> Result<WatchStream, Failure> {
    let mut stream = WatchStream::open(port, NARROWLY).await?;
    stream.create(&[all_keys(0)]).await?;
    let mut created = false;
    while !created {
        stream
            .read(|answer| {
                created = answer.created && !answer.canceled;
                Ok(())
            })
            .await?;
    }
    Ok(stream)
}

/// It reads again, and must hear every put.
async fn wake(mut stream: WatchStream, puts: u64) -> Result<f64, Failure> {
    let begin = Instant::now();
    let mut ears = Ears::new(1);
    let mut heard = 0;
    while heard < puts {
        stream
            .read(|answer| {
                heard += ears.hear(&answer, |_| Ok(()))?;
                Ok(())
            })
            .await?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

/// All keys that the items put, from a revision on; 0 is from now.
fn all_keys(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::from_static(b"/registry/bench/"),
        range_end: Bytes::from_static(b"/registry/bench0"),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

pub(crate) fn record(
    latencies: &mut Histogram<u64>,
    put: Result<Duration, Failure>,
) -> Result<(), Failure> {
    latencies.record(put?.as_nanos() as u64)?;
    Ok(())
}

/// One that can stand still between two questions.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
