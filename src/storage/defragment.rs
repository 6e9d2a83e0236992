//! Defragmentation: the tables are copied into a new file, front to back, while all else goes on.
//!
//! ```text
//! history  in order of time, in rounds: what there is   ─┐
//! index    in order of keys, up to the same revision    ├─► slices, with flushes in between
//! gained   what history has gained since, into both    ─┘
//! finish   leases, attached, small, meta ─► close ─► sync ─► open ─► rename ─► sync the folder
//! ```
//! What holds all the while:
//! - No row up to the revision that the tables have come to changes as long as nothing is swept. So
//!   each slice reads the newest commit and goes on behind the row where the last one ended, and
//!   no view is held from slice to slice.
//! - Rows beyond that revision, of a flush that is under way or was cut short, are left out: the log
//!   has them, and the next flush writes them again.
//! - Nothing is flushed between the last slice and the end of [`Defragmentation::finish`], so the new file says
//!   what the old one says.
//! - The new file has a name of its own until all of it is on disk. One that is found at a start is
//!   removed.

use std::io;

use super::Error;
use super::disk::{Disk, is_full};
use super::record::Record;
use super::redb::meta::Meta;
use super::redb::{Database, REVISION_BYTES, Reader};
use super::revision::Revision;
use super::row::{HistoryRow, Version};
use super::store::{DATABASE_FILE, NEW_DATABASE_FILE};

/// Bytes of rows in one slice at most: about a tenth of a second's work, and no more than is synced
/// at once.
const SLICE_BYTES_MAX: usize = 4 << 20;

/// One slice for so many bytes of cache.
const SLICES_IN_CACHE: usize = 16;

/// Bytes of the cache for each row that is added between others: its page, four times.
const CACHE_BYTES_A_ROW: usize = 16 << 10;

/// Rounds over history, each over what the one before left: so only little is gained after them,
/// and `index`, where adding between rows costs a page each, is mostly written in order.
const ROUNDS_MAX: usize = 4;

/// Flushes that may happen while the copy catches up with what was gained: then they wait, so that
/// it comes to an end.
const FLUSHES_MAX: usize = 16;

/// A new file that is being filled.
#[derive(Debug)]
pub(super) struct Defragmentation {
    new: Database,
    place: Place,
    flushes: usize,
}

/// How far a copy has come.
#[derive(Debug)]
enum Place {
    /// `history` is copied up to here, and will be up to a revision.
    History {
        place: Revision,
        upto: u64,
        round: usize,
    },
    /// So is `index`, of the rows that history had up to a revision.
    Index {
        upto: u64,
        key: Vec<u8>,
        at: Revision,
    },
    /// Both are copied up to here.
    Gained(Revision),
}

/// What one slice may take.
#[derive(Debug, Clone, Copy)]
struct Budget {
    bytes: usize,
    rows: usize,
}

impl Budget {
    /// Takes a row of so many bytes; whether another may follow.
    fn take(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.rows = self.rows.saturating_sub(1);
        self.bytes > 0 && self.rows > 0
    }
}

/// Bytes of one slice, with a cache of so many.
pub(super) fn slice_bytes(cache_bytes: usize) -> usize {
    (cache_bytes / SLICES_IN_CACHE).min(SLICE_BYTES_MAX)
}

impl Defragmentation {
    /// Begins a copy of `source` in the folder of `disk`.
    pub(super) fn begin(
        disk: &dyn Disk,
        cache_bytes: usize,
        source: &Reader,
    ) -> Result<Defragmentation, Error> {
        let file = disk.create(NEW_DATABASE_FILE, 0).map_err(told)?;
        let meta = Meta {
            history_rows: 0,
            history_bytes: 0,
            index_rows: 0,
            index_bytes: 0,
            ..source.meta.clone()
        };
        Ok(Defragmentation {
            new: Database::create(file, cache_bytes, &meta)?,
            place: Place::History {
                place: Revision { main: 0, sub: 0 },
                upto: source.meta.revision,
                round: 1,
            },
            flushes: 0,
        })
    }

    /// There is one more flush to catch up with.
    pub(super) fn count_flush(&mut self) {
        if let Place::Gained(_) = self.place {
            self.flushes += 1;
        }
    }

