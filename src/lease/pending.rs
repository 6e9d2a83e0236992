//! What the writer has decided of leases and is not on disk yet.
//!
//! The writer judges against the shared leases and these changes on top. Once the batch is on disk
//! they become everybody's; a batch that is taken back leaves nothing.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use hashbrown::HashMap;

use super::Leases;
use crate::storage::row::LeaseRow;

/// See the module.
#[derive(Debug)]
pub struct Pending {
    leases: Arc<Leases>,
    /// What has become of leases in this batch; `None` is gone.
    changes: HashMap<i64, Option<LeaseRow>>,
    /// Signs of life that this batch keeps.
    kept: Vec<(i64, LeaseRow)>,
}

/// Signs of life to be kept.
#[derive(Debug)]
pub struct Signs {
    /// Leases as they are to be kept.
    pub rows: Vec<(i64, LeaseRow)>,
    /// Served time up to which all that had to be kept is; `None` if there are more to keep.
    pub upto_millis: Option<u64>,
}

impl Pending {
    /// Nothing is decided.
    pub fn new(leases: Arc<Leases>) -> Pending {
        Pending {
            leases,
            changes: HashMap::new(),
            kept: Vec::new(),
        }
    }

    /// The leases that are everybody's.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Whether there is such a lease, run out or not.
    pub fn exists(&self, id: i64) -> bool {
        match self.changes.get(&id) {
            Some(change) => change.is_some(),
            None => self.leases.lessor().contains(id),
        }
    }

    /// An id that no lease has, and that nobody can guess: never 0, never negative.
    pub fn unused_id(&self) -> i64 {
        loop {
            let id = (RandomState::new().build_hasher().finish() >> 1) as i64;
            if id != 0 && !self.exists(id) {
                return id;
            }
        }
    }

    /// Grants a lease; answers what is to be kept of it.
    pub fn grant(&mut self, id: i64, ttl_secs: u64) -> LeaseRow {
        let row = LeaseRow {
            ttl_secs,
            seen_millis: self.leases.now_millis(),
        };
        self.changes.insert(id, Some(row));
        row
    }

    /// Removes a lease.
    pub fn revoke(&mut self, id: i64) {
        self.changes.insert(id, None);
    }

    /// Up to `count` leases that have run out by now, those first that ended first.
    pub fn due(&self, count: usize) -> Vec<i64> {
        let lessor = self.leases.lessor();
        let now = self.leases.now_millis();
        let due = lessor.due(now);
        // What this batch has changed does not stand as it did.
        due.filter(|id| !self.changes.contains_key(id))
            .take(count)
            .collect()
    }

    /// Whether a lease has run out by now.
    pub fn is_due(&self, id: i64) -> bool {
        !self.changes.contains_key(&id) && self.leases.is_due(id)
    }

    /// Takes up to `count` signs of life, to be kept by this batch.
    pub fn keep_signs(&mut self, count: usize) -> Signs {
        let lessor = self.leases.lessor();
        let now = self.leases.now_millis();
        // Once a batch: a second time would keep the same.
        assert!(self.kept.is_empty(), "a batch keeps signs of life once");
        let rows = lessor.to_keep(count);
        // One that this batch has changed is kept by that.
        let rows = rows.filter(|(id, _)| !self.changes.contains_key(id));
        self.kept = rows.collect();
        Signs {
            rows: self.kept.clone(),
            upto_millis: (lessor.to_keep_len() <= count).then_some(now),
        }
    }

    /// The batch is on disk: shows it to everybody, its keys by `show_keys`. Nobody sees a key of a
    /// lease that is not there yet, nor a lease gone and its keys still there. A grant's time begins
    /// now.
    pub fn publish(&mut self, show_keys: impl FnOnce()) {
        if self.changes.is_empty() && self.kept.is_empty() {
            return show_keys();
        }
        let mut lessor = self.leases.lessor();
        show_keys();
        let begin = self.leases.begin_millis();
        for (id, change) in self.changes.drain() {
            match change {
                Some(row) => lessor.insert(id, row, begin + row.ttl_secs * 1000),
                None => lessor.remove(id),
            }
        }
        for (id, row) in self.kept.drain(..) {
            lessor.kept(id, row.seen_millis);
        }
    }

    /// The batch is taken back.
    pub fn take_back(&mut self) {
        self.changes.clear();
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::lease::Timing;

    /// Who sees the keys and then looks for the lease waits until it is shown too.
    #[test]
    fn keys_and_leases_are_shown_at_once() {
        let leases = Arc::new(Leases::new(Timing::default(), Clock::System, 0));
        let mut pending = Pending::new(Arc::clone(&leases));
        let mut shown = 0;
        for change in [Pending::revoke, |pending: &mut Pending, id| {
            pending.grant(id, 2);
        }] {
            change(&mut pending, 1);
            pending.publish(|| {
                shown += 1;
                assert!(leases.lessor.try_lock().is_err());
            });
        }
        pending.publish(|| shown += 1);
        assert_eq!((shown, leases.len()), (3, 1));
    }
}
