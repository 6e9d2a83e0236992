//! Closed loops: each client asks, waits for the answer, and asks again.
//!
//! One or two threads, each a runtime of its own, carry all clients, on at most a hundred
//! connections. A phase of the clients is steered from outside:
//! ```text
//! connect ─► warm up ─► measure (usage taken at both ends) ─► stop
//! ```
//! An answer counts when it comes while measuring.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use metastore::proto::etcdserverpb::RangeRequest;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Client, Connection};
use crate::process::{Server, Usage};
use crate::{Failure, block_on};

const CONNECTIONS_MAX: usize = 100;

/// So long without any answer, and the phase has failed.
const STALL_MAX: Duration = Duration::from_secs(60);

pub(crate) const VALUE_BYTES: usize = 256;

/// Longer than any item takes.
pub(crate) const LEASE_TTL_SECS: u64 = 3600;

/// Values are slices of this much noise, so that none costs the client more than a counter.
const NOISE_BYTES: usize = 1 << 20;

/// SplitMix64: seeded, and as good as a load needs.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub(crate) fn noise(&mut self) -> Bytes {
        (0..NOISE_BYTES / 8)
            .flat_map(|_| self.next().to_le_bytes())
            .collect()
    }
}

/// Key `number` of a million or fewer: all of one length, so that its digits order it.
pub(crate) fn key(number: u64) -> Bytes {
    format!("/registry/bench/{number:06}").into()
}

/// The id of lease `number`: never 0, never negative, and as wide as those that servers choose.
pub(crate) fn lease_id(number: u64) -> i64 {
    // An odd factor, so that no id comes twice.
    ((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) & (u64::MAX >> 1)) as i64
}

/// The numbers below `count`, each once, in an order of the seed's choice.
pub(crate) fn shuffled(count: u64, seed: u64) -> Arc<[u64]> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut random = Random::new(seed);
    for last in (1..numbers.len()).rev() {
        numbers.swap(last, random.below(last as u64 + 1) as usize);
    }
    numbers.into()
}

/// What a client asks for, again and again.
#[derive(Clone)]
pub(crate) enum Ask {
    /// Put a random key below `keys`.
    Put { keys: u64 },
    /// Put the keys of the list, each once, shared by all clients.
    PutEach(Arc<[u64]>),
    /// Put a random key below `keys` with a random lease below `leases`.
    PutLeased { keys: u64, leases: u64 },
    /// Grant a lease of an hour, of an id that the server chooses.
    Grant,
    /// Grant the leases from the first on, each once, shared by all clients.
    GrantEach,
    /// Get a random key below `keys`; at revision 0, the newest.
    Get { keys: u64, revision: i64 },
    /// List the `length` keys (a power of ten) under a random prefix.
    List { keys: u64, length: u64 },
    /// Compare-and-swap the client's own key.
    Swap,
}

/// One phase of clients.
pub(crate) struct Load {
    pub(crate) ask: Ask,
    pub(crate) clients: usize,
    /// Stop after so many requests; otherwise when told to.
    pub(crate) requests_max: Option<u64>,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
}

/// What the clients and the server did while measuring.
pub(crate) struct Outcome {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) elapsed: Duration,
    pub(crate) server: Usage,
    pub(crate) client: Usage,
}

/// Clients on their way.
pub(crate) struct Driving<'a> {
    server: &'a Server,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    errors: Receiver<Failure>,
    /// Its end makes the clients leave what they wait for.
    patience: Option<watch::Sender<()>>,
    begin: Option<(Instant, Usage, Usage)>,
}

struct Shared {
    stage: AtomicU8,
    asked: AtomicU64,
    requests_max: u64,
    latencies: Mutex<Histogram<u64>>,
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

impl Load {
    /// A phase by time.
    pub(crate) fn run_for(
        self,
        server: &Server,
        warm_up: Duration,
        measured: Duration,
    ) -> Result<Outcome, Failure> {
        let mut driving = self.start(server)?;
        driving.wait(warm_up)?;
        driving.measure()?;
        driving.wait(measured)?;
        driving.stop()
    }

    /// A phase by count, measured whole.
    pub(crate) fn run_out(self, server: &Server) -> Result<Outcome, Failure> {
        assert!(self.requests_max.is_some(), "a phase by count has a count");
        let driving = self.start(server)?;
        driving.wait_all()?;
        driving.stop()
    }