    /// Whether flushes have to wait until it has caught up.
    pub(super) fn holds_flushes(&self) -> bool {
        self.flushes >= FLUSHES_MAX
    }

    /// Copies one slice of `source`; whether both tables are copied, up to where `source` is.
    pub(super) fn step(&mut self, source: &Reader) -> Result<bool, Error> {
        let cache_bytes = self.new.cache_bytes();
        let mut budget = Budget {
            bytes: slice_bytes(cache_bytes),
            rows: usize::MAX,
        };
        let newest = source.meta.revision;
        match &mut self.place {
            Place::History { place, upto, round } => {
                let (rows, more) = history_behind(source, *place, *upto, &mut budget)?;
                self.new.append_history(&rows)?;
                if let Some((last, _)) = rows.last() {
                    *place = *last;
                }
                if !more && *upto < newest && *round < ROUNDS_MAX {
                    *upto = newest;
                    *round += 1;
                } else if !more {
                    self.place = Place::Index {
                        upto: *upto,
                        key: Vec::new(),
                        at: Revision { main: 0, sub: 0 },
                    };
                }
                Ok(false)
            }
            Place::Index { upto, key, at } => {
                let upto = *upto;
                let mut rows = Vec::new();
                let mut more = false;
                let mut last = (key.clone(), *at);
                source.index_behind(key, *at, |key, at, value| {
                    // What has been gained since is passed over; that too is work.
                    if at.main <= upto {
                        rows.push((key.to_vec(), at.encode_descending(), value.to_vec()));
                    }
                    more = !budget.take(key.len() + REVISION_BYTES + value.len());
                    if more {
                        last = (key.to_vec(), at);
                    }
                    Ok(!more)
                })?;
                self.new.append_index(&rows)?;
                self.place = match (more, last) {
                    (true, (key, at)) => Place::Index { upto, key, at },
                    (false, _) => Place::Gained(Revision::last_of(upto)),
                };
                Ok(false)
            }
            Place::Gained(place) => {
                budget.rows = (cache_bytes / CACHE_BYTES_A_ROW).max(1);
                let (rows, more) = history_behind(source, *place, newest, &mut budget)?;
                let mut index = Vec::with_capacity(rows.len());
                for (at, value) in &rows {
                    let record = Record::decode(HistoryRow::decode(value)?.record)?;
                    let version = Version::of(&record, *at).encode();
                    index.push((record.key.to_vec(), at.encode_descending(), version));
                }
                index.sort_unstable();
                if let Some((last, _)) = rows.last() {
                    *place = *last;
                    self.new.append_history(&rows)?;
                    self.new.append_index(&index)?;
                }
                Ok(!more)
            }
        }
    }

    /// Copies the tables that a flush changes in place, and puts the new file in the place of the old
    /// one. To be called when all else is copied up to where `source` is.
    pub(super) fn finish(self, disk: &dyn Disk, source: &Reader) -> Result<Database, Error> {
        let cache_bytes = self.new.cache_bytes();
        self.new.complete(source)?;
        self.new.close()?;
        // All that can fail for want of room comes before the name.
        let file = disk.open(NEW_DATABASE_FILE)?;
        file.sync().map_err(told)?;
        let new = Database::open(file, cache_bytes)?;
        disk.rename(NEW_DATABASE_FILE, DATABASE_FILE)
            .map_err(told)?;
        // From here on there is no way back: whichever of the two the name leads to after a crash,
        // it says the same as long as nothing is flushed.
        disk.sync_dir()?;
        Ok(new)
    }
}

/// Rows of history, and whether there may be more.
type Rows = (Vec<(Revision, Vec<u8>)>, bool);

/// Those behind `place`, up to revision `upto`.
fn history_behind(
    source: &Reader,
    place: Revision,
    upto: u64,
    budget: &mut Budget,
) -> Result<Rows, Error> {
    let mut rows = Vec::new();
    let mut more = false;
    source.history_behind(place, |at, value| {
        if at.main > upto {
            return Ok(false);
        }
        rows.push((at, value.to_vec()));
        more = !budget.take(REVISION_BYTES + value.len());
        Ok(!more)
    })?;
    Ok((rows, more))
}

/// Of a file that is not needed: no room is no failure of the disk.
fn told(error: io::Error) -> Error {
    match is_full(&error) {
        true => Error::NoSpace,
        false => error.into(),
    }
}
