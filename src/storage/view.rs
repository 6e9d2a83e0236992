//! A view: the store as of one moment, for any number of readers.
//!
//! ```text
//! active memtable   newest      the writer adds behind the view's revision
//! sealed memtable               being flushed
//! settled state     oldest      one commit of redb
//! ```
//! Every change in a layer is newer than all changes in the layers below it, so the newest version
//! of a key is in the first layer that has one, and a walk over keys merges the three.
//!
//! A view never changes. What it holds of redb pins pages of the file, so a view is taken for one
//! request, or one slice of a long one, and let go.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::key_range::{Bounds, KeyRange};
use super::memtable::{CHUNK, Found, Memtable};
use super::record::key_of;
use super::redb::{Keys, Reader};
use super::revision::Revision;
use super::row::{Change, LeaseRow, Version};
use super::small::Small;

/// See the module.
#[derive(Debug, Clone)]
pub struct View {
    /// The newest revision that is visible.
    pub revision: u64,
    /// Where history begins; `None` before the first compaction.
    pub floor: Option<u64>,
    /// The last command decided: etcd's raft index.
    pub index: u64,
    /// Alarms, users, roles and what else there is little of.
    pub small: Arc<Small>,
    pub(super) active: Arc<Memtable>,
    /// What has become of leases, as far as it is visible: so many of the active memtable.
    pub(super) active_leases: usize,
    pub(super) sealed: Option<Arc<Memtable>>,
    pub(super) settled: Arc<Reader>,
}

/// A version as a walk meets it. The record is there if it lay in a memtable.
#[derive(Debug, Clone)]
pub struct Met {
    /// What the index knows of the version.
    pub version: Version,
    /// The version record; otherwise [`View::record`] has it.
    pub record: Option<Arc<[u8]>>,
}

impl View {
    /// The newest version of `key` at or before revision `main`, which may be a tombstone.
    pub fn newest(&self, key: &[u8], main: u64) -> Result<Option<Met>, Error> {
        for memtable in self.memtables() {
            if let Some(found) = memtable.newest(key, main) {
                return Ok(Some(found.into()));
            }
        }
        let version = self.settled.newest(key, main)?;
        Ok(version.map(|version| Met {
            version,
            record: None,
        }))
    }

    /// The version record of `met`.
    pub fn record(&self, met: &Met) -> Result<Bytes, Error> {
        match &met.record {
            Some(record) => Ok(Bytes::from_owner(Arc::clone(record))),
            None => self.settled.record(met.version.revision),
        }
    }

