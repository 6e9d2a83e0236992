//! The memtable: changes that are logged, or about to be, and not yet in redb.
//!
//! Two orders of the same changes: of time (what the flush writes to `history`), and of keys (what
//! reads merge with `index`). Changes are only ever added, in order of time, and never altered, so
//! a reader at revision R passes over what is newer than R. The one exception is
//! [`Memtable::truncate`]: the writer takes back changes that no reader was ever shown.
//!
//! A key is found by hash; the order is only walked, and only added to when a key is new. (In a
//! BTreeMap each comparison follows a pointer: finding one of 200,000 keys took 3 µs.)
//!
//! Beside them lie the leases that were granted, seen and revoked meanwhile, and which changes
//! gave a key to a lease or took it from one: so the flush knows what becomes of `attached`, and a
//! revoke which keys to look at.
//!
//! The lock is held for one change by the writer, and for at most [`CHUNK`] keys by a reader.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use super::key_range::Bounds;
use super::record::key_of;
use super::revision::Revision;
use super::row::{Change, LeaseRow, Version};

/// Most keys that a reader takes under one hold of the lock.
pub const CHUNK: usize = 256;

/// What a change costs beyond its record: its place in both orders, and what an allocation costs.
const OVERHEAD_BYTES: usize = 160;

/// What it costs, beyond that, that a change names a lease, or a lease itself changes.
const LEASE_BYTES: usize = 48;

/// Bytes that the tables take for a row of each, beyond the record and the key, give or take a few.
const ROWS_BYTES: usize = 40;

/// Changes lie in runs of this length, so that growing never moves what is there.
const RUN: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Memtable {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_time: Vec<Vec<Change>>,
    len: usize,
    /// For each key, in the order in which they came, its places in `by_time`, ascending.
    places: Vec<SmallVec<[u32; 4]>>,
    /// From a key, in order, to its number in `places`.
    by_key: BTreeMap<KeyOf, u32>,
    /// Numbers in `places`, by the hash of the key.
    by_hash: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// What became of leases, oldest first; `None` is gone.
    leases: Vec<(i64, Option<LeaseRow>)>,
    /// Lease and place of each change that gave its key to a lease.
    given: BTreeSet<(i64, u32)>,
    /// Place and lease of each change that took its key from a lease, in order.
    taken: Vec<(u32, i64)>,
    bytes: usize,
    rows_bytes: usize,
}

/// A record that stands for its key: so a key is kept once, within the record of its first change.
#[derive(Debug)]
struct KeyOf(Arc<[u8]>);

impl Borrow<[u8]> for KeyOf {
    fn borrow(&self) -> &[u8] {
        key_of(&self.0)
    }
}

impl PartialEq for KeyOf {
    fn eq(&self, other: &KeyOf) -> bool {
        key_of(&self.0) == key_of(&other.0)
    }
}

impl Eq for KeyOf {}

impl PartialOrd for KeyOf {
    fn partial_cmp(&self, other: &KeyOf) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyOf {
    fn cmp(&self, other: &KeyOf) -> Ordering {
        key_of(&self.0).cmp(key_of(&other.0))
    }
}

/// A key's newest version as of some revision.
#[derive(Debug, Clone)]
pub struct Found {
    /// What the index knows of the version.
    pub version: Version,
    /// The version record, and the key in it.
    pub record: Arc<[u8]>,
}

impl Found {
    /// The key.
    pub fn key(&self) -> &[u8] {
        key_of(&self.record)
    }
}

impl Memtable {
    /// Adds a change that is newer than all that are here.
    pub fn push(&self, change: Change) {
        self.write().push(change);
    }

    /// The last change took its key from `lease`.
    pub fn leave(&self, lease: i64) {
        let mut inner = self.write();
        let last = inner.len.checked_sub(1).expect("a change took the key");
        inner.taken.push((last as u32, lease));
        inner.bytes += LEASE_BYTES;
    }

    /// Notes what has become of a lease; `None` is gone.
    pub fn push_lease(&self, id: i64, row: Option<LeaseRow>) {
        let mut inner = self.write();
        inner.leases.push((id, row));
        inner.bytes += LEASE_BYTES;
    }

    /// How often something became of a lease.
    pub fn leases_len(&self) -> usize {
        self.read().leases.len()
    }

