//! The settler: moves sealed memtables into the tables, compacted rows out of them, and the tables
//! into a new file.
//!
//! ```text
//! flush   sealed memtable ─► redb, one durable txn ─► publish ─► cut the log
//! sweep   redb, one durable txn a slice ─► publish
//! defragment   redb ─► another redb, a slice at a time ─► publish
//! ```
//! It decides nothing: what it moves was decided, logged and answered before. A full disk is met
//! by closing the database and opening it again, since redb answers nothing more after an error;
//! the memtable and the log still hold what the failed flush held.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use super::Error;
use super::defragment::{self, Defragmentation};
use super::disk::Disk;
use super::log::Segments;
use super::memtable::Memtable;
use super::redb::{Database, Reader};
use super::space::Space;
use super::store::{NEW_DATABASE_FILE, Sealed, Settings, Views};
use super::view::View;
use crate::clock::Clock;

pub use super::redb::SLICE_ROWS;

/// See the module.
#[derive(Debug)]
pub struct Settler {
    database: Database,
    views: Arc<Views>,
    segments: Segments,
    space: Arc<Space>,
    /// Flushed, and perhaps still held by a reader. Freed here, not by the reader: that takes long.
    retired: Vec<Arc<Memtable>>,
    data: Arc<dyn Disk>,
    /// Room that a defragmentation leaves to everybody else, in bytes.
    margin_bytes: u64,
    defragmentation: Option<Defragmentation>,
    begun_millis: u64,
    /// The file of before the last defragmentation, as long as a reader holds it. It has no name
    /// any more.
    old: Option<Database>,
}

/// Segments of the log that must fit onto the disk beside a defragmentation.
const SEGMENTS_LEFT: u64 = 2;

/// How far a piece of work came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; nothing is left.
    Done,
    /// Done; there is more.
    More,
    /// Not done for want of space; try again when there is some.
    NoSpace,
}

impl Settler {
    pub(super) fn new(
        database: Database,
        views: Arc<Views>,
        segments: Segments,
        space: Arc<Space>,
        settings: &Settings,
    ) -> Settler {
        let slice_bytes = defragment::slice_bytes(settings.cache_bytes) as u64;
        Settler {
            data: Arc::clone(&settings.data),
            margin_bytes: SEGMENTS_LEFT * settings.segment_bytes + 2 * slice_bytes,
            defragmentation: None,
            begun_millis: 0,
            old: None,
            database,
            views,
            segments,
            space,
            retired: Vec::new(),
        }
    }

    /// Moves a sealed memtable into the tables, shows it there, and cuts the log.
    pub fn flush(&mut self, sealed: &Sealed) -> Result<Outcome, Error> {
        match self
            .database
            .flush(&sealed.memtable, &sealed.upto, &sealed.small)
        {
            Ok(()) => {}
            Err(error) => return self.give_way(error),
        }
        self.publish(|view| view.sealed = None)?;
        self.retired.push(Arc::clone(&sealed.memtable));
        self.segments.cut(sealed.upto.batch)?;
        if let Some(defragmentation) = &mut self.defragmentation {
            defragmentation.count_flush();
        }
        Ok(Outcome::Done)
    }

    /// Removes one slice of compacted rows.
    pub fn sweep(&mut self) -> Result<Outcome, Error> {
        match self.database.sweep_slice() {
            Ok(more) => {
                self.publish(|_| ())?;
                Ok(if more { Outcome::More } else { Outcome::Done })
            }
            Err(error) => self.give_way(error),
        }
    }

    /// Whether a defragmentation can begin: none is under way, and nobody reads what was there before
    /// the last.
    pub fn can_defragment(&self) -> bool {
        self.defragmentation.is_none() && self.old.is_none()
    }

    /// Whether a defragmentation is under way: as long as it is, nothing may be swept.
    pub fn is_defragmenting(&self) -> bool {
        self.defragmentation.is_some()
    }

    /// Whether the defragmentation is to catch up before anything is flushed again.
    pub fn holds_flushes(&self) -> bool {
        let defragmentation = self.defragmentation.as_ref();
        defragmentation.is_some_and(Defragmentation::holds_flushes)
    }

