//! Leases: keys that live only while their holder gives signs of life.
//!
//! ```text
//! grant, revoke, expire ─► Pending   the writer's batch, until it is on disk
//!                             └─► publish ─► Leases
//! keep-alive, look, list ─────────────────► Leases ─► Lessor      under one lock, never the queue
//! ```
//! What holds:
//! - A lease that has run out is never renewed: the clock does not go back, and it is read under
//!   the lock that a renewal and the choice of what expires both hold. So either a renewal comes
//!   first and moves the end, or the lease goes.
//! - Nobody but the writer sees a grant or a revoke before it is on disk.
//!
//! Time is **served time**: the milliseconds that the server has run on this data in all. Downtime
//! does not count; what a crash loses of it leases gain. Which keys a lease has is not known here:
//! see [`View::attached`](crate::storage::view::View::attached).

pub mod expiry;
pub mod lessor;
pub mod pending;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::lessor::Lessor;
use crate::clock::Clock;
use crate::storage;
use crate::storage::row::{LeaseRow, TTL_SECS_MAX};
use crate::storage::store::Store;

/// What the server's settings say of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The shortest TTL; what is asked below is raised to it.
    pub ttl_secs_min: u64,
    /// What a lease gets on top of its TTL when the server starts: one election timeout.
    pub extension_millis: u64,
}

impl Timing {
    /// As etcd reckons: the shortest TTL is one and a half election timeouts, in whole heartbeats
    /// and then in whole seconds.
    pub fn new(election: Duration, heartbeat: Duration) -> Timing {
        let election_millis = election.as_millis() as u64;
        let heartbeat_millis = (heartbeat.as_millis() as u64).max(1);
        let ticks = (election_millis / heartbeat_millis).saturating_mul(3) / 2;
        let ttl_millis_min = ticks.saturating_mul(heartbeat_millis);
        Timing {
            ttl_secs_min: ttl_millis_min.div_ceil(1000).max(1),
            extension_millis: election_millis,
        }
    }

    /// The TTL that is granted where `asked` is asked for; `None` if that is too long.
    pub fn grant(&self, asked: i64) -> Option<u64> {
        let asked = u64::try_from(asked).unwrap_or(0);
        (asked <= TTL_SECS_MAX).then_some(asked.max(self.ttl_secs_min))
    }
}

impl Default for Timing {
    /// That of etcd's defaults.
    fn default() -> Timing {
        Timing::new(Duration::from_secs(1), Duration::from_millis(100))
    }
}

/// What came of a keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// There is no such lease.
    Unknown,
    /// The lease has run out, and is yet to be removed.
    Due,
    /// It runs anew for so many seconds.
    Renewed(u64),
}

/// A lease as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whole seconds that are left; negative if it should have been removed before.
    pub left_secs: i64,
    /// The TTL that was granted.
    pub ttl_secs: u64,
}

/// All leases that are granted, for any thread.
#[derive(Debug)]
pub struct Leases {
    lessor: Mutex<Lessor>,
    timing: Timing,
    clock: Clock,
    /// What the clock said when the server had served `base_millis`.
    began_millis: u64,
    base_millis: u64,
}

impl Leases {
    /// The leases of a server that starts now and has run for `served_millis` before.
    pub fn new(timing: Timing, clock: Clock, served_millis: u64) -> Leases {
        Leases {
            lessor: Mutex::default(),
            timing,
            began_millis: clock.monotonic_millis_up(),
            clock,
            base_millis: served_millis,
        }
    }

    /// The leases of a store that was opened just now.
    pub fn of(store: &Store, timing: Timing, clock: Clock) -> Result<Leases, storage::Error> {
        let leases = Leases::new(timing, clock, store.served());
        leases.expect(store.view().leases_max());
        store
            .view()
            .for_each_lease(|id, row| leases.restore(id, row))?;
        Ok(leases)
    }

    /// Makes room for so many leases, which are about to be restored.
    pub fn expect(&self, count: usize) {
        self.lessor().expect(count);
    }

    /// Adds a lease that was there when the server started; or one is found to be gone.
    pub fn restore(&self, id: i64, row: Option<LeaseRow>) {
        let Some(row) = row else {
            return self.lessor().remove(id);
        };
        let row = LeaseRow {
            ttl_secs: row.ttl_secs.max(self.timing.ttl_secs_min),
            ..row
        };
        let deadline = expiry::deadline_at_start(&row, self.base_millis, &self.timing);
        self.lessor().insert(id, row, deadline);
    }

