//! The engine: the writer and the background thread, behind calls that can be awaited.
//!
//! ```text
//! put, delete_range, txn, compact, grant, revoke, raise, clear ─► queue  ─► writer ─► answer
//! defragment                                                   ─► queue  ─► writer ─► background ─► answer
//! range, read_txn                                              ─► view   ─► answer      never the queue
//! keep_alive, time_to_live, leases                             ─► leases ─► answer      never the queue
//! ```
//! Async ends here: below are plain functions, and threads of their own. A read runs on the
//! caller's thread while it is short and what it needs is likely in memory; otherwise on one of a
//! few threads for reads.

pub mod alarm;
mod background;
pub mod command;
pub mod compactor;
mod defragmenting;
mod judge;
mod leases;
pub mod offline;
mod permit;
mod queue;
pub mod quota;
pub mod replies;
pub mod snapshots;
mod upkeep;
pub mod watches;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::error;

pub use self::background::Pace;
pub use self::leases::{KeptAlive, TimeToLive};

use self::background::{Background, Rest};
use self::command::{Answer, Asked, Command, Reply};
use self::compactor::{Compactor, Policy};
use self::queue::{Queue, ROOM_UNITS, UNIT_BYTES};
use self::snapshots::Spools;
use self::writer::Writer;
use crate::clock::Clock;
use crate::lease::{Leases, Timing};
use crate::mvcc::counts::Counts;
use crate::mvcc::hash::{self, Hashed};
use crate::mvcc::range::{self, Effort, Selected, Selection};
use crate::mvcc::request::{Decided, DeleteRange, Deleted, Put, Range, Ranged, Txn, Written};
use crate::mvcc::{Error, txn};
use crate::storage;
use crate::storage::store::{Identity, Settings, Store, Views};
use crate::storage::view::View;

/// Reads that run at once on threads of their own.
pub const READ_THREADS: usize = 4;

/// Slices of history that are read at once for watchers, on further threads: so long reads do not
/// keep watchers waiting.
pub const WATCH_THREADS: usize = 2;
/// Reads of a whole view that run at once, on threads of their own beside those.
pub const LONG_READ_THREADS: usize = 2;

/// Keys that a read may look at on the caller's thread: about a quarter of a millisecond.
const INLINE_KEYS_MAX: usize = 512;

/// An answer above this draws on the memory for large answers.
const LARGE_ANSWER_BYTES: usize = 1 << 20;

/// Memory for large answers that are under way at once; one that is larger runs alone.
const LARGE_ANSWERS_BYTES: usize = 256 << 20;

/// How often, and after what pause, a read looks whether the database is open again.
const REOPEN_LOOKS: usize = 1000;
const REOPEN_PAUSE: Duration = Duration::from_millis(5);

/// See the module. Dropping the last handle does not stop the threads; [`Engine::stop`] does.
#[derive(Debug)]
pub struct Engine {
    queue: Arc<Queue>,
    views: Arc<Views>,
    leases: Arc<Leases>,
    identity: Identity,
    term: u64,
    quota_bytes: Option<u64>,
    /// Held by the one who raises the alarm of the quota.
    raising: tokio::sync::Mutex<()>,
    counts: Counts,
    read_threads: Arc<Semaphore>,
    watch_threads: Arc<Semaphore>,
    long_read_threads: Arc<Semaphore>,
    large_answers: Arc<Semaphore>,
    spools: Arc<Spools>,
    failed: Arc<Failed>,
    /// The newest revision, for those who wait for the next.
    published: watch::Receiver<u64>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What is compacted without being asked, and how what is compacted leaves the disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compaction {
    /// `None` compacts nothing by itself.
    pub policy: Option<Policy>,
    /// How the sweep rests.
    pub pace: Pace,
}

/// A share of the memory for large answers, held until the answer is sent.
pub type AnswerRoom = Option<Arc<OwnedSemaphorePermit>>;

impl Engine {
    /// Opens the store and starts the threads.
    pub fn open(
        settings: &Settings,
        identity: Identity,
        timing: Timing,
        compaction: Compaction,
        clock: Clock,
    ) -> Result<Engine, storage::Error> {
        let (store, settler) = Store::open(settings, identity)?;
        let leases = Leases::of(&store, timing, clock.clone())?;
        let leases = Arc::new(leases);
        snapshots::remove_spools(settings.data.as_ref())?;
        let queue = Arc::new(Queue::default());
        let background = Arc::new(Background::default());
        let failed = Arc::new(watch::Sender::new(None));
        let (publish, published) = watch::channel(store.revision());
        let engine = Engine {
            queue: Arc::clone(&queue),
            views: store.views(),
            leases: Arc::clone(&leases),
            identity: store.identity().clone(),
            term: store.term(),
            quota_bytes: settings.quota_bytes,
            raising: tokio::sync::Mutex::default(),
            counts: Counts::default(),
            read_threads: Arc::new(Semaphore::new(READ_THREADS)),
            watch_threads: Arc::new(Semaphore::new(WATCH_THREADS)),
            long_read_threads: Arc::new(Semaphore::new(LONG_READ_THREADS)),
            large_answers: Arc::new(Semaphore::new(LARGE_ANSWERS_BYTES / UNIT_BYTES)),
            spools: Arc::new(Spools::new(Arc::clone(&settings.data))),
            failed: Arc::clone(&failed),
            published,
            threads: Mutex::default(),
        };
        let views = store.views();
        let compactor = Compactor::new(compaction.policy, clock.clone(), store.revision());
        let writer = Writer::new(
            store,
            leases,
            compactor,
            Arc::clone(&queue),
            Arc::clone(&background),
            publish,
            clock.clone(),
        );
        let flusher = Arc::clone(&background);
        let nudged = Arc::clone(&queue);
        let rest = Rest::new(compaction.pace, clock);
        engine.spawn("background", &failed, move || {
            flusher.run(settler, rest, &views, &nudged)
        })?;
        engine.spawn("writer", &failed, move || {
            let _end = EndOnDrop { queue, background };
            writer.run()
        })?;
        Ok(engine)
    }

