//! What the writer asks itself: to expire leases that have run out, now and then to keep signs of
//! life for the next start, and to clear the alarm of the quota once there is room.
//!
//! Its commands wait in the queue behind what waits there, one of each kind at most, so that
//! thousands of leases that end at once hold nobody up.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::command::{Answer, Command, Expire};
use super::quota;
use crate::lease::Leases;
use crate::mvcc::Error;
use crate::storage::store::Store;

/// Leases that end within this time are removed together.
const TICK_MILLIS: u64 = 100;

/// After what time a command that failed is asked anew.
const RETRY_MILLIS: u64 = 1000;

/// Signs of life are kept after one second, then after two, and so on up to a minute: so a server
/// that is started over and over keeps half of the time at least that it has served, and one that
/// runs on hardly writes for it.
const KEEP_PAUSE_MILLIS_MIN: u64 = 1000;
const KEEP_PAUSE_MILLIS_MAX: u64 = 60_000;

/// See the module. Times are served time, in milliseconds.
#[derive(Debug)]
pub struct Upkeep {
    leases: Arc<Leases>,
    expire_from: u64,
    clear_from: u64,
    keep_at: u64,
    keep_pause: u64,
    /// More signs of life wait to be kept.
    more: bool,
}

impl Upkeep {
    /// That of a server which starts now.
    pub fn new(leases: Arc<Leases>) -> Upkeep {
        Upkeep {
            expire_from: 0,
            clear_from: 0,
            keep_at: leases.now_millis() + KEEP_PAUSE_MILLIS_MIN,
            keep_pause: KEEP_PAUSE_MILLIS_MIN,
            more: false,
            leases,
        }
    }

    /// What is to be asked now.
    pub fn due(&self, store: &Store) -> impl Iterator<Item = Command> + use<> {
        let now = self.leases.now_millis();
        let first = self.leases.first_deadline();
        let expire = first.is_some_and(|first| first.max(self.expire_from) <= now);
        let keep = first.is_some() && self.keep_at <= now;
        let clear = self.clear_from <= now && quota::is_over(store);
        [
            expire.then_some(Command::Expire(Expire::Next)),
            keep.then_some(Command::KeepSigns),
            clear.then_some(Command::ClearOwn),
        ]
        .into_iter()
        .flatten()
    }

    /// How long nothing is to be asked, but `patience` at most.
    pub fn pause(&self, patience: Duration) -> Duration {
        let Some(first) = self.leases.first_deadline() else {
            return patience;
        };
        let expire_at = first.max(self.expire_from).next_multiple_of(TICK_MILLIS);
        let next = expire_at.min(self.keep_at);
        let pause = next.saturating_sub(self.leases.now_millis());
        patience.min(Duration::from_millis(pause))
    }

    /// Whether more signs of life wait to be kept than the last command could.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// What came of a command that was asked.
    pub fn answered(&mut self, command: &Command, outcome: &Result<Answer, Error>) {
        // Most commands need no look at the clock.
        let now = || self.leases.now_millis();
        if let Command::KeepSigns = command {
            self.more = matches!(outcome, Ok(Answer::KeptSigns { more: true }));
        }
        match (command, outcome) {
            (Command::Expire(Expire::Next), Err(_)) => self.expire_from = now() + RETRY_MILLIS,
            (Command::KeepSigns, Ok(Answer::KeptSigns { more: false })) => {
                self.keep_at = now() + self.keep_pause;
                self.keep_pause = (2 * self.keep_pause).min(KEEP_PAUSE_MILLIS_MAX);
            }
            (Command::KeepSigns, Err(_)) => self.keep_at = now() + RETRY_MILLIS,
            (Command::ClearOwn, Ok(Answer::Cleared { was_there, .. })) if *was_there => {
                info!("there is room under the quota again: cleared the alarm NOSPACE");
            }
            (Command::ClearOwn, _) => self.clear_from = now() + RETRY_MILLIS,
            _ => {}
        }
    }
}
