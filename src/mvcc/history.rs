//! History as etcd keeps it: every change from the floor on, each under etcd's own key.
//!
//! Below the floor, what compaction removes is not shown, whether the sweep has come there or not.

use crate::storage::record::Record;
use crate::storage::revision::Revision;
use crate::storage::view::View;
use crate::storage::{self, Damaged};

/// Changes that are taken from the view at once, so that no lock is held while they are looked at.
const ROWS: usize = 256;

/// The same in bytes; one change may be larger.
const BYTES: usize = 1 << 20;

/// A change, as it is met.
#[derive(Debug, Clone, Copy)]
pub struct Met<'a> {
    /// When it was made.
    pub at: Revision,
    /// The version record, as it lies in the store and in etcd's.
    pub bytes: &'a [u8],
    /// What it says.
    pub record: Record<'a>,
}

impl Met<'_> {
    /// Whether it ended its key's life.
    pub fn is_tombstone(&self) -> bool {
        self.record.version == 0
    }

    /// Its key in etcd's bucket `key`.
    pub fn key(&self) -> Key {
        Key::of(self.at, self.is_tombstone())
    }
}

/// A key of etcd's bucket `key`: main and sub, both of eight bytes, and a mark on a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; 18],
    length: usize,
}

impl Key {
    /// The key of the change at `at`.
    pub fn of(at: Revision, tombstone: bool) -> Key {
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&at.main.to_be_bytes());
        bytes[8] = b'_';
        bytes[9..17].copy_from_slice(&u64::from(at.sub).to_be_bytes());
        bytes[17] = b't';
        Key {
            bytes,
            length: if tombstone { 18 } else { 17 },
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Visits all changes up to revision `upto` in order of time, those that compaction removes among
/// them if they are not swept yet. No lock is held meanwhile.
pub fn each<E: From<storage::Error> + From<Damaged>>(
    view: &View,
    upto: u64,
    mut visit: impl FnMut(Met<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut rows, mut bytes) = (Vec::with_capacity(ROWS), Vec::new());
    let mut from = Revision { main: 0, sub: 0 };
    loop {
        rows.clear();
        bytes.clear();
        view.history(from, |at, record| {
            if at.main <= upto {
                rows.push((at, record.len()));
                bytes.extend_from_slice(record);
            }
            at.main <= upto && rows.len() < ROWS && bytes.len() < BYTES
        })?;
        let mut rest = &bytes[..];
        for &(at, length) in &rows {
            let (bytes, tail) = rest.split_at(length);
            rest = tail;
            let record = Record::decode(bytes)?;
            visit(Met { at, bytes, record })?;
        }
        match rows.last().and_then(|(last, _)| last.next()) {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// Whether compaction at the floor leaves `met`: all above it, below it the newest version of a key
/// that is alive there, and a tombstone at the floor itself.
pub fn stays(view: &View, met: &Met<'_>) -> Result<bool, storage::Error> {
    let Some(floor) = view.floor.filter(|floor| met.at.main <= *floor) else {
        return Ok(true);
    };
    if view.settled().meta.swept >= floor {
        return Ok(true);
    }
    if met.is_tombstone() && met.at.main < floor {
        return Ok(false);
    }
    is_newest(view, met, floor)
}

/// Whether its key has no newer version at or before revision `main`.
pub fn is_newest(view: &View, met: &Met<'_>, main: u64) -> Result<bool, storage::Error> {
    let newest = view.newest(met.record.key, main)?;
    Ok(newest.is_some_and(|newest| newest.version.revision == met.at))
}
