//! A write txn: changes that share one main revision.
//!
//! Reads what is newest, its own changes included, and adds to it at revisions that no view
//! reaches yet. It is only begun once its command can no longer be refused, so it is never undone
//! by itself; the writer takes back whole batches. A txn that changes nothing takes no revision.

use super::Error;
use super::request::{DeleteRange, Deleted, Put, Written};
use crate::storage::record::{KeyValue, Record};
use crate::storage::revision::Revision;
use crate::storage::row::{Change, Stamp};
use crate::storage::store::Store;
use crate::storage::view::View;

/// Reads whatever is newest.
pub const NEWEST: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub struct WriteTxn<'a> {
    store: &'a mut Store,
    main: u64,
    sub: u32,
    stamp: Option<Stamp>,
}

/// What [`WriteTxn::delete_attached`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detached {
    /// So many keys are deleted.
    pub keys: usize,
    /// The lease has no more.
    pub all: bool,
}

impl<'a> WriteTxn<'a> {
    /// A txn behind all that the store has decided.
    pub fn begin(store: &'a mut Store, stamp: Stamp) -> WriteTxn<'a> {
        WriteTxn {
            main: store.revision() + 1,
            store,
            sub: 0,
            stamp: Some(stamp),
        }
    }

    /// What is there, this txn's changes included, when read at [`NEWEST`].
    pub fn view(&self) -> &View {
        self.store.view()
    }

    /// Its revision once it has changed something, the one before until then.
    pub fn revision(&self) -> u64 {
        if self.sub > 0 {
            self.main
        } else {
            self.main - 1
        }
    }

    /// Writes one key. That the old value or lease is there to be kept was checked before.
    pub fn put(&mut self, put: &Put) -> Result<Written, Error> {
        let view = self.view();
        let before = view.newest(&put.key, NEWEST)?;
        let before = before.filter(|met| !met.version.tombstone);
        let kept = match &before {
            Some(met) if put.prev_kv || put.ignore_value => Some(KeyValue::of(&view.record(met)?)?),
            _ => None,
        };
        let version = before.map(|met| met.version);
        let record = Record {
            key: &put.key,
            create: version.map_or(self.main, |version| version.create),
            modified: self.main,
            version: version.map_or(0, |version| version.version) + 1,
            value: match &kept {
                Some(kept) if put.ignore_value => &kept.value,
                _ => &put.value,
            },
            lease: match version {
                Some(version) if put.ignore_lease => version.lease,
                _ => put.lease,
            },
        };
        let lease = record.lease;
        self.push(&record);
        if let Some(version) = version
            && version.lease != lease
        {
            self.leave(version.lease);
        }
        Ok(Written {
            revision: self.main,
            prev_kv: kept.filter(|_| put.prev_kv),
        })
    }

    /// Deletes the keys of a range, in key order.
    pub fn delete_range(&mut self, delete: &DeleteRange) -> Result<Deleted, Error> {
        let mut there = Vec::new();
        let view = self.view();
        view.walk(&delete.range, NEWEST, |key, met| {
            if !met.version.tombstone {
                there.push((key.to_vec(), met));
            }
            true
        })?;
        let mut prev_kvs = Vec::new();
        if delete.prev_kv {
            for (_, met) in &there {
                prev_kvs.push(KeyValue::of(&view.record(met)?)?);
            }
        }
        for (key, met) in &there {
            self.push(&Record::tombstone(key));
            self.leave(met.version.lease);
        }
        Ok(Deleted {
            revision: self.revision(),
            deleted: there.len() as u64,
            prev_kvs,
        })
    }

    /// Deletes the keys that `lease` has, in key order, but no more once the batch takes
    /// `batch_bytes_max` in the log.
    pub fn delete_attached(
        &mut self,
        lease: i64,
        batch_bytes_max: usize,
    ) -> Result<Detached, Error> {
        let keys = self.view().attached(lease, NEWEST)?;
        for (place, key) in keys.iter().enumerate() {
            if self.store.batch_bytes() >= batch_bytes_max {
                return Ok(Detached {
                    keys: place,
                    all: false,
                });
            }
            self.push(&Record::tombstone(key));
            self.leave(lease);
        }
        Ok(Detached {
            keys: keys.len(),
            all: true,
        })
    }

    fn push(&mut self, record: &Record<'_>) {
        let change = Change::new(self.next(), record, self.stamp.take());
        self.store.push(change);
    }

    /// The last change took its key from `lease`, unless that is none.
    fn leave(&mut self, lease: i64) {
        if lease != 0 {
            self.store.leave(lease);
        }
    }

    /// Ends the txn: its revision is taken, if it changed something.
    pub fn end(self) -> u64 {
        let revision = self.revision();
        self.store.advance_to(revision);
        revision
    }

    fn next(&mut self) -> Revision {
        let sub = self.sub;
        self.sub = sub.checked_add(1).expect("no txn has 2^32 changes");
        Revision {
            main: self.main,
            sub,
        }
    }
}
