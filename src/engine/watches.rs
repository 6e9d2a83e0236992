//! Watches on one network thread: the hub, and who calls it when.
//!
//! ```text
//! writer ─► published ─► attend: advance, step by step ─► answers ─► stream's task
//!                           └─► catch_up, a task a stream: plan ─► read ─► settle
//! ```
//! The hub is touched by one thread only, so its lock is free whenever it is asked for. What may
//! touch the disk is read on the threads for reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;

use super::Engine;
use crate::mvcc::Error;
use crate::storage;
use crate::watch::answer::{Answer, End, Origin};
use crate::watch::catch_up::{Plan, Slice};
use crate::watch::hub::{Hub, Limits, StreamKey};
use crate::watch::live::Step;
use crate::watch::watcher::Create;

/// Streams whose watchers catch up at a time.
const TURNS: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct Watches {
    engine: Arc<Engine>,
    origin: Origin,
    hub: Mutex<Hub>,
    /// The hub has something to do that was not published.
    stir: Notify,
    /// The hub has come further.
    present: Notify,
    turns: Semaphore,
}

/// One client's stream of watches; closed when it is dropped.
#[derive(Debug)]
pub struct WatchStream {
    watches: Arc<Watches>,
    key: StreamKey,
}

impl Watches {
    /// The watches of a thread, none yet. Answers of `fragment_bytes` are split for those who ask
    /// for that.
    pub fn new(engine: Arc<Engine>, fragment_bytes: usize) -> Watches {
        let identity = engine.identity();
        let origin = Origin {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            term: engine.term(),
        };
        Watches {
            engine,
            origin,
            hub: Mutex::new(Hub::new(origin, Limits::new(fragment_bytes))),
            stir: Notify::new(),
            present: Notify::new(),
            turns: Semaphore::new(TURNS),
        }
    }

    /// What every header says of the server.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Opens a stream.
    pub fn open(self: &Arc<Self>) -> WatchStream {
        WatchStream {
            key: self.hub().open(),
            watches: Arc::clone(self),
        }
    }

    /// Ends all streams, and those to come.
    pub fn stop(&self) {
        self.hub().end_all(End::Stopped);
    }

    /// Hands on what is published, until the store stops. Each network thread runs it as a task.
    pub async fn attend(self: Arc<Self>) {
        let mut published = self.engine.published.clone();
        loop {
            published.borrow_and_update();
            let step = self.hub().advance(&self.engine.view());
            // Behind the step, which may make streams hungry itself: nobody stirs for those.
            let hungry = self.hub().take_hungry();
            for key in hungry {
                tokio::spawn(Arc::clone(&self).catch_up(key));
            }
            self.present.notify_waiters();
            if step == Step::More {
                yield_now().await;
                continue;
            }
            let listening = self.hub().is_listening();
            tokio::select! {
                changed = published.changed(), if listening => {
                    if changed.is_err() {
                        return self.stop();
                    }
                }
                () = self.stir.notified() => {}
            }
        }
    }

    /// Reads for the stream's watchers that are behind, while its client takes what they hear.
    async fn catch_up(self: Arc<Self>, key: StreamKey) {
        loop {
            // So many streams at a time, in turn: others want the thread as well.
            let Ok(_turn) = self.turns.acquire().await else {
                return;
            };
            let Some(plan) = self.hub().plan(key) else {
                return;
            };
            let plan = Arc::new(plan);
            match self.read(&plan).await {
                Ok(slice) => self.hub().settle(key, &plan, slice),
                // The store stops.
                Err(_) => return self.stop(),
            }
            self.stir.notify_one();
            yield_now().await;
        }
    }

    async fn read(&self, plan: &Arc<Plan>) -> Result<Slice, Error> {
        let view = self.engine.view();
        if plan.is_quick(&view)
            && let Some(slice) = plan.read(&view, true)?
        {
            return Ok(slice);
        }
        drop(view);
        loop {
            let plan = Arc::clone(plan);
            let read = move |view: &_, _: &_| Ok(plan.read(view, false)?);
            match self
                .engine
                .read_apart_on(&self.engine.watch_threads, read)
                .await
            {
                // A full disk keeps the database closed; what is asked for is not lost by waiting.
                Err(Error::Storage(storage::Error::Closed)) => {}
                read => return Ok(read?.expect("what need not be quick is read")),
            }
        }
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchStream {
    /// A number that no other stream of the thread has.
    pub fn number(&self) -> u64 {
        self.key.number()
    }

    /// Makes a watcher.
    pub fn create(&self, create: Create) {
        let view = self.watches.engine.view();
        self.watches.hub().create(self.key, create, &view);
        self.watches.stir.notify_one();
    }

    /// Cancels a watcher.
    pub fn cancel(&self, id: i64) {
        let view = self.watches.engine.view();
        self.watches.hub().cancel(self.key, id, &view);
    }

    /// Asks how far all of the stream's watchers have heard: at least what is published now, or
    /// else there is no answer.
    pub async fn request_progress(&self) {
        let revision = self.watches.engine.view().revision;
        loop {
            let further = self.watches.present.notified();
            {
                let mut hub = self.watches.hub();
                if hub.has_come_to(revision) {
                    return hub.request_progress(self.key);
                }
            }
            further.await;
        }
    }

    /// Tells those watchers that asked for it how far they have heard.
    pub fn notify_progress(&self) {
        self.watches.hub().notify_progress(self.key);
    }

    /// Waits until the client has taken enough for another request to be heard.
    pub async fn room(&self) {
        std::future::poll_fn(|context| self.watches.hub().poll_room(self.key, context)).await;
    }

    /// Ends the stream once the client has taken all that waits.
    pub fn end(&self, end: End) {
        self.watches.hub().end(self.key, end);
    }

    /// The next answer.
    pub fn poll_answer(&self, context: &Context<'_>) -> Poll<Result<Answer, End>> {
        let mut hub = self.watches.hub();
        let answer = hub.take(self.key, context);
        if hub.has_hungry() {
            self.watches.stir.notify_one();
        }
        answer
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.watches.hub().close(self.key);
    }
}