    /// Visits the keys of `range` that have a version at or before revision `main`, tombstones
    /// included, in order, until `visit` says `false`.
    pub fn walk(
        &self,
        range: &KeyRange,
        main: u64,
        mut visit: impl FnMut(&[u8], Met) -> bool,
    ) -> Result<(), Error> {
        let Some((start, end)) = range.bounds() else {
            return Ok(());
        };
        if range.is_single() {
            if let Some(met) = self.newest(&range.start, main)? {
                visit(&range.start, met);
            }
            return Ok(());
        }
        let mut layers = self
            .memtables()
            .map(|memtable| Layer::new(memtable, (start, end), main));
        let mut upper = layers.next().expect("there is an active memtable");
        let mut lower = layers.next();
        let mut settled = Settled {
            keys: self.settled.keys((start, end), main)?,
            version: None,
        };
        settled.step()?;
        loop {
            // The smallest key of all layers; of equal ones the uppermost counts.
            let mut least = upper.key();
            for key in [lower.as_ref().and_then(Layer::key), settled.key()] {
                least = match (least, key) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            let Some(least) = least else {
                return Ok(());
            };
            let in_upper = upper.key() == Some(least);
            let in_lower = lower
                .as_ref()
                .is_some_and(|lower| lower.key() == Some(least));
            let in_settled = settled.key() == Some(least);
            let met = if in_upper {
                upper.met()
            } else if let Some(lower) = &lower
                && in_lower
            {
                lower.met()
            } else {
                settled.met()
            };
            if !visit(least, met) {
                return Ok(());
            }
            if in_upper {
                upper.step();
            }
            if let Some(lower) = &mut lower
                && in_lower
            {
                lower.step();
            }
            if in_settled {
                settled.step()?;
            }
        }
    }

    /// Visits the changes from `from` up to the view's revision, in order of time, until `visit`
    /// says `false`: when, and the version record. Below the floor, what compaction removes may be
    /// met or not.
    pub fn history(
        &self,
        from: Revision,
        mut visit: impl FnMut(Revision, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut goes_on = true;
        if !self.is_recent(from) {
            self.settled.history_from(from, |at, record| {
                goes_on = visit(at, record);
                goes_on
            })?;
        }
        if goes_on {
            self.unsettled(from, |at, record| visit(at, record));
        }
        Ok(())
    }

    /// Whether the changes from `from` on are all in memory.
    pub fn is_recent(&self, from: Revision) -> bool {
        from.main > self.settled.meta.revision
    }

    /// As [`View::history`], of changes that are all in memory: see [`View::is_recent`].
    pub fn recent(&self, from: Revision, visit: impl FnMut(Revision, &Arc<[u8]>) -> bool) {
        assert!(self.is_recent(from), "{from} is settled");
        self.unsettled(from, visit);
    }

    fn unsettled(&self, from: Revision, mut visit: impl FnMut(Revision, &Arc<[u8]>) -> bool) {
        let mut visible = |change: &Change| {
            change.revision.main <= self.revision && visit(change.revision, &change.record)
        };
        for memtable in self.sealed.iter().chain([&self.active]) {
            let mut place = memtable.place_of(from);
            loop {
                let (passed, more) = memtable.with_run(place, |run| {
                    let chunk = &run[..run.len().min(CHUNK)];
                    let passed = chunk.iter().take_while(|change| visible(change)).count();
                    (passed, passed == chunk.len())
                });
                if !more {
                    return;
                }
                if passed == 0 {
                    break;
                }
                place += passed;
            }
        }
    }

    /// The keys that `lease` has at revision `main`, in order; `main` is this view's, or newer.
    pub fn attached(&self, lease: i64, main: u64) -> Result<Vec<Vec<u8>>, Error> {
        let mut keys = BTreeSet::new();
        // What no memtable knows of is as the tables say.
        let unsettled = |key: &[u8]| {
            let mut found = self.memtables().map(|memtable| memtable.newest(key, main));
            found.find_map(|found| found)
        };
        self.settled.for_each_attached(Some(lease), |_, key| {
            if unsettled(key).is_none() {
                keys.insert(key.to_vec());
            }
            Ok(())
        })?;
        for memtable in self.memtables() {
            memtable.for_each_given(lease, |record| {
                let key = key_of(record);
                if unsettled(key).is_some_and(|found| found.version.lease == lease) {
                    keys.insert(key.to_vec());
                }
            });
        }
        Ok(keys.into_iter().collect())
    }

    /// How many leases there are at most.
    pub fn leases_max(&self) -> usize {
        let unsettled: usize = self.memtables().map(|memtable| memtable.leases_len()).sum();
        self.settled.meta.lease_rows as usize + unsettled
    }

    /// Visits the leases of the tables, and then all that has become of leases since, oldest first;
    /// `None` is gone.
    pub fn for_each_lease(
        &self,
        mut visit: impl FnMut(i64, Option<LeaseRow>),
    ) -> Result<(), Error> {
        self.settled.for_each_lease(|id, row| {
            visit(id, Some(row));
            Ok(())
        })?;
        let sealed = self
            .sealed
            .iter()
            .map(|sealed| (sealed, sealed.leases_len()));
        for (memtable, len) in sealed.chain([(&self.active, self.active_leases)]) {
            for place in (0..len).step_by(CHUNK) {
                for (id, row) in memtable.leases(place, CHUNK.min(len - place)) {
                    visit(id, row);
                }
            }
        }
        Ok(())
    }

    /// What `meta` said at the last commit.
    pub fn settled(&self) -> &Reader {
        &self.settled
    }

    /// Bytes of all rows, as [`StatusResponse.dbSize`](crate::proto::etcdserverpb::StatusResponse)
    /// reports them: settled and not yet settled.
    pub fn data_bytes(&self) -> u64 {
        let meta = &self.settled.meta;
        let waiting: usize = self.memtables().map(|memtable| memtable.rows_bytes()).sum();
        let rest = waiting + self.small.bytes();
        meta.history_bytes + meta.index_bytes + meta.lease_bytes + rest as u64
    }

    fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(&self.sealed)
    }
}

impl From<Found> for Met {
    fn from(found: Found) -> Met {
        Met {
            version: found.version,
            record: Some(found.record),
        }
    }
}

/// A walk over one memtable, a chunk at a time.
struct Layer<'a> {
    memtable: &'a Memtable,
    end: Bound<&'a [u8]>,
    main: u64,
    chunk: Vec<Found>,
    place: usize,
}

impl<'a> Layer<'a> {
    fn new(memtable: &'a Memtable, (start, end): Bounds<'a>, main: u64) -> Layer<'a> {
        let mut chunk = Vec::new();
        memtable.chunk((start, end), main, &mut chunk);
        Layer {
            memtable,
            end,
            main,
            chunk,
            place: 0,
        }
    }

    fn key(&self) -> Option<&[u8]> {
        self.chunk.get(self.place).map(Found::key)
    }

    fn met(&self) -> Met {
        self.chunk[self.place].clone().into()
    }

    fn step(&mut self) {
        self.place += 1;
        if self.place == CHUNK {
            let last = Arc::clone(&self.chunk[CHUNK - 1].record);
            let last = key_of(&last);
            self.chunk.clear();
            self.place = 0;
            let rest = (Bound::Excluded(last), self.end);
            // An end at or before the last key would make the bounds inverted.
            let more = match self.end {
                Bound::Excluded(end) | Bound::Included(end) => last < end,
                Bound::Unbounded => true,
            };
            if more {
                self.memtable.chunk(rest, self.main, &mut self.chunk);
            }
        }
    }
}

/// A walk over the settled keys.
struct Settled<'a> {
    keys: Keys<'a>,
    version: Option<Version>,
}

impl Settled<'_> {
    fn key(&self) -> Option<&[u8]> {
        self.version.map(|_| self.keys.key())
    }

    fn met(&self) -> Met {
        Met {
            version: self.version.expect("the layer has a key"),
            record: None,
        }
    }

    fn step(&mut self) -> Result<(), Error> {
        self.version = self.keys.step()?;
        Ok(())
    }
}
