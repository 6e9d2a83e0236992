//! The background thread: flush first, then sweep, then defragment.
//!
//! It is handed one sealed memtable at a time, finds by itself what the floor lets it sweep, and
//! tells those who wait for a sweep when it is done. Between two slices of a sweep it rests, unless
//! there is a flush. On a full disk it tries again every second.
//!
//! A defragmentation begins when nothing is left to sweep, and nothing is swept until it has ended.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::command::{Answer, Reply};
use super::defragmenting::{self, Defragmenting};
use super::queue::Queue;
use super::replies;
use crate::clock::Clock;
use crate::mvcc::Error;
use crate::storage;
use crate::storage::settler::{Outcome, SLICE_ROWS, Settler};
use crate::storage::store::{Sealed, Views};

/// How long the thread rests before it tries again what the disk had no room for, and looks for
/// memtables that can be freed.
const PAUSE: Duration = Duration::from_secs(1);

/// Every so many who wait, those are let go who wait no more: they would keep their room in the queue,
/// and in the end nobody else had any.
const GONE_EVERY: usize = 256;

/// How a sweep leaves time for others: for so many rows, such a rest. What stands between two
/// slices, which are larger, is the rest for all of theirs.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Rows, at least one.
    pub rows: u64,
    /// The rest for them.
    pub rest: Duration,
}

/// No rest.
impl Default for Pace {
    fn default() -> Pace {
        Pace {
            rows: 1,
            rest: Duration::ZERO,
        }
    }
}

impl Pace {
    fn micros_a_slice(self) -> u64 {
        let micros = self.rest.as_micros() * SLICE_ROWS as u128 / u128::from(self.rows.max(1));
        u64::try_from(micros).unwrap_or(u64::MAX)
    }
}

/// The rest between two slices of a sweep.
#[derive(Debug)]
pub struct Rest {
    micros: u64,
    until: u64,
    clock: Clock,
}

impl Rest {
    /// Of this pace.
    pub fn new(pace: Pace, clock: Clock) -> Rest {
        Rest {
            micros: pace.micros_a_slice(),
            until: 0,
            clock,
        }
    }

    fn begin(&mut self) {
        self.until = self.clock.monotonic_micros().saturating_add(self.micros);
    }

    fn left(&self) -> Duration {
        Duration::from_micros(self.until.saturating_sub(self.clock.monotonic_micros()))
    }
}

/// One who waits until compaction at `floor` is swept, or for a defragmentation that may begin then.
#[derive(Debug)]
pub struct Waiter {
    /// The compaction's revision.
    pub floor: u64,
    /// Who waits.
    pub reply: Reply,
    /// What the answer will be.
    pub outcome: Result<Answer, Error>,
    /// Its share of the queue, until it is answered.
    pub _room: Option<OwnedSemaphorePermit>,
}

impl Waiter {
    /// Whether anybody still waits.
    fn is_there(&self) -> bool {
        !self.reply.sender.is_closed()
    }
}

/// What the background thread is asked to do.
#[derive(Debug, Default)]
pub struct Background {
    inner: Mutex<Inner>,
    change: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    sealed: Option<Arc<Sealed>>,
    waiters: VecDeque<Waiter>,
    /// Those who wait for a defragmentation that has not begun.
    defragment: Vec<Waiter>,
    /// Ends once nothing is left to flush, or the disk is full.
    stopping: bool,
    /// The last piece of work met a full disk.
    stuck: bool,
    ended: bool,
}

impl Background {
    /// Hands over a sealed memtable; the one before must be flushed.
    pub fn flush(&self, sealed: Sealed) {
        let mut inner = self.inner();
        assert!(inner.sealed.is_none(), "one memtable is flushed at a time");
        inner.sealed = Some(Arc::new(sealed));
        self.change.notify_all();
    }

    /// Whether a memtable is being flushed.
    pub fn is_flushing(&self) -> bool {
        self.inner().sealed.is_some()
    }

    /// Whether the thread has ended: nothing will be flushed or swept any more.
    pub fn has_ended(&self) -> bool {
        self.inner().ended
    }

