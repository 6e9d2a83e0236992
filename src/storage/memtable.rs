//! The memtable: changes that are logged, or about to be, and not yet in redb.
//!
//! Two views of the same changes: in order of time (what the flush writes to `history`), and by
//! key (what reads merge with `index`). Changes are only ever added, in order of time, and never
//! altered, so a reader at revision R passes over what is newer than R. The one exception is
//! [`Memtable::truncate`]: the writer takes back changes that no reader was ever shown.
//!
//! The lock is held for one change by the writer, and for at most [`CHUNK`] keys by a reader.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use smallvec::SmallVec;

use super::row::{Change, Version};

/// Most keys that a reader takes under one hold of the lock.
pub const CHUNK: usize = 256;

/// What a change costs beyond its record, measured over a million puts: its place in both orders.
const OVERHEAD_BYTES: usize = 240;

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
    by_key: BTreeMap<Bytes, SmallVec<[u32; 4]>>,
    bytes: usize,
}

/// A key and its newest version as of some revision.
#[derive(Debug, Clone)]
pub struct Found {
    /// The key.
    pub key: Bytes,
    /// What the index knows of the version.
    pub version: Version,
    /// The version record.
    pub record: Bytes,
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
        let (key, places) = inner.by_key.get_key_value(key)?;
        inner.newest(key, places, main)
    }

    /// Appends to `out` at most [`CHUNK`] keys within the bounds that have a version at or before
    /// `main`, in key order. Fewer than [`CHUNK`] means that there are no more.
    pub fn chunk(&self, bounds: (Bound<&[u8]>, Bound<&[u8]>), main: u64, out: &mut Vec<Found>) {
        let inner = self.read();
        let keys = inner.by_key.range::<[u8], _>(bounds);
        let found = keys.filter_map(|(key, places)| inner.newest(key, places, main));
        out.extend(found.take(CHUNK));
    }

    /// The `place`-th change in order of time, and those behind it in its run.
    pub fn with_run<T>(&self, place: usize, read: impl FnOnce(&[Change]) -> T) -> T {
        let inner = self.read();
        let run = inner.by_time.get(place / RUN).map_or(&[][..], |run| run);
        read(run.get(place % RUN..).unwrap_or(&[]))
    }

    /// All versions of all keys, in key order and oldest first; for the flush, which alone reads
    /// a sealed table this long.
    pub fn for_each_by_key<E>(
        &self,
        mut visit: impl FnMut(&[u8], &Version) -> Result<(), E>,
    ) -> Result<(), E> {
        let inner = self.read();
        for (key, places) in &inner.by_key {
            for place in places {
                visit(key, &inner.at(*place).version)?;
            }
        }
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        // A panic in a holder ends the process, so a poisoned table is never read on.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, change: Change) {
        if let Some(last) = self.len.checked_sub(1) {
            let last = self.at(last as u32).version.revision;
            let next = change.version.revision;
            assert!(next > last, "history runs on: {next} after {last}");
        }
        let place = u32::try_from(self.len).expect("a memtable is flushed long before 2^32 rows");
        self.bytes += cost(&change);
        self.by_key
            .entry(change.key.clone())
            .or_default()
            .push(place);
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
        let places = self
            .by_key
            .get_mut(&change.key)
            .expect("each change has its key");
        places.pop();
        if places.is_empty() {
            self.by_key.remove(&change.key);
        }
    }

    fn at(&self, place: u32) -> &Change {
        &self.by_time[place as usize / RUN][place as usize % RUN]
    }

    fn newest(&self, key: &Bytes, places: &[u32], main: u64) -> Option<Found> {
        let at_or_before = |place: &u32| self.at(*place).version.revision.main <= main;
        let place = match places.last() {
            Some(last) if at_or_before(last) => last,
            _ => places[..places.partition_point(at_or_before)].last()?,
        };
        let change = self.at(*place);
        Some(Found {
            key: key.clone(),
            version: change.version,
            record: change.record.clone(),
        })
    }
}

fn cost(change: &Change) -> usize {
    change.record.len() + OVERHEAD_BYTES
}
