//! The writer: the one thread that changes the store.
//!
//! Commands wait in a bounded queue. The writer takes all that wait, judges them in order, logs
//! what it decided together, and only then tells anyone:
//! ```text
//! queue ─► judge a, b, c ─► log (one sync) ─► publish view, leases ─► reply to a, b, c ─► wake watches
//! ```
//! Invariants:
//! - No event precedes the sync of its batch: watches read what is published.
//! - No reply precedes the sync of its batch; that of a refused command neither, since it may have
//!   read what the batch wrote.
//! - Changes judged but not yet logged stand at revisions that no view reaches.
//! - A batch that the disk has no room for is taken back whole, and judged again without what
//!   would add data.
//!
//! If an append or its sync fails, the writer ends, and the process with it: docs/durability.md.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::background::{Background, Waiter};
use super::command::{Answer, Asked, Command, Reply};
use super::compactor::Compactor;
use super::judge::judge;
use super::queue::{Queue, Taken};
use super::quota;
use super::replies;
use super::upkeep::Upkeep;
use crate::clock::Clock;
use crate::lease::Leases;
use crate::lease::pending::Pending;
use crate::mvcc::{self, Error};
use crate::storage;
use crate::storage::store::Store;

/// Most commands that share one sync: their answers wait for one another.
const BATCH_COMMANDS_MAX: usize = 4096;

/// Age at which unsettled changes are flushed, however few: small flushes cost 9–15 KB a put.
const FLUSH_AGE_MILLIS: u64 = 10 * 60 * 1000;

/// How long the writer waits without looking up.
const PATIENCE: Duration = Duration::from_secs(1);

type Outcome = Result<Answer, Error>;

/// See the module.
pub struct Writer {
    store: Store,
    leases: Pending,
    upkeep: Upkeep,
    compactor: Compactor,
    queue: Arc<Queue>,
    background: Arc<Background>,
    /// Tells the newest revision to those who watch.
    published: watch::Sender<u64>,
    clock: Clock,
    /// A physical compaction or a defragmentation waits for a flush.
    seal_wanted: bool,
    sealed_millis: u64,
}

impl Writer {
    /// A writer for `store`.
    pub fn new(
        store: Store,
        leases: Arc<Leases>,
        compactor: Compactor,
        queue: Arc<Queue>,
        background: Arc<Background>,
        published: watch::Sender<u64>,
        clock: Clock,
    ) -> Writer {
        Writer {
            store,
            leases: Pending::new(Arc::clone(&leases)),
            upkeep: Upkeep::new(leases),
            compactor,
            queue,
            background,
            sealed_millis: clock.monotonic_millis(),
            published,
            clock,
            seal_wanted: false,
        }
    }

    /// Serves the queue until it is closed; then has everything settled.
    pub fn run(mut self) -> Result<(), storage::Error> {
        loop {
            self.await_the_disk();
            let upkeep = self.upkeep.due(&self.store).map(Asked::by_the_writer);
            for asked in upkeep.chain(self.compactor.due(self.store.revision())) {
                // A queue that is closed takes no more.
                let _ = self.queue.push(asked);
            }
            let patience = self.compactor.pause(self.upkeep.pause(PATIENCE));
            let Taken { commands, closed } = self.queue.take(patience);
            let mut commands = commands.into_iter().peekable();
            while commands.peek().is_some() {
                self.serve(commands.by_ref().take(BATCH_COMMANDS_MAX).collect())?;
            }
            if closed {
                break;
            }
            // Nothing of the view of before is held while there is nothing to do.
            self.store.begin_batch();
            self.seal_if_due();
        }
        // So the next start knows all of the time that was served.
        if !self.leases.leases().is_empty() {
            self.serve(vec![Asked::by_the_writer(Command::KeepSigns)])?;
            while self.upkeep.has_more() {
                self.serve(vec![Asked::by_the_writer(Command::KeepSigns)])?;
            }
        }
        self.settle();
        Ok(())
    }

    /// If the disk falls behind, commands wait in the queue, and their senders outside it.
    fn await_the_disk(&mut self) {
        self.seal_if_due();
        while self.store.is_overdue() && self.can_flush() {
            self.background.await_flush();
            self.seal_if_due();
        }
    }

    fn can_flush(&self) -> bool {
        !self.store.space().is_full() && !self.background.has_ended()
    }

