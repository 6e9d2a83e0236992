//! A defragmentation, as the background thread goes about it: slices, with flushes in between.
//!
//! It rests after each slice for as long as the slice took. A flush comes first, unless flushes
//! leave no time for anything else: then the two take turns, and a flush waits until as much time
//! was spent on slices as on the flush before.

use std::time::Duration;

use super::background::Waiter;
use super::replies;
use crate::clock::Clock;
use crate::mvcc::Error;
use crate::storage;
use crate::storage::settler::{Outcome, Settler};

/// See the module.
#[derive(Debug, Default)]
pub struct Defragmenting {
    /// Those who wait for the one that is under way.
    waiters: Vec<Waiter>,
    /// For so long slices come before a flush.
    owed_micros: u64,
    rest: Duration,
}

impl Defragmenting {
    /// Begins one for those who wait for it.
    pub fn begin(
        &mut self,
        settler: &mut Settler,
        waiters: Vec<Waiter>,
    ) -> Result<Outcome, storage::Error> {
        assert!(self.waiters.is_empty(), "one is under way at a time");
        self.waiters = waiters;
        self.owed_micros = 0;
        self.go_on(settler)
    }

    /// Takes one step, and answers those who wait when it was the last.
    pub fn go_on(&mut self, settler: &mut Settler) -> Result<Outcome, storage::Error> {
        let begun_micros = Clock::System.monotonic_micros();
        let outcome = settler.defragment()?;
        let took_micros = Clock::System.monotonic_micros() - begun_micros;
        self.owed_micros = self.owed_micros.saturating_sub(took_micros);
        match outcome {
            Outcome::More => self.rest = Duration::from_micros(took_micros),
            Outcome::Done => {
                let answers = self.waiters.drain(..);
                replies::send(
                    answers
                        .map(|waiter| (waiter.reply, waiter.outcome))
                        .collect(),
                );
            }
            Outcome::NoSpace => refuse(std::mem::take(&mut self.waiters)),
        }
        // There may be something to flush or to sweep now.
        Ok(Outcome::More)
    }

    /// The rest that is due before the next slice.
    pub fn take_rest(&mut self) -> Duration {
        std::mem::take(&mut self.rest)
    }

    /// Whether the next slice comes before a flush that waits.
    pub fn is_first(&self, settler: &Settler) -> bool {
        settler.is_defragmenting() && (settler.holds_flushes() || self.owed_micros > 0)
    }

    /// There was a flush, which took so long.
    pub fn flushed(&mut self, settler: &Settler, took_micros: u64) {
        self.owed_micros = took_micros;
        if !settler.is_defragmenting() {
            // It has given its room to the flush.
            refuse(std::mem::take(&mut self.waiters));
        }
    }

    /// Gives it up. Those who wait are told that the store stops.
    pub fn stop(&mut self, settler: &mut Settler) -> Result<(), storage::Error> {
        settler.abandon()?;
        self.waiters.clear();
        Ok(())
    }
}

/// There was no room for what they wait for.
pub fn refuse(waiters: Vec<Waiter>) {
    let refused = waiters.into_iter();
    replies::send(
        refused
            .map(|waiter| (waiter.reply, Err(Error::NoRoom)))
            .collect(),
    );
}