    /// Waits until no memtable is being flushed, or the disk is full.
    pub fn await_flush(&self) {
        let inner = self.inner();
        let flushing = |inner: &mut Inner| inner.sealed.is_some() && !inner.stuck && !inner.ended;
        let waited = self.change.wait_timeout_while(inner, PAUSE, flushing);
        drop(waited);
    }

    /// Answers `waiter` when its compaction is swept; not at all if the thread has ended.
    pub fn wait_for_sweep(&self, waiter: Waiter) {
        let mut inner = self.inner();
        if !inner.ended {
            if inner.waiters.len().is_multiple_of(GONE_EVERY) {
                inner.waiters.retain(Waiter::is_there);
            }
            inner.waiters.push_back(waiter);
            self.change.notify_all();
        }
    }

    /// Answers `waiter` when a defragmentation has ended that begins after this; not at all if the
    /// thread has ended.
    pub fn defragment(&self, waiter: Waiter) {
        let mut inner = self.inner();
        if !inner.ended {
            // What the others asked for is done for this one's sake, be it gone as well.
            if inner.defragment.len().is_multiple_of(GONE_EVERY) {
                inner.defragment.retain(Waiter::is_there);
            }
            inner.defragment.push(waiter);
            self.change.notify_all();
        }
    }

    /// Makes the thread end when its work is done.
    pub fn stop(&self) {
        self.inner().stopping = true;
        self.change.notify_all();
    }

    /// The thread's body: works until told to stop.
    pub fn run(
        &self,
        mut settler: Settler,
        mut rest: Rest,
        views: &Views,
        queue: &Queue,
    ) -> Result<(), storage::Error> {
        // By a panic too.
        let _end = EndOnDrop(self);
        self.work(&mut settler, &mut rest, views, queue)
    }

    fn work(
        &self,
        settler: &mut Settler,
        rest: &mut Rest,
        views: &Views,
        queue: &Queue,
    ) -> Result<(), storage::Error> {
        let mut outcome = Outcome::More;
        let mut defragmenting = Defragmenting::default();
        loop {
            let pause = match outcome {
                Outcome::More => rest.left().max(defragmenting.take_rest()),
                Outcome::Done | Outcome::NoSpace => PAUSE,
            };
            let ready = all_swept(views).filter(|_| settler.can_defragment());
            let next = self.next(pause, outcome == Outcome::NoSpace, ready);
            if queue.is_closed() {
                defragmenting.stop(settler)?;
                self.inner().defragment.clear();
            }
            let Some(sealed) = next else {
                return Ok(());
            };
            settler.check_disk()?;
            outcome = match sealed.filter(|_| !defragmenting.is_first(settler)) {
                Some(sealed) => {
                    let begun_micros = Clock::System.monotonic_micros();
                    let outcome = settler.flush(&sealed)?;
                    let took_micros = Clock::System.monotonic_micros() - begun_micros;
                    defragmenting.flushed(settler, took_micros);
                    if outcome == Outcome::Done {
                        self.inner().sealed = None;
                        self.change.notify_all();
                        // There may be something to sweep now.
                        Outcome::More
                    } else {
                        outcome
                    }
                }
                None if settler.is_defragmenting() => defragmenting.go_on(settler)?,
                None if all_swept(views).is_none() => {
                    let outcome = settler.sweep()?;
                    if outcome == Outcome::More {
                        rest.begin();
                    }
                    outcome
                }
                None => match self.ready_to_defragment(ready) {
                    waiters if waiters.is_empty() => Outcome::Done,
                    waiters => defragmenting.begin(settler, waiters)?,
                },
            };
            let stuck = outcome == Outcome::NoSpace;
            self.set_stuck(stuck);
            // What was given up is for the work that waits; only then it is kept again.
            if stuck {
                defragmenting::refuse(std::mem::take(&mut self.inner().defragment));
            } else {
                settler.restore_space()?;
            }
            // The writer may wait for this flush, or hold the memtable that can be freed.
            queue.nudge();
            settler.free_retired();
            self.answer(views);
        }
    }

