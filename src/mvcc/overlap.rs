//! Whether a txn would change a key twice.
//!
//! The rules are etcd's, with the two holes that its clients may have come to use: a nested txn
//! may delete what an earlier one puts, and a delete of all keys from one on is not looked at
//! (script `txn_overlap` has each case).

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use bytes::Bytes;

use super::Error;
use super::request::{Op, Txn};
use crate::storage::key_range::{End, KeyRange};

/// Refuses a txn that changes a key twice in either of its branches.
pub fn check(txn: &Txn) -> Result<(), Error> {
    changes(&txn.success)?;
    changes(&txn.failure)?;
    Ok(())
}

/// Keys put, and ranges deleted, by a list of operations.
#[derive(Default)]
struct Changes {
    puts: HashSet<Bytes>,
    deletes: Ranges,
}

fn changes(ops: &[Op]) -> Result<Changes, Error> {
    let mut all = Changes::default();
    for op in ops {
        if let Op::DeleteRange(delete) = op {
            all.deletes.add(&delete.range);
        }
    }
    for op in ops {
        let Op::Txn(txn) = op else { continue };
        let success = changes(&txn.success)?;
        let failure = changes(&txn.failure)?;
        for key in &success.puts {
            all.put(key)?;
        }
        for key in &failure.puts {
            // Only one branch is taken, so the two may put one key.
            if !success.puts.contains(key) {
                all.put(key)?;
            }
        }
        all.deletes.add_all(success.deletes);
        all.deletes.add_all(failure.deletes);
    }
    for op in ops {
        if let Op::Put(put) = op {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

impl Changes {
    fn put(&mut self, key: &Bytes) -> Result<(), Error> {
        if self.deletes.contain(key) || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// Disjoint half-open ranges of keys, by their starts.
#[derive(Default)]
struct Ranges {
    ends: BTreeMap<Bytes, Bytes>,
}

impl Ranges {
    fn add(&mut self, range: &KeyRange) {
        let end = match &range.end {
            End::Single => {
                let mut end = Vec::with_capacity(range.start.len() + 1);
                end.extend_from_slice(&range.start);
                end.push(0);
                end.into()
            }
            End::Before(end) => end.clone(),
            // etcd takes the zero byte that stands for "no end" as a key, before all starts.
            End::Unbounded => return,
        };
        self.unite(range.start.clone(), end);
    }

    fn add_all(&mut self, other: Ranges) {
        for (start, end) in other.ends {
            self.unite(start, end);
        }
    }

    fn unite(&mut self, mut start: Bytes, mut end: Bytes) {
        if start >= end {
            return;
        }
        while let Some((s, e)) = self.last_started_by(&end)
            && e >= start
        {
            start = start.min(s.clone());
            end = end.max(e);
            self.ends.remove(&s);
        }
        self.ends.insert(start, end);
    }

    fn contain(&self, key: &Bytes) -> bool {
        self.last_started_by(key).is_some_and(|(_, end)| *key < end)
    }

    fn last_started_by(&self, key: &Bytes) -> Option<(Bytes, Bytes)> {
        let mut before = self
            .ends
            .range::<Bytes, _>((Bound::Unbounded, Bound::Included(key)));
        let (start, end) = before.next_back()?;
        Some((start.clone(), end.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The disjoint ranges hold what any of the added ones held.
        #[test]
        fn united_ranges_hold_the_same_keys(
            added in prop::collection::vec((0..20u8, 0..20u8), 0..10),
        ) {
            let mut ranges = Ranges::default();
            for (start, end) in &added {
                ranges.unite(Bytes::from(vec![*start]), Bytes::from(vec![*end]));
            }
            for key in 0..20u8 {
                let held = added.iter().any(|(start, end)| (*start..*end).contains(&key));
                prop_assert_eq!(ranges.contain(&Bytes::from(vec![key])), held);
            }
        }
    }
}