    /// Connects all clients, then lets them go. A phase by count is measured from here.
    pub(crate) fn start(self, server: &Server) -> Result<Driving<'_>, Failure> {
        let by_count = self.requests_max.is_some();
        let shared = Arc::new(Shared {
            stage: AtomicU8::new(WARMING),
            asked: AtomicU64::new(0),
            requests_max: self.requests_max.unwrap_or(u64::MAX),
            latencies: Mutex::new(histogram()),
        });
        let connected = Arc::new(Barrier::new(self.threads + 1));
        let go = Arc::new(Barrier::new(self.threads + 1));
        let (failed, errors) = mpsc::channel();
        let (patience, patient) = watch::channel(());
        let noise = Random::new(self.seed).noise();
        let mut threads = Vec::new();
        for thread in 0..self.threads {
            let crew = Crew {
                port: server.port,
                ask: self.ask.clone(),
                clients: share(self.clients, thread, self.threads),
                connections: share(self.clients.min(CONNECTIONS_MAX), thread, self.threads),
                first_client: (0..thread)
                    .map(|before| share(self.clients, before, self.threads))
                    .sum(),
                seed: self.seed,
                noise: noise.clone(),
                shared: Arc::clone(&shared),
                patient: patient.clone(),
            };
            let (connected, go, failed) = (Arc::clone(&connected), Arc::clone(&go), failed.clone());
            threads.push(std::thread::spawn(move || {
                block_on(crew.work(&connected, &go, &failed))
            }));
        }
        let patience = Some(patience);
        let mut driving = Driving {
            server,
            shared,
            threads,
            errors,
            patience,
            begin: None,
        };
        connected.wait();
        if by_count {
            driving.measure()?;
        }
        go.wait();
        Ok(driving)
    }
}

/// The part of `count` that falls to one thread.
fn share(count: usize, thread: usize, threads: usize) -> usize {
    (count + threads - 1 - thread) / threads
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

pub(crate) fn micros(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1000.0
}

impl Driving<'_> {
    /// Lets time pass, unless a client fails first.
    pub(crate) fn wait(&self, time: Duration) -> Result<(), Failure> {
        match self.errors.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(error) => Err(self.fail(error)),
            Err(RecvTimeoutError::Disconnected) => Err("the clients left early".into()),
        }
    }

    /// Waits until every client has left.
    fn wait_all(&self) -> Result<(), Failure> {
        let mut asked = 0;
        loop {
            match self.errors.recv_timeout(STALL_MAX) {
                Ok(error) => return Err(self.fail(error)),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let before = std::mem::replace(&mut asked, self.shared.asked.load(Ordering::Relaxed));
            if asked == before {
                return Err(self.fail(format!("no answer within {STALL_MAX:?}").into()));
            }
        }
    }

    pub(crate) fn measure(&mut self) -> Result<(), Failure> {
        self.begin = Some((Instant::now(), self.server.usage()?, Usage::of_self()?));
        self.shared.stage.store(MEASURING, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn stop(mut self) -> Result<Outcome, Failure> {
        self.shared.stage.store(OVER, Ordering::Relaxed);
        let (begin, server, client) = self.begin.ok_or("stopped before measuring")?;
        let elapsed = begin.elapsed();
        let server = self.server.usage()?.since(server);
        let client = Usage::of_self()?.since(client);
        self.wait_all()?;
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| "a client thread panicked")?;
        }
        let latencies = std::mem::replace(
            &mut *self.shared.latencies.lock().expect("no thread panicked"),
            histogram(),
        );
        if latencies.is_empty() {
            return Err(format!("{}: no request was answered", self.server.name).into());
        }
        Ok(Outcome {
            latencies,
            elapsed,
            server,
            client,
        })
    }

    fn fail(&self, error: Failure) -> Failure {
        self.shared.stage.store(OVER, Ordering::Relaxed);
        self.server.explain(error)
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.shared.stage.store(OVER, Ordering::Relaxed);
        self.patience = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The clients of one thread.
struct Crew {
    port: u16,
    ask: Ask,
    clients: usize,
    connections: usize,
    first_client: usize,
    seed: u64,
    noise: Bytes,
    shared: Arc<Shared>,
    patient: watch::Receiver<()>,
}

impl Crew {
    async fn work(mut self, connected: &Barrier, go: &Barrier, failed: &Sender<Failure>) {
        let connections = self.connect().await;
        // Every thread passes both barriers, also one that failed, so that none waits for ever.
        connected.wait();
        go.wait();
        let connections = match connections {
            Ok(connections) => connections,
            Err(error) => {
                let _ = failed.send(error);
                return;
            }
        };
        let latencies = Arc::new(Mutex::new(histogram()));
        let mut clients = JoinSet::new();
        for client in 0..self.clients {
            let number = (self.first_client + client) as u64;
            let asker = Asker {
                client: Client::new(connections[client % connections.len()].clone(), self.port),
                ask: self.ask.clone(),
                random: Random::new(
                    self.seed
                        .wrapping_mul(0x1_0000_0001)
                        .wrapping_add(number << 40),
                ),
                noise: self.noise.clone(),
                number,
                stands_at: 0,
            };
            clients.spawn(asker.run(Arc::clone(&self.shared), Arc::clone(&latencies)));
        }
        loop {
            let left = tokio::select! {
                left = clients.join_next() => left,
                _ = self.patient.changed() => return,
            };
            let Some(result) = left else { break };
            if let Err(error) = result.expect("a client does not panic") {
                self.shared.stage.store(OVER, Ordering::Relaxed);
                let _ = failed.send(error);
            }
        }
        let own = latencies.lock().expect("no client panicked");
        let mut all = self.shared.latencies.lock().expect("no thread panicked");
        all.add(&*own).expect("histograms of one shape add up");
    }

    async fn connect(&self) -> Result<Vec<Connection>, Failure> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            connections.push(Connection::open(self.port).await?);
        }
        Ok(connections)
    }
}