    /// Waits for work: `Some(None)` is a look at the rest, `None` is the end. `ready` is up to where
    /// all is swept, if a defragmentation can begin.
    fn next(
        &self,
        pause: Duration,
        no_space: bool,
        ready: Option<u64>,
    ) -> Option<Option<Arc<Sealed>>> {
        let mut inner = self.inner();
        if !pause.is_zero() {
            let idle = |inner: &mut Inner| {
                let mut defragment = inner.defragment.iter();
                let begins = defragment.any(|waiter| Some(waiter.floor) <= ready);
                (inner.sealed.is_none() || no_space) && !begins && !inner.stopping
            };
            let waited = self.change.wait_timeout_while(inner, pause, idle);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if inner.stopping && (inner.sealed.is_none() || no_space) {
            return None;
        }
        Some(inner.sealed.clone())
    }

    /// Those who wait for a defragmentation that can begin now.
    fn ready_to_defragment(&self, ready: Option<u64>) -> Vec<Waiter> {
        let mut inner = self.inner();
        let waiters = inner
            .defragment
            .extract_if(.., |waiter| Some(waiter.floor) <= ready);
        waiters.collect()
    }

    fn set_stuck(&self, stuck: bool) {
        self.inner().stuck = stuck;
        self.change.notify_all();
    }

    fn answer(&self, views: &Views) {
        let view = views.load();
        let meta = &view.settled().meta;
        let mut answers = Vec::new();
        let mut inner = self.inner();
        while let Some(waiter) = inner
            .waiters
            .pop_front_if(|waiter| waiter.floor <= meta.swept)
        {
            answers.push((waiter.reply, waiter.outcome));
        }
        drop(inner);
        replies::send(answers);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells all who wait for the thread that it has ended.
struct EndOnDrop<'a>(&'a Background);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.ended = true;
        inner.waiters.clear();
        inner.defragment.clear();
        drop(inner);
        self.0.change.notify_all();
    }
}

/// Up to where compaction is swept, if nothing is left to sweep.
fn all_swept(views: &Views) -> Option<u64> {
    let view = views.load();
    let meta = &view.settled().meta;
    (meta.swept >= meta.floor.unwrap_or(0)).then_some(meta.swept)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Who has gone keeps no room in the queue, however long what was asked for takes.
    #[test]
    fn those_who_have_gone_are_let_go() {
        let background = Background::default();
        let (stays, _answer) = oneshot::channel();
        let mut stays = Some(stays);
        for floor in 0..10 * GONE_EVERY as u64 {
            let waiter = || {
                let (gone, _) = oneshot::channel();
                Waiter {
                    floor,
                    reply: Reply {
                        sender: gone,
                        home: None,
                    },
                    outcome: Ok(Answer::Defragmented),
                    _room: None,
                }
            };
            background.wait_for_sweep(waiter());
            let mut asked = waiter();
            asked.reply.sender = stays.take().unwrap_or(asked.reply.sender);
            background.defragment(asked);
            let inner = background.inner();
            assert!((1..=GONE_EVERY).contains(&inner.waiters.len()));
            assert!((1..=GONE_EVERY + 1).contains(&inner.defragment.len()));
            assert!(inner.defragment[0].is_there(), "who waits goes on waiting");
        }
    }

    #[test]
    fn a_rest_is_that_of_a_whole_slice() {
        let time = Arc::new(AtomicU64::new(0));
        let rest = |rows, rest| Rest::new(Pace { rows, rest }, Clock::Manual(Arc::clone(&time)));
        let mut etcds = rest(1000, Duration::from_millis(10));
        assert_eq!(etcds.left(), Duration::ZERO);
        etcds.begin();
        assert_eq!(etcds.left(), Duration::from_secs(2));
        time.store(1_500_000, Ordering::Relaxed);
        assert_eq!(etcds.left(), Duration::from_millis(500));
        time.store(9_000_000, Ordering::Relaxed);
        assert_eq!(etcds.left(), Duration::ZERO);
        for (rows, pause, expected) in [
            (
                1_000_000,
                Duration::from_secs(1),
                Duration::from_millis(200),
            ),
            (u64::MAX, Duration::from_secs(1), Duration::ZERO),
            (
                1,
                Duration::MAX,
                Duration::from_micros(u64::MAX - 9_000_000),
            ),
        ] {
            let mut rest = rest(rows, pause);
            rest.begin();
            assert_eq!(rest.left(), expected);
        }
    }
}