    /// Starts a thread whose failure is the engine's, and ends the queue.
    fn spawn(
        &self,
        name: &str,
        failed: &Arc<Failed>,
        body: impl FnOnce() -> Result<(), storage::Error> + Send + 'static,
    ) -> Result<(), storage::Error> {
        let close = CloseOnDrop {
            queue: Arc::clone(&self.queue),
            failed: Arc::clone(failed),
        };
        let part = name.to_owned();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let close = close;
                if let Err(cause) = body() {
                    error!(part, %cause, "the store has failed");
                    fail(&close.queue, &close.failed, cause.to_string());
                }
            })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }

    /// Who the store is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How often the store was opened: etcd's raft term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The current view.
    pub fn view(&self) -> Arc<View> {
        self.views.load()
    }

    /// Resolves when the store has failed, to the reason. The process must end then.
    pub async fn failed(&self) -> String {
        let mut failure = self.failed.subscribe();
        let reason = failure.wait_for(Option::is_some).await;
        let reason = reason.expect("the engine holds the sender");
        reason.clone().expect("it was waited for")
    }

    /// Takes no more commands, answers those that wait, settles all, and ends the threads.
    /// Blocks for as long as a flush takes.
    pub fn stop(&self) {
        self.queue.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread of the store has panicked");
            }
        }
    }

    /// Writes one key.
    pub async fn put(&self, put: Put) -> Result<Written, Error> {
        let bytes = put.key.len() + put.value.len();
        match self.ask(Command::Put(put), bytes).await? {
            Answer::Put(written) => Ok(written),
            _ => unreachable!("a put is answered as a put"),
        }
    }

    /// Deletes keys.
    pub async fn delete_range(&self, delete: DeleteRange) -> Result<Deleted, Error> {
        let bytes = delete.range.bytes();
        match self.ask(Command::DeleteRange(delete), bytes).await? {
            Answer::DeleteRange(deleted) => Ok(deleted),
            _ => unreachable!("a delete is answered as a delete"),
        }
    }

    /// Runs a txn; one that only reads never meets the writer. `bytes` is the request's size.
    pub async fn txn(self: &Arc<Self>, txn: Txn, bytes: usize) -> Result<Decided, Error> {
        if txn.is_read_only() {
            return self
                .read_apart(move |view, counts| txn::read(view, &txn, counts))
                .await;
        }
        match self.ask(Command::Txn(txn), bytes).await? {
            Answer::Txn(decided) => Ok(decided),
            _ => unreachable!("a txn is answered as a txn"),
        }
    }

    /// Raises the floor; answers the newest revision.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<u64, Error> {
        match self.ask(Command::Compact { revision, physical }, 0).await? {
            Answer::Compact(newest) => Ok(newest),
            _ => unreachable!("a compaction is answered as a compaction"),
        }
    }

    /// Keeps the member's peer URLs, whatever they are.
    pub async fn update_member(&self, peer_urls: Vec<String>) -> Result<(), Error> {
        let bytes = peer_urls.iter().map(String::len).sum();
        match self.ask(Command::UpdateMember(peer_urls), bytes).await? {
            Answer::UpdatedMember => Ok(()),
            _ => unreachable!("an update is answered as an update"),
        }
    }

    /// Gives space back to the file system. It goes on if nobody waits for it any more.
    pub async fn defragment(&self) -> Result<(), Error> {
        match self.ask(Command::Defragment, 0).await? {
            Answer::Defragmented => Ok(()),
            _ => unreachable!("a defragmentation is answered as a defragmentation"),
        }
    }

    async fn ask(&self, command: Command, bytes: usize) -> Result<Answer, Error> {
        let units = (1 + bytes / UNIT_BYTES).min(ROOM_UNITS);
        let room = Arc::clone(&self.queue.room);
        let room = room.acquire_many_owned(units as u32).await;
        let room = room.map_err(|_| Error::Stopped)?;
        let (sender, answer) = oneshot::channel();
        let reply = Reply {
            sender,
            home: replies::Home::current(),
        };
        let asked = Asked {
            command,
            reply,
            room: Some(room),
        };
        self.queue.push(asked).map_err(|_| Error::Stopped)?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }
}