    /// Takes back what became of leases behind the first `len` times.
    pub fn truncate_leases(&self, len: usize) {
        let mut inner = self.write();
        let taken_back = inner.leases.len().saturating_sub(len);
        inner.leases.truncate(len);
        inner.bytes -= taken_back * LEASE_BYTES;
    }

    /// What became of leases from the `place`-th time on, up to `count` times, oldest first; `None`
    /// is gone.
    pub fn leases(&self, place: usize, count: usize) -> Vec<(i64, Option<LeaseRow>)> {
        let inner = self.read();
        let rest = inner.leases.get(place..).unwrap_or(&[]);
        rest[..rest.len().min(count)].to_vec()
    }

    /// Visits the records of the keys that a change here gave to `lease`; it need not have them
    /// still.
    pub fn for_each_given(&self, lease: i64, mut visit: impl FnMut(&Arc<[u8]>)) {
        let mut from = Some(0);
        while let Some(place) = from {
            let given = self.given_from(lease, place);
            given.iter().for_each(|(_, record)| visit(record));
            let last = given.get(CHUNK - 1);
            from = last.and_then(|(place, _)| place.checked_add(1));
        }
    }

    /// Place and record of at most [`CHUNK`] changes that gave a key to `lease`, from the `from`-th of
    /// all changes on.
    fn given_from(&self, lease: i64, from: u32) -> Vec<(u32, Arc<[u8]>)> {
        let inner = self.read();
        let given = inner.given.range((lease, from)..=(lease, u32::MAX));
        let record = |(_, place): &(i64, u32)| (*place, Arc::clone(&inner.at(*place).record));
        given.map(record).take(CHUNK).collect()
    }

