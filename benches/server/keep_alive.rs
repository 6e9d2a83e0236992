//! Keep-alives: a hundred holders, each with one connection, one stream and leases of its own.
//!
//! All run on one thread. A holder sends each keep-alive by itself, also by the clock, as if its
//! leases were those of many processes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use metastore::proto::etcdserverpb::LeaseKeepAliveRequest;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::lease::grant_each;
use crate::load::{LEASE_TTL_SECS, histogram, lease_id, micros};
use crate::process::{Server, Span, Spent};
use crate::report::Report;
use crate::stream::{FREELY, Field, Fields, Stream};
use crate::{Failure, Plan, block_on};

const HOLDERS: u64 = 100;

/// How often each lease is renewed by the clock.
const RENEWED_EVERY: Duration = Duration::from_secs(5);

/// When a holder renews its next lease.
#[derive(Clone, Copy)]
enum Pace {
    /// When the last is renewed.
    Closed,
    /// When its time has come, whether or not the last is renewed.
    Clock,
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "keep-alives/s",
        "server CPU µs/keep-alive",
        "p50 µs",
        "p99 µs",
        "client cores",
        "keep-alives/s, by the clock",
        "server cores, by the clock",
        "p50 µs, by the clock",
        "p99 µs, by the clock",
        "client cores, by the clock",
    ];
    let servers = plan.start()?;
    for server in &servers {
        grant_each(plan, server, plan.scale.renewed_leases)?;
    }
    report.in_turn(plan, "lease-keepalive", measures, |index| {
        let server = &servers[index];
        let mut turn = Vec::new();
        for pace in [Pace::Closed, Pace::Clock] {
            let renewed = block_on(renew(plan, server, pace));
            let (latencies, spent) = renewed.map_err(|error| server.explain(error))?;
            let count = latencies.len() as f64;
            let cpu_secs = spent.server_cpu.as_secs_f64();
            turn.extend([
                count / spent.secs,
                match pace {
                    Pace::Closed => cpu_secs * 1e6 / count,
                    Pace::Clock => cpu_secs / spent.secs,
                },
                micros(&latencies, 0.5),
                micros(&latencies, 0.99),
                spent.client_cores,
            ]);
            server.wait_quiet()?;
        }
        Ok(turn.try_into().expect("five figures each"))
    })
}

/// All holders at work, for as long as a phase lasts.
async fn renew(
    plan: &Plan,
    server: &Server,
    pace: Pace,
) -> Result<(Histogram<u64>, Spent), Failure> {
    let latencies = Arc::new(Mutex::new(histogram()));
    let each = plan.scale.renewed_leases / HOLDERS;
    let mut holders = JoinSet::new();
    for number in 0..HOLDERS {
        let ids = (number * each..(number + 1) * each).map(lease_id).collect();
        let holder = Holder::open(server.port, ids, Arc::clone(&latencies)).await?;
        // Spread over the time between two keep-alives of one holder.
        let every = RENEWED_EVERY / each as u32;
        let begin = Instant::now() + every * number as u32 / HOLDERS as u32;
        holders.spawn(async move {
            match pace {
                Pace::Closed => holder.renew_in_turn().await,
                Pace::Clock => holder.renew_by_the_clock(begin, every).await,
            }
        });
    }
    let mut work_for = async |time: Duration| {
        *latencies.lock().expect("no holder panicked") = histogram();
        if let Ok(Some(left)) = tokio::time::timeout(time, holders.join_next()).await {
            let Err(error) = left?;
            return Err(error);
        }
        let mut latencies = latencies.lock().expect("no holder panicked");
        Ok(std::mem::replace(&mut *latencies, histogram()))
    };
    work_for(plan.scale.warm_up).await?;
    let span = Span::begin(server)?;
    let latencies = work_for(plan.scale.measured).await?;
    let span = span.end(server)?;
    if latencies.is_empty() {
        return Err("no lease was renewed".into());
    }
    Ok((latencies, span))
}

struct Holder {
    stream: Stream,
    ids: Vec<i64>,
    next: usize,
    /// Keep-alives without an answer: which, and when they were sent.
    waiting: VecDeque<(i64, Instant)>,
    latencies: Arc<Mutex<Histogram<u64>>>,
}

impl Holder {
    async fn open(
        port: u16,
        ids: Vec<i64>,
        latencies: Arc<Mutex<Histogram<u64>>>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            stream: Stream::open(port, "/etcdserverpb.Lease/LeaseKeepAlive", FREELY).await?,
            ids,
            next: 0,
            waiting: VecDeque::new(),
            latencies,
        })
    }

    async fn renew_in_turn(mut self) -> Result<Infallible, Failure> {
        loop {
            self.renew_next().await?;
            while !self.waiting.is_empty() {
                self.read().await?;
            }
        }
    }

    async fn renew_by_the_clock(
        mut self,
        begin: Instant,
        every: Duration,
    ) -> Result<Infallible, Failure> {
        let mut clock = interval_at(begin.into(), every);
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            tokio::select! {
                _ = clock.tick() => self.renew_next().await?,
                read = self.read() => read?,
            }
        }
    }

    async fn renew_next(&mut self) -> Result<(), Failure> {
        let id = self.ids[self.next];
        self.next = (self.next + 1) % self.ids.len();
        self.waiting.push_back((id, Instant::now()));
        self.stream.send(&[LeaseKeepAliveRequest { id }]).await
    }

    /// Takes in what answers there are: one for each keep-alive, in order.
    async fn read(&mut self) -> Result<(), Failure> {
        let read = self.stream.read(|answer, read_at| {
            let (id, sent_at) = self
                .waiting
                .pop_front()
                .ok_or("an answer to no keep-alive")?;
            let mut renewed = (0, 0);
            let mut fields = Fields(answer);
            while let Some(field) = fields.next()? {
                match field {
                    (2, Field::Number(id)) => renewed.0 = id as i64,
                    (3, Field::Number(ttl_secs)) => renewed.1 = ttl_secs,
                    _ => {}
                }
            }
            if renewed != (id, LEASE_TTL_SECS) {
                return Err(format!("a keep-alive of {id} was answered {renewed:?}").into());
            }
            let nanos = read_at.saturating_duration_since(sent_at).as_nanos() as u64;
            let mut latencies = self.latencies.lock().expect("no holder panicked");
            latencies.record(nanos)?;
            Ok(())
        });
        read.await
    }
}