/// Reads.
impl Engine {
    /// Reads keys. The answer's room is to be held until the answer is sent.
    pub async fn range(self: &Arc<Self>, request: Range) -> Result<(Ranged, AnswerRoom), Error> {
        let view = self.view();
        let newest = view.revision;
        self.range_in(view, newest, request, true).await
    }

    /// Reads keys within `view`, or one as new if it is closed meanwhile; `newest` is the revision
    /// that the answer names. With `count` the whole range is counted.
    pub async fn range_in(
        self: &Arc<Self>,
        mut view: Arc<View>,
        mut newest: u64,
        request: Range,
        count: bool,
    ) -> Result<(Ranged, AnswerRoom), Error> {
        loop {
            let in_this = self.range_in_this(Arc::clone(&view), newest, request.clone(), count);
            match in_this.await {
                Err(Error::Storage(storage::Error::Closed)) => view = self.next_view(&view).await?,
                done => return self.unless_failed(done),
            }
            if request.revision <= 0 {
                newest = view.revision;
            }
        }
    }

    /// A read that met what was never written ends the store.
    fn unless_failed<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Storage(cause)) = &done
            && !matches!(cause, storage::Error::Closed)
        {
            error!(%cause, "a read has failed");
            fail(&self.queue, &self.failed, cause.to_string());
        }
        done
    }

    async fn range_in_this(
        self: &Arc<Self>,
        view: Arc<View>,
        newest: u64,
        request: Range,
        count: bool,
    ) -> Result<(Ranged, AnswerRoom), Error> {
        let at = range::resolve(&view, request.revision, newest)?;
        let inline = Effort {
            keys_max: INLINE_KEYS_MAX,
            count,
        };
        if !view.settled().is_cold() {
            match range::select(&view, &request, at, inline, &self.counts) {
                Ok(Selected::Done(chosen)) if chosen.bytes() <= LARGE_ANSWER_BYTES => {
                    return Ok((chosen.fetch(&view, newest)?, None));
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        let effort = Effort {
            keys_max: usize::MAX,
            count,
        };
        let request = Arc::new(request);
        let units = |chosen: &Selection| match chosen.bytes() {
            ..=LARGE_ANSWER_BYTES => None,
            bytes => Some(large_units(bytes)),
        };
        let select = Arc::clone(&request);
        let whole = move |view: &View, counts: &Counts| {
            let chosen = all(range::select(view, &select, at, effort, counts)?);
            Ok(match units(&chosen) {
                None => Ok(chosen.fetch(view, newest)?),
                Some(units) => Err((chosen, units)),
            })
        };
        let (chosen, units) = match self.run_apart(Arc::clone(&view), whole).await? {
            Ok(ranged) => return Ok((ranged, None)),
            Err(large) => large,
        };
        if let Ok(room) = Arc::clone(&self.large_answers).try_acquire_many_owned(units) {
            let fetch = move |view: &View, _: &Counts| chosen.fetch(view, newest);
            let ranged = self.run_apart(view, fetch).await?;
            return Ok((ranged, Some(Arc::new(room))));
        }
        // No view is held while others send their answers: what is there at a revision stays.
        drop((chosen, view));
        let room = self.large_room(units).await?;
        let view = self.view();
        let (at, newest) = if request.revision <= 0 {
            (view.revision, view.revision)
        } else {
            (range::resolve(&view, at as i64, view.revision)?, newest)
        };
        let whole = move |view: &View, counts: &Counts| {
            all(range::select(view, &request, at, effort, counts)?).fetch(view, newest)
        };
        let ranged = self.run_apart(view, whole).await?;
        Ok((ranged, Some(room)))
    }

    /// Waits for the room of a large answer.
    async fn large_room(&self, units: u32) -> Result<Arc<OwnedSemaphorePermit>, Error> {
        let room = Arc::clone(&self.large_answers);
        let room = room.acquire_many_owned(units).await;
        Ok(Arc::new(room.map_err(|_| Error::Stopped)?))
    }

    /// Runs a read on a thread for reads, in the current view; if that is closed meanwhile, once
    /// more in the next.
    async fn read_apart<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl Fn(&View, &Counts) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        self.read_apart_on(&self.read_threads, read).await
    }

    async fn read_apart_on<T: Send + 'static>(
        self: &Arc<Self>,
        threads: &Arc<Semaphore>,
        read: impl Fn(&View, &Counts) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let read = Arc::new(read);
        loop {
            let thread = acquire(threads).await?;
            // Only now: who waits for a thread holds no view.
            let view = self.view();
            let read = Arc::clone(&read);
            let in_this = move |view: &View, counts: &Counts| read(view, counts);
            match self.run_on(thread, Arc::clone(&view), in_this).await {
                Err(Error::Storage(storage::Error::Closed)) => drop(self.next_view(&view).await?),
                done => return self.unless_failed(done),
            }
        }
    }

    /// Hashes history up to `revision`; 0 is all of it.
    pub async fn hash_kv(self: &Arc<Self>, revision: i64) -> Result<Hashed, Error> {
        self.read_long(move |view, waited_for| hash::hash_kv(view, revision, waited_for))
            .await
    }

    /// Runs a read of a whole view, which asks now and then whether anybody still waits for it.
    async fn read_long<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl Fn(&View, &dyn Fn() -> bool) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let waiting = Arc::new(());
        let held = Arc::downgrade(&waiting);
        let in_this = move |view: &View, _: &Counts| read(view, &|| held.strong_count() > 0);
        let done = self.read_apart_on(&self.long_read_threads, in_this).await;
        // Or with this future, if nobody waits for it any more.
        drop(waiting);
        done
    }

    /// A view of the database that is opened after that of `view`, which was closed.
    async fn next_view(&self, view: &View) -> Result<Arc<View>, Error> {
        for _ in 0..REOPEN_LOOKS {
            let next = self.view();
            if !std::ptr::eq(next.settled(), view.settled()) {
                return Ok(next);
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
        Err(storage::Error::Closed.into())
    }

    async fn run_apart<T: Send + 'static>(
        self: &Arc<Self>,
        view: Arc<View>,
        read: impl FnOnce(&View, &Counts) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let thread = acquire(&self.read_threads).await?;
        self.run_on(thread, view, read).await
    }

    async fn run_on<T: Send + 'static>(
        self: &Arc<Self>,
        thread: OwnedSemaphorePermit,
        view: Arc<View>,
        read: impl FnOnce(&View, &Counts) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let engine = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            // It is taken until the read has ended, though who asked may have gone.
            let _thread = thread;
            read(&view, &engine.counts)
        });
        done.await.unwrap_or(Err(Error::Stopped))
    }
}