    /// Takes one step of a defragmentation, which is begun if none is under way. Without room
    /// nothing is left of it.
    pub fn defragment(&mut self) -> Result<Outcome, Error> {
        let reader = self.database.reader()?;
        let mut needed_bytes = self.margin_bytes;
        if self.defragmentation.is_none() {
            let meta = &reader.meta;
            needed_bytes += meta.history_bytes + meta.index_bytes + meta.lease_bytes;
        }
        let free_bytes = self.data.free_bytes()?;
        if self.space.is_full() || free_bytes < needed_bytes {
            warn!(
                free_bytes,
                needed_bytes, "failed to defragment: the disk has too little room beside the data"
            );
            self.abandon()?;
            return Ok(Outcome::NoSpace);
        }
        match self.copy(&reader) {
            Err(Error::NoSpace) => {
                warn!(free_bytes, "failed to defragment: the disk is full");
                self.remove_new()?;
                Ok(Outcome::NoSpace)
            }
            copied => copied,
        }
    }

    fn copy(&mut self, reader: &Reader) -> Result<Outcome, Error> {
        let mut defragmentation = match self.defragmentation.take() {
            Some(defragmentation) => defragmentation,
            None => {
                let file_bytes = self.database.file_bytes()?;
                info!(file_bytes, "starting defragment");
                self.begun_millis = Clock::System.monotonic_millis();
                let cache_bytes = self.database.cache_bytes();
                Defragmentation::begin(self.data.as_ref(), cache_bytes, reader)?
            }
        };
        if !defragmentation.step(reader)? {
            self.defragmentation = Some(defragmentation);
            return Ok(Outcome::More);
        }
        let new = defragmentation.finish(self.data.as_ref(), reader)?;
        self.old = Some(std::mem::replace(&mut self.database, new));
        self.publish(|_| ())?;
        let file_bytes = self.database.file_bytes()?;
        let took_millis = Clock::System.monotonic_millis() - self.begun_millis;
        info!(file_bytes, took_millis, "finished defragment");
        Ok(Outcome::Done)
    }

    /// Ends a defragmentation that is under way, and removes what there is of its file; whether
    /// there was any.
    pub fn abandon(&mut self) -> Result<bool, Error> {
        let Some(defragmentation) = self.defragmentation.take() else {
            return Ok(false);
        };
        drop(defragmentation);
        self.remove_new()?;
        Ok(true)
    }

    /// The room can be had by others when nobody has the file open, and this is on disk.
    fn remove_new(&self) -> Result<(), Error> {
        match self.data.remove(NEW_DATABASE_FILE) {
            // There was not even room for the name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        Ok(self.data.sync_dir()?)
    }

    /// Frees what no reader holds any more, memtables and an old file.
    pub fn free_retired(&mut self) {
        self.retired
            .retain(|memtable| Arc::strong_count(memtable) > 1);
        self.old.take_if(|old| !old.is_read());
    }

    /// Tries to get back what was given up to a full disk.
    pub fn restore_space(&self) -> Result<(), Error> {
        self.space.restore()
    }

    /// Ends the store if the database's file has failed, be it under a reader.
    pub fn check_disk(&self) -> Result<(), Error> {
        if self.database.has_failed() {
            return Err(
                io::Error::other("a read, write or sync of the database's file failed").into(),
            );
        }
        Ok(())
    }

    fn publish(&self, change: impl FnOnce(&mut View)) -> Result<(), Error> {
        let reader: Arc<Reader> = Arc::new(self.database.reader()?);
        self.views.update(|view| {
            view.settled = reader;
            change(view);
        });
        Ok(())
    }

    /// After a full disk: gives up the reserve, and opens the database anew.
    fn give_way(&mut self, error: Error) -> Result<Outcome, Error> {
        let full = matches!(error, Error::NoSpace) || self.database.met_full_disk();
        if self.database.has_failed() || !full && !self.database.is_closed() {
            return Err(error);
        }
        warn!("the disk is full: the database could not take a commit, which stays in the log");
        // A defragmentation gives back its room before anything is given up.
        let abandoned = self.abandon()?;
        if !abandoned {
            self.space.give_up()?;
        }
        match self.database.reopen() {
            Ok(()) => {
                self.publish(|_| ())?;
                if abandoned {
                    return Ok(Outcome::More);
                }
            }
            Err(Error::NoSpace) => warn!("the disk is full: the database stays closed"),
            Err(error) => return Err(error),
        }
        Ok(Outcome::NoSpace)
    }
}
