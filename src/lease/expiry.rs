//! What ends next, and when a lease ends that has seen the server start anew.
//!
//! All times are served time, in milliseconds.

use std::collections::BTreeSet;

use super::Timing;
use crate::storage::row::{LeaseRow, TTL_SECS_MAX};

/// Bounds of how much later than its last kept sign of life a renewal is kept.
const KEEP_AFTER_MILLIS_MIN: u64 = 60_000;
const KEEP_AFTER_MILLIS_MAX: u64 = 600_000;

/// Leases in the order in which they end. Each step costs O(log n).
#[derive(Debug, Default)]
pub struct Order(BTreeSet<(u64, i64)>);

impl Order {
    /// Adds a lease.
    pub fn insert(&mut self, id: i64, deadline: u64) {
        self.0.insert((deadline, id));
    }

    /// Takes a lease out.
    pub fn remove(&mut self, id: i64, deadline: u64) {
        self.0.remove(&(deadline, id));
    }

    /// When the first one ends.
    pub fn first_deadline(&self) -> Option<u64> {
        self.0.first().map(|(deadline, _)| *deadline)
    }

    /// Those that have run out at `now`, in order.
    pub fn due(&self, now: u64) -> impl Iterator<Item = i64> {
        self.0.range(..=(now, i64::MAX)).map(|(_, id)| *id)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = i64> {
        self.0.iter().map(|(_, id)| *id)
    }
}

/// When a lease ends that was there when the server started at `now`.
///
/// As in etcd, its TTL runs anew, and one election timeout comes on top: whoever could not reach
/// the server has all that to do so. Unlike in etcd, not at every start without end. What is kept
/// of a holder's signs of life is at most [`keep_after_millis`] too old, and a holder who gave none
/// for a TTL of served time had its chance; so the last start that can extend a lease comes no
/// later than both together behind the sign that is kept.
pub fn deadline_at_start(row: &LeaseRow, now: u64, timing: &Timing) -> u64 {
    let ttl = row.ttl_secs * 1000;
    let last_sign = row
        .seen_millis
        .saturating_add(keep_after_millis(row.ttl_secs));
    let last_start = last_sign.saturating_add(ttl);
    now.min(last_start) + ttl + timing.extension_millis
}

/// Where the served time of a store begins whose leases another server has granted: so far from 0
/// that there is room before it for the sign of life of [`row_with_left`], whatever is left.
pub const ELSEWHERE_MILLIS: u64 = 2 * TTL_SECS_MAX * 1000 + KEEP_AFTER_MILLIS_MAX;

/// What is kept at `now` of a lease that is to end, if the server starts then, when as much is over
/// as is left of it, which is no more than its TTL: [`deadline_at_start`] the other way round.
/// There have to be [`ELSEWHERE_MILLIS`] before `now`.
pub fn row_with_left(ttl_secs: u64, left_secs: u64, now: u64) -> LeaseRow {
    let used = (ttl_secs - left_secs.min(ttl_secs)) * 1000;
    LeaseRow {
        ttl_secs,
        seen_millis: now - used - ttl_secs * 1000 - keep_after_millis(ttl_secs),
    }
}

/// How much later than the last sign of life that was kept the next one is kept: seldom enough
/// that keep-alives leave next to nothing in the log, often enough that it tells.
pub fn keep_after_millis(ttl_secs: u64) -> u64 {
    let four_ttls = ttl_secs * 4000;
    four_ttls.clamp(KEEP_AFTER_MILLIS_MIN, KEEP_AFTER_MILLIS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_come_first_that_end_first() {
        let mut order = Order::default();
        for (id, deadline) in [(7, 30), (-7, 10), (1, 20), (2, 20)] {
            order.insert(id, deadline);
        }
        assert_eq!(order.first_deadline(), Some(10));
        assert_eq!(order.due(9).count(), 0);
        assert_eq!(order.due(20).collect::<Vec<_>>(), [-7, 1, 2]);
        order.remove(-7, 10);
        assert_eq!(order.iter().collect::<Vec<_>>(), [1, 2, 7]);
    }

    /// A holder that gave its last sign within the time that need not be kept, and then none for a
    /// TTL, has all of another TTL; starts after that add nothing.
    #[test]
    fn starts_extend_a_lease_but_not_without_end() {
        let timing = Timing::default();
        for ttl_secs in [2, 10, 60, 1000, 9_000_000_000] {
            let ttl = ttl_secs * 1000;
            let row = LeaseRow {
                ttl_secs,
                seen_millis: 5000,
            };
            let last_sign = 5000 + keep_after_millis(ttl_secs);
            for now in [5000, last_sign, last_sign + ttl] {
                assert_eq!(deadline_at_start(&row, now, &timing), now + ttl + 1000);
            }
            let end = deadline_at_start(&row, last_sign + ttl, &timing);
            assert_eq!(deadline_at_start(&row, last_sign + ttl + 1, &timing), end);
            assert_eq!(deadline_at_start(&row, u64::MAX / 2, &timing), end);
        }
    }
    #[test]
    fn a_lease_of_another_server_has_what_is_left_of_it() {
        let timing = Timing::default();
        let now = ELSEWHERE_MILLIS;
        for ttl_secs in [1, 10, 301, TTL_SECS_MAX] {
            for left_secs in [1, ttl_secs / 2, ttl_secs, u64::MAX] {
                let row = row_with_left(ttl_secs, left_secs, now);
                let left = left_secs.min(ttl_secs) * 1000;
                assert_eq!(deadline_at_start(&row, now, &timing), now + left + 1000);
                // The first renewal is kept, so that the next start knows of it.
                assert!(now - row.seen_millis >= keep_after_millis(ttl_secs));
            }
        }
    }
}