    /// Each lease and key that a change here put together or took apart, in order, and whether
    /// they are together after the last change. The key is that of the record.
    pub fn attachments(&self) -> Vec<(i64, Arc<[u8]>, bool)> {
        let inner = self.read();
        let given = inner.given.iter().copied();
        let taken = inner.taken.iter().map(|(place, lease)| (*lease, *place));
        let mut pairs = BTreeMap::new();
        for (lease, place) in given.chain(taken) {
            let change = inner.at(place);
            let newest = inner.find(change.key());
            let newest = newest.and_then(|number| inner.newest(number, u64::MAX));
            let together = newest.is_some_and(|found| found.version.lease == lease);
            pairs.insert((lease, KeyOf(Arc::clone(&change.record))), together);
        }
        let pairs = pairs.into_iter();
        pairs
            .map(|((lease, key), together)| (lease, key.0, together))
            .collect()
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.read().len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory taken, in bytes, as the flush threshold counts it.
    pub fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// About what its rows will take in the tables, in bytes.
    pub fn rows_bytes(&self) -> usize {
        self.read().rows_bytes
    }

    /// Takes back the changes behind the first `len`. No view may ever have reached them.
    pub fn truncate(&self, len: usize) {
        let mut inner = self.write();
        while inner.len > len {
            inner.pop();
        }
    }

    /// The newest version of `key` at or before revision `main`.
    pub fn newest(&self, key: &[u8], main: u64) -> Option<Found> {
        let inner = self.read();
        inner.newest(inner.find(key)?, main)
    }

    /// Appends to `out` at most [`CHUNK`] keys within the bounds that have a version at or before
    /// `main`, in key order. Fewer than [`CHUNK`] means that there are no more.
    pub fn chunk(&self, bounds: Bounds<'_>, main: u64, out: &mut Vec<Found>) {
        let inner = self.read();
        let keys = inner.by_key.range::<[u8], _>(bounds);
        let found = keys.filter_map(|(_, number)| inner.newest(*number, main));
        out.extend(found.take(CHUNK));
    }

    /// The `place`-th change in order of time, and those behind it in its run.
    pub fn with_run<T>(&self, place: usize, read: impl FnOnce(&[Change]) -> T) -> T {
        let inner = self.read();
        let run = inner.by_time.get(place / RUN).map_or(&[][..], |run| run);
        read(run.get(place % RUN..).unwrap_or(&[]))
    }

    /// The place in order of time of the first change at or behind `at`.
    pub fn place_of(&self, at: Revision) -> usize {
        let inner = self.read();
        let before = |change: &Change| change.revision < at;
        let whole = inner
            .by_time
            .partition_point(|run| run.last().is_some_and(before));
        let within = inner
            .by_time
            .get(whole)
            .map_or(0, |run| run.partition_point(before));
        (whole * RUN + within).min(inner.len)
    }

    /// The versions of whole keys behind `key`, of all from the first on if that is `None`: in key
    /// order, oldest first, and at least `rows_min` of them unless there are no more. Each comes
    /// with a record of its key.
    pub fn versions_behind(
        &self,
        key: Option<&[u8]>,
        rows_min: usize,
    ) -> Vec<(Arc<[u8]>, Version)> {
        let inner = self.read();
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let mut versions = Vec::new();
        for (key, number) in inner.by_key.range::<[u8], _>((from, Bound::Unbounded)) {
            if versions.len() >= rows_min.max(1) {
                break;
            }
            let version = |place: &u32| (Arc::clone(&key.0), inner.at(*place).version());
            versions.extend(inner.places[*number as usize].iter().map(version));
        }
        versions
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // A panic in a holder ends the process, so a poisoned table is never read on.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, change: Change) {
        if let Some(last) = self.len.checked_sub(1) {
            let last = self.at(last as u32).revision;
            let next = change.revision;
            assert!(next > last, "history runs on: {next} after {last}");
        }
        let place = u32::try_from(self.len).expect("a memtable is flushed long before 2^32 rows");
        let lease = change.version().lease;
        self.bytes += cost(&change, lease);
        self.rows_bytes += rows_cost(&change, lease);
        if lease != 0 {
            self.given.insert((lease, place));
        }
        match self.find(change.key()) {
            Some(number) => self.places[number as usize].push(place),
            None => self.add_key(&change, place),
        }
        match self.by_time.last_mut() {
            Some(run) if run.len() < RUN => run.push(change),
            _ => {
                let mut run = Vec::with_capacity(RUN);
                run.push(change);
                self.by_time.push(run);
            }
        }
        self.len += 1;
    }

    fn pop(&mut self) {
        let last = self.len.checked_sub(1).expect("a change to take back");
        let number = self
            .find(self.at(last as u32).key())
            .expect("each change has its key");
        if self.places[number as usize].len() == 1 {
            self.remove_last_key(number);
        } else {
            self.places[number as usize].pop();
        }
        let run = self.by_time.last_mut().expect("there is a change");
        let change = run.pop().expect("no run is empty");
        if run.is_empty() {
            self.by_time.pop();
        }
        let lease = change.version().lease;
        if lease != 0 {
            self.given.remove(&(lease, last as u32));
        }
        while self
            .taken
            .pop_if(|(place, _)| *place == last as u32)
            .is_some()
        {
            self.bytes -= LEASE_BYTES;
        }
        self.len = last;
        self.bytes -= cost(&change, lease);
        self.rows_bytes -= rows_cost(&change, lease);
    }

    /// Keys go in the reverse order of their coming.
    fn remove_last_key(&mut self, number: u32) {
        assert_eq!(
            number as usize + 1,
            self.places.len(),
            "the last key goes first"
        );
        let record = Arc::clone(&self.at(self.places[number as usize][0]).record);
        let hash = self.hasher.hash_one(key_of(&record));
        if let Ok(entry) = self.by_hash.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
        self.by_key.remove(key_of(&record));
        self.places.pop();
    }

    fn add_key(&mut self, change: &Change, place: u32) {
        let number = self.places.len() as u32;
        self.places.push(SmallVec::from_slice(&[place]));
        self.by_key
            .insert(KeyOf(Arc::clone(&change.record)), number);
        let hash = self.hasher.hash_one(change.key());
        let Inner {
            by_hash,
            by_time,
            places,
            hasher,
            ..
        } = self;
        // Only a growing table hashes what it holds again, and not yet the change to come.
        by_hash.insert_unique(hash, number, |number| {
            hasher.hash_one(first_key(by_time, places, *number))
        });
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        let found = self.by_hash.find(hash, |number| {
            first_key(&self.by_time, &self.places, *number) == key
        });
        found.copied()
    }

    fn at(&self, place: u32) -> &Change {
        &self.by_time[place as usize / RUN][place as usize % RUN]
    }

    fn newest(&self, number: u32, main: u64) -> Option<Found> {
        let places = &self.places[number as usize];
        let at_or_before = |place: &u32| self.at(*place).revision.main <= main;
        // Almost always the last one is asked for.
        let place = match places.last() {
            Some(last) if at_or_before(last) => last,
            _ => places[..places.partition_point(at_or_before)].last()?,
        };
        let change = self.at(*place);
        Some(Found {
            version: change.version(),
            record: Arc::clone(&change.record),
        })
    }
}

/// The key of that number.
fn first_key<'a>(
    by_time: &'a [Vec<Change>],
    places: &[SmallVec<[u32; 4]>],
    number: u32,
) -> &'a [u8] {
    let place = places[number as usize][0] as usize;
    by_time[place / RUN][place % RUN].key()
}