    /// What the settings say.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Served time, in milliseconds that have passed.
    pub fn now_millis(&self) -> u64 {
        let now = self.clock.monotonic_millis();
        self.base_millis + now.saturating_sub(self.began_millis)
    }

    /// The same, rounded up: a TTL that began before now would end before it has passed.
    fn begin_millis(&self) -> u64 {
        self.base_millis + (self.clock.monotonic_millis_up() - self.began_millis)
    }

    /// Lets a lease run anew, unless it has run out.
    pub fn renew(&self, id: i64) -> Renewal {
        let mut lessor = self.lessor();
        let now = self.now_millis();
        lessor.renew(id, now, self.begin_millis())
    }

    /// How a lease stands; `None` if it is not there.
    pub fn look(&self, id: i64) -> Option<Standing> {
        let lessor = self.lessor();
        lessor.look(id, self.begin_millis())
    }

    /// Whether a lease has run out.
    pub fn is_due(&self, id: i64) -> bool {
        let lessor = self.lessor();
        lessor.is_due(id, self.now_millis())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lessor().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All ids, soonest to end first.
    pub fn in_order(&self) -> Vec<i64> {
        self.lessor().in_order()
    }

    /// When the first one ends, in served time.
    pub fn first_deadline(&self) -> Option<u64> {
        self.lessor().first_deadline()
    }

    fn lessor(&self) -> MutexGuard<'_, Lessor> {
        // A panic in a holder ends the process, so it is never read on.
        self.lessor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::pending::Pending;
    use super::*;

    /// Whichever part of a millisecond the start, a grant and a renewal fall into.
    #[test]
    fn no_lease_ends_before_its_ttl_has_passed() {
        for [start, granted, renewed] in [[0, 0, 0], [900, 900, 900], [1, 999, 500], [999, 1, 0]] {
            let micros = Arc::new(AtomicU64::new(5_000_000 + start));
            let clock = Clock::Manual(Arc::clone(&micros));
            let leases = Arc::new(Leases::new(Timing::default(), clock, 7));
            let mut pending = Pending::new(Arc::clone(&leases));
            let ends_at = |pending: &Pending, end| {
                micros.store(end - 1, Ordering::Relaxed);
                assert!(pending.due(1).is_empty(), "{start} {granted} {renewed}");
                micros.store(end + 2000, Ordering::Relaxed);
                assert_eq!(pending.due(1), [1], "{start} {granted} {renewed}");
            };
            micros.store(6_000_000 + granted, Ordering::Relaxed);
            pending.grant(1, 2);
            pending.publish(|| ());
            assert_eq!(leases.look(1).map(|lease| lease.left_secs), Some(1));
            ends_at(&pending, 8_000_000 + granted);
            micros.store(7_000_000 + renewed, Ordering::Relaxed);
            assert_eq!(leases.renew(1), Renewal::Renewed(2));
            assert_eq!(leases.look(1).map(|lease| lease.left_secs), Some(1));
            ends_at(&pending, 9_000_000 + renewed);
        }
    }

    /// And after a start, one election timeout later.
    #[test]
    fn no_start_takes_a_part_of_a_millisecond() {
        let micros = Arc::new(AtomicU64::new(5_000_900));
        let clock = Clock::Manual(Arc::clone(&micros));
        let leases = Arc::new(Leases::new(Timing::default(), clock, 7));
        let row = LeaseRow {
            ttl_secs: 2,
            seen_millis: 7,
        };
        leases.restore(1, Some(row));
        assert_eq!(leases.now_millis(), 7);
        let pending = Pending::new(leases);
        micros.store(8_000_899, Ordering::Relaxed);
        assert!(pending.due(1).is_empty());
        micros.store(8_001_000, Ordering::Relaxed);
        assert_eq!(pending.due(1), [1]);
    }

    #[test]
    fn the_shortest_ttl_is_as_etcd_reckons_it() {
        let of = |election, heartbeat| {
            let [election, heartbeat] = [election, heartbeat].map(Duration::from_millis);
            Timing::new(election, heartbeat).ttl_secs_min
        };
        assert_eq!(of(1000, 100), 2);
        assert_eq!(of(500, 100), 1);
        assert_eq!(of(5000, 1000), 7);
        assert_eq!(of(50_000, 10), 75);
        let timing = Timing::default();
        let longest = TTL_SECS_MAX as i64;
        let granted = [i64::MIN, 0, 1, 2, 3, longest].map(|asked| timing.grant(asked));
        assert_eq!(granted[..5], [2, 2, 2, 2, 3].map(Some));
        assert_eq!(granted[5], Some(TTL_SECS_MAX));
        assert_eq!(timing.grant(longest + 1), None);
    }
}