/// One client.
struct Asker {
    client: Client,
    ask: Ask,
    random: Random,
    noise: Bytes,
    number: u64,
    /// The revision of the client's own key, as it knows it.
    stands_at: i64,
}

impl Asker {
    async fn run(
        mut self,
        shared: Arc<Shared>,
        latencies: Arc<Mutex<Histogram<u64>>>,
    ) -> Result<(), Failure> {
        loop {
            let turn = shared.asked.fetch_add(1, Ordering::Relaxed);
            if turn >= shared.requests_max || shared.stage.load(Ordering::Relaxed) == OVER {
                return Ok(());
            }
            let begin = Instant::now();
            self.request(turn).await?;
            if shared.stage.load(Ordering::Relaxed) == MEASURING {
                let nanos = begin.elapsed().as_nanos() as u64;
                latencies
                    .lock()
                    .expect("no client panicked")
                    .record(nanos)?;
            }
        }
    }

    async fn request(&mut self, turn: u64) -> Result<(), Failure> {
        match &self.ask {
            Ask::Put { keys } => {
                let key = key(self.random.below(*keys));
                let value = self.value();
                self.client.put(key, value).await
            }
            Ask::PutEach(numbers) => {
                let key = key(numbers[turn as usize]);
                let value = self.value();
                self.client.put(key, value).await
            }
            Ask::PutLeased { keys, leases } => {
                let key = key(self.random.below(*keys));
                let lease = lease_id(self.random.below(*leases));
                let value = self.value();
                self.client.put_with_lease(key, value, lease).await
            }
            Ask::Grant => self.grant(0).await,
            Ask::GrantEach => self.grant(lease_id(turn)).await,
            Ask::Get { keys, revision } => {
                let answer = self
                    .client
                    .get(key(self.random.below(*keys)), *revision)
                    .await?;
                expect_count(answer.kvs.len(), 1)
            }
            Ask::List { keys, length } => {
                let first = self.random.below(keys / length) * length;
                let request = prefix(first, *length);
                let length = *length as usize;
                let answer = self.client.range(request).await?;
                expect_count(answer.kvs.len(), length)
            }
            Ask::Swap => {
                let key = format!("/registry/swap/{:06}", self.number);
                let value = self.value();
                let swap = self
                    .client
                    .compare_and_swap(key.into(), self.stands_at, value);
                let (swapped, stands_at) = swap.await?;
                if !swapped && self.stands_at != 0 {
                    return Err("a swap of the client's own key was refused".into());
                }
                self.stands_at = stands_at;
                Ok(())
            }
        }
    }

    async fn grant(&mut self, id: i64) -> Result<(), Failure> {
        self.client.grant(id, LEASE_TTL_SECS).await?;
        Ok(())
    }

    fn value(&mut self) -> Bytes {
        let start = self.random.below((NOISE_BYTES - VALUE_BYTES) as u64) as usize;
        self.noise.slice(start..start + VALUE_BYTES)
    }
}

/// The keys that share all digits of `first` but the last ones: `length` of them.
fn prefix(first: u64, length: u64) -> RangeRequest {
    let mut key = key(first).to_vec();
    key.truncate(key.len() - length.ilog10() as usize);
    let mut range_end = key.clone();
    *range_end.last_mut().expect("a key is not empty") += 1;
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..RangeRequest::default()
    }
}

fn expect_count(found: usize, expected: usize) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(format!("an answer held {found} keys instead of {expected}").into())
}
