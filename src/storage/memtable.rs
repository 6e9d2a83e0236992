//! The memtable: changes that are logged, or about to be, and not yet in redb.
//!
//! Two orders of the same changes: of time (what the flush writes to `history`), and of keys (what
//! reads merge with `index`). Changes are only ever added, in order of time, and never altered, so
//! a reader at revision R passes over what is newer than R. The one exception is
//! [`Memtable::truncate`]: the writer takes back changes that no reader was ever shown.
//!
//! The lock is held for one change by the writer, and for at most [`CHUNK`] keys by a reader.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use smallvec::SmallVec;

use super::key_range::Bounds;
use super::record::key_of;
use super::row::{Change, Version};

/// Most keys that a reader takes under one hold of the lock.
pub const CHUNK: usize = 256;

/// What a change costs beyond its record: its place in both orders, and what an allocation costs.
const OVERHEAD_BYTES: usize = 160;

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
    /// Places in `by_time`, ascending.
    by_key: BTreeMap<KeyOf, SmallVec<[u32; 4]>>,
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
        inner.newest(inner.by_key.get(key)?, main)
    }

    /// Appends to `out` at most [`CHUNK`] keys within the bounds that have a version at or before
    /// `main`, in key order. Fewer than [`CHUNK`] means that there are no more.
    pub fn chunk(&self, bounds: Bounds<'_>, main: u64, out: &mut Vec<Found>) {
        let inner = self.read();
        let keys = inner.by_key.range::<[u8], _>(bounds);
        let found = keys.filter_map(|(_, places)| inner.newest(places, main));
        out.extend(found.take(CHUNK));
    }

    /// The `place`-th change in order of time, and those behind it in its run.
    pub fn with_run<T>(&self, place: usize, read: impl FnOnce(&[Change]) -> T) -> T {
        let inner = self.read();
        let run = inner.by_time.get(place / RUN).map_or(&[][..], |run| run);
        read(run.get(place % RUN..).unwrap_or(&[]))
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
        for (key, places) in inner.by_key.range::<[u8], _>((from, Bound::Unbounded)) {
            if versions.len() >= rows_min.max(1) {
                break;
            }
            let version = |place: &u32| (Arc::clone(&key.0), inner.at(*place).version());
            versions.extend(places.iter().map(version));
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
        self.bytes += cost(&change);
        self.rows_bytes += rows_cost(&change);
        match self.by_key.get_mut(change.key()) {
            Some(places) => places.push(place),
            None => {
                let key = KeyOf(Arc::clone(&change.record));
                self.by_key.insert(key, SmallVec::from_slice(&[place]));
            }
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
        let run = self.by_time.last_mut().expect("a change to take back");
        let change = run.pop().expect("no run is empty");
        if run.is_empty() {
            self.by_time.pop();
        }
        self.len -= 1;
        self.bytes -= cost(&change);
        self.rows_bytes -= rows_cost(&change);
        let places = self.by_key.get_mut(change.key());
        let places = places.expect("each change has its key");
        places.pop();
        if places.is_empty() {
            self.by_key.remove(change.key());
        }
    }

    fn at(&self, place: u32) -> &Change {
        &self.by_time[place as usize / RUN][place as usize % RUN]
    }

    fn newest(&self, places: &[u32], main: u64) -> Option<Found> {
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

fn cost(change: &Change) -> usize {
    change.record.len() + OVERHEAD_BYTES
}

fn rows_cost(change: &Change) -> usize {
    change.record.len() + change.key().len() + ROWS_BYTES
}
