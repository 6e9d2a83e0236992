//! Watchers, and what they hear.
//!
//! They are spread over ten clients. As Go's client does, each client has one connection and one
//! stream, which its watchers share. One task a client reads; it checks that each watcher's
//! revisions ascend, counts, and takes the time of stamped values. Whoever waits for the audience
//! is woken after every read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use metastore::proto::etcdserverpb::WatchCreateRequest;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Failure;
use crate::load::histogram;
use crate::stream::FREELY;
use crate::watch_stream::{Answer, Event, WatchStream};

const CLIENTS: usize = 10;

/// So long without anything heard, and what waits for it has failed.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Where stamps count from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What a value begins with: when its put was sent.
pub(crate) fn stamp(sent_at: Instant) -> [u8; 8] {
    let nanos = sent_at.saturating_duration_since(*EPOCH).as_nanos();
    (nanos as u64).to_be_bytes()
}

/// The watchers of one item. They leave when it is dropped.
pub(crate) struct Audience {
    shared: Arc<Shared>,
    _clients: JoinSet<()>,
}

struct Shared {
    created: AtomicU64,
    heard: AtomicU64,
    measuring: AtomicBool,
    /// From sending a put to hearing of it, of the events that came while measuring.
    latencies: Mutex<Histogram<u64>>,
    failure: Mutex<Option<Failure>>,
    changed: Notify,
}

impl Audience {
    /// Opens all connections and asks for all watchers, but does not wait for the answers: a
    /// watcher of history begins to hear before the last one is there.
    pub(crate) async fn asked(port: u16, requests: &[WatchCreateRequest]) -> Result<Self, Failure> {
        LazyLock::force(&EPOCH);
        let shared = Arc::new(Shared {
            created: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            measuring: AtomicBool::new(false),
            latencies: Mutex::new(histogram()),
            failure: Mutex::new(None),
            changed: Notify::new(),
        });
        let mut streams = Vec::new();
        for _ in 0..CLIENTS.min(requests.len()) {
            streams.push(WatchStream::open(port, FREELY).await?);
        }
        let mut clients = JoinSet::new();
        let share = requests.len().div_ceil(CLIENTS).max(1);
        for (stream, requests) in streams.into_iter().zip(requests.chunks(share)) {
            let (shared, requests) = (Arc::clone(&shared), requests.to_vec());
            clients.spawn(async move {
                if let Err(error) = listen(stream, requests, &shared).await {
                    let mut failure = shared.failure.lock().expect("no client panicked");
                    failure.get_or_insert(error);
                    shared.changed.notify_one();
                }
            });
        }
        Ok(Self {
            shared,
            _clients: clients,
        })
    }

    /// Watchers that are all there.
    pub(crate) async fn open(port: u16, requests: &[WatchCreateRequest]) -> Result<Self, Failure> {
        let audience = Self::asked(port, requests).await?;
        let count = requests.len() as u64;
        audience
            .until(|shared| shared.created.load(Ordering::Relaxed) == count)
            .await?;
        Ok(audience)
    }

    /// Events so far, of all watchers together.
    pub(crate) fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }

    /// Waits until all watchers together have heard so many events.
    pub(crate) async fn until_heard(&self, events: u64) -> Result<(), Failure> {
        self.until(|shared| shared.heard.load(Ordering::Relaxed) >= events)
            .await
    }

    /// From now on, latencies count.
    pub(crate) fn measure(&self) {
        self.shared.measuring.store(true, Ordering::Relaxed);
    }

    /// The latencies since `measure`.
    pub(crate) fn measured(&self) -> Result<Histogram<u64>, Failure> {
        self.shared.measuring.store(false, Ordering::Relaxed);
        let mut latencies = self.shared.latencies.lock().expect("no client panicked");
        if latencies.is_empty() {
            return Err("no watcher heard anything".into());
        }
        Ok(std::mem::replace(&mut *latencies, histogram()))
    }

    async fn until(&self, reached: impl Fn(&Shared) -> bool) -> Result<(), Failure> {
        loop {
            if let Some(failure) = self
                .shared
                .failure
                .lock()
                .expect("no client panicked")
                .take()
            {
                return Err(failure);
            }
            if reached(&self.shared) {
                return Ok(());
            }
            tokio::time::timeout(STALL_MAX, self.shared.changed.notified())
                .await
                .map_err(|_| format!("no watcher heard anything within {STALL_MAX:?}"))?;
        }
    }
}

/// One client: asks for its watchers, then reads for as long as it lives.
async fn listen(
    mut stream: WatchStream,
    requests: Vec<WatchCreateRequest>,
    shared: &Shared,
) -> Result<(), Failure> {
    stream.create(&requests).await?;
    let mut ears = Ears::new(requests.len());
    let mut nanos = Vec::new();
    loop {
        let measuring = shared.measuring.load(Ordering::Relaxed);
        let (mut created, mut heard) = (0, 0);
        let read = stream.read(|answer| {
            let read_at = answer.read_at.saturating_duration_since(*EPOCH).as_nanos() as u64;
            created += u64::from(answer.created);
            heard += ears.hear(&answer, |event| {
                if measuring && let Some(sent_at) = event.value.first_chunk() {
                    nanos.push(read_at.saturating_sub(u64::from_be_bytes(*sent_at)));
                }
                Ok(())
            })?;
            Ok(())
        });
        read.await?;
        if !nanos.is_empty() {
            let mut latencies = shared.latencies.lock().expect("no client panicked");
            for nanos in nanos.drain(..) {
                latencies.record(nanos)?;
            }
        }
        shared.created.fetch_add(created, Ordering::Relaxed);
        shared.heard.fetch_add(heard, Ordering::Relaxed);
        shared.changed.notify_one();
    }
}

/// What each watcher of a stream heard last. Servers number them from 0.
pub(crate) struct Ears(Vec<i64>);

impl Ears {
    pub(crate) fn new(watchers: usize) -> Self {
        Self(vec![0; watchers])
    }

    /// Takes in an answer, event by event; answers how many it held. Items change one key a
    /// revision, so no revision comes twice.
    pub(crate) fn hear(
        &mut self,
        answer: &Answer<'_>,
        mut each: impl FnMut(Event<'_>) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let id = answer.watch_id;
        if answer.canceled {
            return Err(format!("watcher {id} was cancelled").into());
        }
        let index = usize::try_from(id).ok();
        let last = index
            .and_then(|index| self.0.get_mut(index))
            .ok_or_else(|| format!("watcher {id} was not asked for"))?;
        let mut events = 0;
        answer.each_event(|event| {
            if event.mod_revision <= *last {
                return Err(format!("revision {} after {last}", event.mod_revision).into());
            }
            *last = event.mod_revision;
            events += 1;
            each(event)
        })?;
        Ok(events)
    }
}
