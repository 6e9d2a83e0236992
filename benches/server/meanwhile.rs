//! Puts by the clock while the server works on something else: what they wait for.
//!
//! An open loop: a put leaves when its time has come, whether or not the last was answered, and
//! counts if it was sent while the work ran, however late its answer is. A closed loop would hide a
//! server that answers nobody for seconds: of each client it would see one slow put.
//! ```text
//! connect ─► warm up ─► work (puts are measured) ─► await what is under way
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Code;

use crate::load::{VALUE_BYTES, histogram};
use crate::process::Server;
use crate::writer::Writer;
use crate::{Failure, Plan, block_on};

/// A thousand a second: less than half of what either server takes of so many connections.
const PUT_EVERY: Duration = Duration::from_millis(1);
const CONNECTIONS: usize = 10;

/// So long without any answer, and the item has failed.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What became of the puts that were sent while the work ran.
pub(crate) struct Puts {
    pub(crate) latencies: Histogram<u64>,
    /// Those that the server gave up on, or had no room for.
    pub(crate) refused: u64,
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// Does the work on this thread while another puts random keys of the large store.
pub(crate) fn put_meanwhile<T>(
    plan: &Plan,
    server: &Server,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<(Puts, T), Failure> {
    let stage = AtomicU8::new(WARMING);
    let (warm, warmed) = mpsc::channel();
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| block_on(put_by_the_clock(plan, server, &stage, warm)));
        // If it fails while it warms up, the channel ends with it.
        let done = warmed.recv().map(|()| {
            stage.store(MEASURING, Ordering::Relaxed);
            work()
        });
        stage.store(OVER, Ordering::Relaxed);
        let puts = putting.join().map_err(|_| "the putting thread panicked")?;
        let puts = puts.map_err(|error| server.explain(error))?;
        let done = done.map_err(|_| "the puts ended before the work began")??;
        Ok((puts, done))
    })
}

async fn put_by_the_clock(
    plan: &Plan,
    server: &Server,
    stage: &AtomicU8,
    warm: Sender<()>,
) -> Result<Puts, Failure> {
    let mut writers = Vec::new();
    for number in 0..CONNECTIONS as u64 {
        let seed = plan.seed + number;
        writers.push(Writer::open(server, seed, plan.scale.million, VALUE_BYTES).await?);
    }
    let mut puts = Puts {
        latencies: histogram(),
        refused: 0,
    };
    let mut under_way = JoinSet::new();
    let mut clock = interval(PUT_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let begin = Instant::now();
    let mut warm = Some(warm);
    let mut turns = (0..CONNECTIONS).cycle();
    loop {
        tokio::select! {
            _ = clock.tick() => {
                let stage = stage.load(Ordering::Relaxed);
                if stage == OVER {
                    break;
                }
                let writer = &mut writers[turns.next().expect("a cycle has no end")];
                let (key, mut writer) = (writer.next_key(), writer.clone());
                under_way.spawn(async move { (writer.put_key(key).await, stage == MEASURING) });
            }
            Some(put) = under_way.join_next() => puts.count(put?)?,
        }
        if begin.elapsed() >= plan.scale.warm_up
            && let Some(warm) = warm.take()
        {
            let _ = warm.send(());
        }
    }
    while let Some(put) = timeout(STALL_MAX, under_way.join_next()).await? {
        puts.count(put?)?;
    }
    if puts.latencies.is_empty() {
        return Err("no put was answered meanwhile".into());
    }
    Ok(puts)
}

impl Puts {
    fn count(&mut self, (put, counts): (Result<Duration, Failure>, bool)) -> Result<(), Failure> {
        match put {
            Ok(took) if counts => self.latencies.record(took.as_nanos() as u64)?,
            Ok(_) => {}
            Err(error) if counts && is_refusal(&error) => self.refused += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What etcd answers when it could not serve for seconds: too many requests wait, or one did so for
/// too long. (The first has the code Unknown on the wire.)
fn is_refusal(error: &Failure) -> bool {
    const REFUSALS: [Code; 3] = [Code::ResourceExhausted, Code::Unavailable, Code::Unknown];
    error
        .downcast_ref::<tonic::Status>()
        .is_some_and(|status| REFUSALS.contains(&status.code()))
}
