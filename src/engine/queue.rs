//! The queue before the writer: bounded, first come, first served.
//!
//! A command waits outside until there is room, by number and by bytes, and keeps its room until
//! it is answered. The writer takes all that wait at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::command::Asked;

/// Room in the queue, in units of [`UNIT_BYTES`]: 64 MiB, or 65,536 small commands.
pub const ROOM_UNITS: usize = 65_536;

/// One unit of room; every command takes one at least.
pub const UNIT_BYTES: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// Room for commands; closed when no more are taken.
    pub room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Vec<Asked>,
    nudged: bool,
    closed: bool,
}

/// What the writer finds.
#[derive(Debug)]
pub struct Taken {
    /// All commands that waited.
    pub commands: Vec<Asked>,
    /// No more will come.
    pub closed: bool,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            inner: Mutex::default(),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(ROOM_UNITS)),
        }
    }
}

impl Queue {
    /// Adds a command that has its room; gives it back if the queue is closed.
    pub fn push(&self, asked: Asked) -> Result<(), Asked> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(asked);
        }
        inner.waiting.push(asked);
        if inner.waiting.len() == 1 {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Makes the writer look up, though no command came.
    pub fn nudge(&self) {
        self.inner().nudged = true;
        self.wake.notify_one();
    }

    /// No more commands are taken; those that wait still are.
    pub fn close(&self) {
        self.room.close();
        self.inner().closed = true;
        self.wake.notify_one();
    }

    /// No more commands are taken, and those that wait are dropped: nobody is there to answer.
    pub fn end(&self) {
        self.close();
        let dropped = std::mem::take(&mut self.inner().waiting);
        drop(dropped);
    }

    /// Whether no more commands are taken.
    pub fn is_closed(&self) -> bool {
        self.inner().closed
    }

    /// Takes all that wait; waits for the first at most `patience`.
    pub fn take(&self, patience: Duration) -> Taken {
        let inner = self.inner();
        let (mut inner, _) = self
            .wake
            .wait_timeout_while(inner, patience, |inner| {
                inner.waiting.is_empty() && !inner.nudged && !inner.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        inner.nudged = false;
        Taken {
            commands: std::mem::take(&mut inner.waiting),
            closed: inner.closed,
        }
    }

    /// Waits for a nudge, or for the end, at most `patience`; commands go on waiting.
    pub fn await_nudge(&self, patience: Duration) {
        let inner = self.inner();
        let (mut inner, _) = self
            .wake
            .wait_timeout_while(inner, patience, |inner| !inner.nudged && !inner.closed)
            .unwrap_or_else(PoisonError::into_inner);
        inner.nudged = false;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
