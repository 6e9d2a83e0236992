//! The lessor: which leases there are, and when each ends.
//!
//! Plain numbers, no clock and no lock. In memory a lease is 32 bytes in a hash table and 16 in the
//! order of ends, whatever keys it has.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::expiry::{self, Order};
use super::{Renewal, Standing};
use crate::storage::row::LeaseRow;

/// See the module.
#[derive(Debug, Default)]
pub struct Lessor {
    leases: HashMap<i64, Lease>,
    order: Order,
    /// Leases whose last sign of life is to be kept.
    to_keep: BTreeSet<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl_secs: u64,
    deadline: u64,
    /// The last sign of life that is kept, or waits to be.
    seen: u64,
}

impl Lessor {
    /// Makes room for so many leases at once: growing step by step takes half as much again.
    pub fn expect(&mut self, count: usize) {
        self.leases.reserve(count);
    }

    /// Adds a lease, in the place of another of its id if there is one.
    pub fn insert(&mut self, id: i64, row: LeaseRow, deadline: u64) {
        let lease = Lease {
            ttl_secs: row.ttl_secs,
            deadline,
            seen: row.seen_millis,
        };
        if let Some(before) = self.leases.insert(id, lease) {
            self.order.remove(id, before.deadline);
            self.to_keep.remove(&id);
        }
        self.order.insert(id, deadline);
    }

    /// Takes a lease out.
    pub fn remove(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.order.remove(id, lease.deadline);
            self.to_keep.remove(&id);
        }
    }

    /// Lets a lease run anew from `begin` on, unless it has run out at `now`.
    pub fn renew(&mut self, id: i64, now: u64, begin: u64) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else {
            return Renewal::Unknown;
        };
        if lease.deadline <= now {
            return Renewal::Due;
        }
        let deadline = begin + lease.ttl_secs * 1000;
        self.order.remove(id, lease.deadline);
        self.order.insert(id, deadline);
        lease.deadline = deadline;
        // After a crash the server may have lost time that a sign was kept at.
        if now.saturating_sub(lease.seen) >= expiry::keep_after_millis(lease.ttl_secs) {
            lease.seen = now;
            self.to_keep.insert(id);
        }
        Renewal::Renewed(lease.ttl_secs)
    }

    /// How a lease stands at `now`. As in etcd a lease just granted has a second less than it was
    /// granted, in whole seconds.
    pub fn look(&self, id: i64, now: u64) -> Option<Standing> {
        let lease = self.leases.get(&id)?;
        let left_millis = lease.deadline as i64 - now as i64;
        let begun = i64::from(left_millis > 0);
        Some(Standing {
            left_secs: (left_millis - begun) / 1000,
            ttl_secs: lease.ttl_secs,
        })
    }

    /// Whether there is such a lease, run out or not.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// All ids, soonest to end first.
    pub fn in_order(&self) -> Vec<i64> {
        let mut ids = Vec::with_capacity(self.len());
        ids.extend(self.order.iter());
        ids
    }

    /// When the first one ends.
    pub fn first_deadline(&self) -> Option<u64> {
        self.order.first_deadline()
    }

    /// Whether a lease has run out at `now`.
    pub fn is_due(&self, id: i64, now: u64) -> bool {
        self.leases
            .get(&id)
            .is_some_and(|lease| lease.deadline <= now)
    }

    /// Those that have run out at `now`, in order.
    pub fn due(&self, now: u64) -> impl Iterator<Item = i64> {
        self.order.due(now)
    }

    /// Up to `count` leases whose last sign of life is to be kept.
    pub fn to_keep(&self, count: usize) -> impl Iterator<Item = (i64, LeaseRow)> {
        self.to_keep.iter().take(count).map(|id| {
            let lease = &self.leases[id];
            let row = LeaseRow {
                ttl_secs: lease.ttl_secs,
                seen_millis: lease.seen,
            };
            (*id, row)
        })
    }

    /// How many signs of life are to be kept.
    pub fn to_keep_len(&self) -> usize {
        self.to_keep.len()
    }

    /// A sign of life is kept; there may have been a later one.
    pub fn kept(&mut self, id: i64, seen_millis: u64) {
        let is_last = |lease: &Lease| lease.seen == seen_millis;
        if self.leases.get(&id).is_some_and(is_last) {
            self.to_keep.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ttl_secs: u64) -> LeaseRow {
        LeaseRow {
            ttl_secs,
            seen_millis: 0,
        }
    }

    #[test]
    fn a_lease_that_has_run_out_is_never_renewed() {
        let mut lessor = Lessor::default();
        lessor.insert(1, row(10), 10_000);
        assert_eq!(lessor.renew(2, 0, 0), Renewal::Unknown);
        assert_eq!(lessor.renew(1, 9_999, 10_000), Renewal::Renewed(10));
        assert_eq!(lessor.first_deadline(), Some(20_000));
        assert_eq!(lessor.due(19_999).count(), 0);
        assert_eq!(lessor.renew(1, 20_000, 20_000), Renewal::Due);
        assert_eq!(lessor.due(20_000).collect::<Vec<_>>(), [1]);
        lessor.remove(1);
        assert_eq!(lessor.renew(1, 20_000, 20_000), Renewal::Unknown);
        assert!(lessor.is_empty() && lessor.first_deadline().is_none());
    }

    #[test]
    fn what_is_left_is_told_in_whole_seconds() {
        let mut lessor = Lessor::default();
        lessor.insert(1, row(10), 10_000);
        let left = |now| lessor.look(1, now).map(|standing| standing.left_secs);
        let told = [0, 1, 1000, 9_000, 9_999, 10_000, 10_999, 11_000].map(left);
        assert_eq!(told, [9, 9, 8, 0, 0, 0, 0, -1].map(Some));
    }

    #[test]
    fn a_sign_of_life_is_kept_now_and_then() {
        let mut lessor = Lessor::default();
        lessor.insert(1, row(100), 100_000);
        for now in (50_000..=850_000).step_by(50_000) {
            lessor.renew(1, now, now);
        }
        // Four TTLs behind the grant, and four behind that: the last is kept.
        let seen_millis = 800_000;
        let newest = LeaseRow {
            seen_millis,
            ..row(100)
        };
        assert_eq!(lessor.to_keep(9).collect::<Vec<_>>(), [(1, newest)]);
        lessor.kept(1, 400_000);
        assert_eq!(lessor.to_keep_len(), 1);
        lessor.kept(1, 800_000);
        assert_eq!(lessor.to_keep_len(), 0);
    }

    /// Signs of life that cannot be kept, since the disk is full, do not pile up.
    #[test]
    fn no_more_signs_are_to_be_kept_than_there_are_leases() {
        let mut lessor = Lessor::default();
        for id in 0..10 {
            lessor.insert(id, row(100), 100_000);
            for now in (0..10_000_000).step_by(50_000) {
                lessor.renew(id, now, now);
            }
        }
        assert_eq!(lessor.to_keep_len(), 10);
        lessor.remove(0);
        lessor.insert(1, row(100), 100_000);
        assert_eq!(lessor.to_keep_len(), 8);
    }
}