/// The room that a large answer takes.
fn large_units(bytes: usize) -> u32 {
    (bytes.min(LARGE_ANSWERS_BYTES) / UNIT_BYTES) as u32
}

/// Waits for one of `threads`.
async fn acquire(threads: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    let thread = Arc::clone(threads).acquire_owned().await;
    thread.map_err(|_| Error::Stopped)
}

/// What was selected with all effort.
fn all(selected: Selected) -> Selection {
    match selected {
        Selected::Done(chosen) => chosen,
        Selected::TooLong => unreachable!("no range is longer than all effort"),
    }
}

/// Why the store has failed, once it has.
type Failed = watch::Sender<Option<String>>;

/// What failed first is the reason of what follows. Whoever hears of it finds the queue closed.
fn fail(queue: &Queue, failed: &Failed, cause: String) {
    queue.close();
    failed.send_if_modified(|reason| {
        let first = reason.is_none();
        reason.get_or_insert(cause);
        first
    });
}

/// Ends the queue when a thread of the engine ends; by a panic, that is a failure.
struct CloseOnDrop {
    queue: Arc<Queue>,
    failed: Arc<Failed>,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = "a thread of the store has panicked".to_owned();
            fail(&self.queue, &self.failed, cause);
        }
        self.queue.close();
    }
}

/// When the writer ends, nobody answers what still waits in the queue, and the background thread
/// has only its last flush to do.
struct EndOnDrop {
    queue: Arc<Queue>,
    background: Arc<Background>,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.queue.end();
        self.background.stop();
    }
}