    fn serve(&mut self, mut batch: Vec<Asked>) -> Result<(), storage::Error> {
        let outcomes = loop {
            match self.decide(&batch) {
                Ok(outcomes) => break outcomes,
                // The background thread is opening the database anew.
                Err(error @ storage::Error::Closed) => {
                    self.take_back();
                    if self.background.has_ended() {
                        return Err(error);
                    }
                    if self.queue.is_closed() {
                        break batch.iter().map(|_| Err(Error::Stopped)).collect();
                    }
                    self.queue.await_nudge(PATIENCE);
                }
                Err(storage::Error::NoSpace) => {
                    self.take_back();
                    if !self.store.space().give_up()? {
                        // Not even the reserve was enough.
                        break batch.iter().map(|_| Err(Error::NoSpace)).collect();
                    }
                }
                Err(storage::Error::TooLarge) => {
                    self.take_back();
                    if batch.len() == 1 {
                        break vec![Err(Error::RequestTooLarge)];
                    }
                    // Whatever is too large by itself is found by halves.
                    let rest = batch.split_off(batch.len() / 2);
                    self.serve(batch)?;
                    return self.serve(rest);
                }
                Err(error) => return Err(error),
            }
        };
        self.leases.publish(|| self.store.publish());
        let mut answers = Vec::with_capacity(batch.len());
        let mut rooms = Vec::with_capacity(batch.len());
        for (asked, outcome) in batch.into_iter().zip(outcomes) {
            self.upkeep.answered(&asked.command, &outcome);
            match asked.command {
                Command::Compact { physical: true, .. } => {
                    self.wait_for_sweep(asked.reply, outcome, asked.room);
                }
                Command::Defragment => {
                    self.wait_for_defragmentation(asked.reply, outcome, asked.room);
                }
                _ => {
                    answers.push((asked.reply, outcome));
                    rooms.extend(asked.room);
                }
            }
        }
        replies::send(answers);
        drop(rooms);
        let newest = self.store.revision();
        self.published.send_if_modified(|published| {
            let is_new = *published != newest;
            *published = newest;
            is_new
        });
        Ok(())
    }

    fn take_back(&mut self) {
        self.store.take_back();
        self.leases.take_back();
    }

    /// Judges the batch and puts it on disk.
    fn decide(&mut self, batch: &[Asked]) -> Result<Vec<Outcome>, storage::Error> {
        self.store.begin_batch();
        let millis = self.clock.wall_millis();
        let mut outcomes = Vec::with_capacity(batch.len());
        for asked in batch {
            match judge(&mut self.store, &mut self.leases, &asked.command, millis) {
                Err(mvcc::Error::Storage(error)) => return Err(error),
                outcome => outcomes.push(outcome),
            }
        }
        self.store.commit()?;
        Ok(outcomes)
    }

    /// A physical compaction, refused or not, is answered when all is swept that was compacted.
    fn wait_for_sweep(
        &mut self,
        reply: Reply,
        outcome: Outcome,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let refused = matches!(outcome, Err(ref error) if !matches!(error, Error::Compacted));
        let Some(floor) = self.store.view().floor.filter(|_| !refused) else {
            replies::send(vec![(reply, outcome)]);
            return;
        };
        if self.store.view().settled().meta.swept >= floor {
            replies::send(vec![(reply, outcome)]);
            return;
        }
        self.seal_wanted = true;
        self.background.wait_for_sweep(Waiter {
            floor,
            reply,
            outcome,
            _room: room,
        });
    }

    /// A defragmentation begins when all is swept that was compacted before it.
    fn wait_for_defragmentation(
        &mut self,
        reply: Reply,
        outcome: Outcome,
        room: Option<OwnedSemaphorePermit>,
    ) {
        if outcome.is_err() {
            replies::send(vec![(reply, outcome)]);
            return;
        }
        let floor = self.store.view().floor.unwrap_or(0);
        self.seal_wanted |= self.store.view().settled().meta.swept < floor;
        self.background.defragment(Waiter {
            floor,
            reply,
            outcome,
            _room: room,
        });
    }

    fn seal_if_due(&mut self) {
        let now = self.clock.monotonic_millis();
        let aged = now - self.sealed_millis >= FLUSH_AGE_MILLIS && self.store.has_unsettled();
        let wanted = self.seal_wanted || quota::wants_a_flush(&self.store);
        // The thread shows what it has flushed before it is done with it.
        if (self.store.is_due() || wanted || aged)
            && !self.background.is_flushing()
            && let Some(sealed) = self.store.seal()
        {
            self.seal_wanted = false;
            self.sealed_millis = now;
            self.background.flush(sealed);
        }
    }

    /// Flushes all that is left, unless that cannot be done: then the log keeps it.
    fn settle(&mut self) {
        while self.store.has_unsettled() && self.can_flush() {
            if self.background.is_flushing() {
                self.background.await_flush();
            } else if let Some(sealed) = self.store.seal() {
                self.background.flush(sealed);
            }
        }
    }
}