fn cost(change: &Change, lease: i64) -> usize {
    change.record.len() + OVERHEAD_BYTES + usize::from(lease != 0) * LEASE_BYTES
}

fn rows_cost(change: &Change, lease: i64) -> usize {
    let attached = if lease == 0 {
        0
    } else {
        8 + change.key().len()
    };
    change.record.len() + change.key().len() + ROWS_BYTES + attached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::Record;
    use proptest::prelude::*;

    /// Every other key is held by a lease.
    fn change(main: u64, key: u8) -> Change {
        let record = Record {
            key: &[key],
            create: main,
            modified: main,
            version: 1,
            value: b"v",
            lease: i64::from(key % 2) * (1 + main as i64 % 2),
        };
        Change::new(Revision { main, sub: 0 }, &record, None)
    }

    #[test]
    fn places_by_revision() {
        let memtable = Memtable::default();
        let at = |main| Revision { main, sub: 0 };
        assert_eq!(memtable.place_of(at(0)), 0);
        let changes = 2 * RUN as u64 + 5;
        for main in 0..changes {
            memtable.push(change(2 * main + 2, main as u8));
        }
        for main in 0..changes {
            assert_eq!(memtable.place_of(at(2 * main + 1)), main as usize);
            assert_eq!(memtable.place_of(at(2 * main + 2)), main as usize);
        }
        assert_eq!(memtable.place_of(at(2 * changes + 1)), memtable.len());
    }

    /// A lease can have more keys than a reader takes under one hold of the lock.
    #[test]
    fn all_that_was_given_is_visited() {
        for keys in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let memtable = Memtable::default();
            for number in 0..keys {
                let at = Revision {
                    main: 2 + number as u64,
                    sub: 0,
                };
                let key = number.to_be_bytes();
                let lease = 1;
                let (create, modified, version, value) = (at.main, at.main, 1, &b""[..]);
                let record = Record {
                    key: &key,
                    create,
                    modified,
                    version,
                    value,
                    lease,
                };
                memtable.push(Change::new(at, &record, None));
            }
            let mut given = Vec::new();
            memtable.for_each_given(1, |record| given.push(key_of(record).to_vec()));
            let expected: Vec<_> = (0..keys).map(|key| key.to_be_bytes().to_vec()).collect();
            assert_eq!(given, expected);
            memtable.for_each_given(2, |_| panic!("it has no key"));
        }
    }

    proptest! {
        /// What is left after taking back is what was there before, by time, by key and in sum.
        #[test]
        fn taking_back_leaves_no_trace(
            kept in prop::collection::vec(0..5u8, 0..20),
            taken in prop::collection::vec(0..8u8, 0..20),
        ) {
            let (memtable, plain) = (Memtable::default(), Memtable::default());
            for (main, key) in (2..).zip(&kept) {
                memtable.push(change(main, *key));
                plain.push(change(main, *key));
            }
            for (main, key) in (kept.len() as u64 + 2..).zip(&taken) {
                memtable.push(change(main, *key));
                memtable.leave(1);
                memtable.push_lease(1, None);
            }
            memtable.truncate(kept.len());
            memtable.truncate_leases(0);
            prop_assert_eq!(memtable.len(), plain.len());
            prop_assert_eq!(memtable.bytes(), plain.bytes());
            prop_assert_eq!(memtable.rows_bytes(), plain.rows_bytes());
            prop_assert_eq!(memtable.attachments(), plain.attachments());
            prop_assert_eq!(memtable.leases_len(), 0);
            prop_assert_eq!(memtable.versions_behind(None, 100), plain.versions_behind(None, 100));
            for key in 0..8u8 {
                for main in [0, 5, u64::MAX] {
                    let found = memtable.newest(&[key], main).map(|found| found.version);
                    let expected = plain.newest(&[key], main).map(|found| found.version);
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
