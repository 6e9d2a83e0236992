//! The settler: moves sealed memtables into the tables, and compacted rows out of them.
//!
//! ```text
//! flush   sealed memtable ─► redb, one durable txn ─► publish ─► cut the log
//! sweep   redb, one durable txn a slice ─► publish
//! ```
//! It decides nothing: what it moves was decided, logged and answered before. A full disk is met
//! by closing the database and opening it again, since redb answers nothing more after an error;
//! the memtable and the log still hold what the failed flush held.

use std::io;
use std::sync::Arc;

use tracing::warn;

use super::Error;
use super::log::Segments;
use super::memtable::Memtable;
use super::redb::{Database, Reader};
use super::space::Space;
use super::store::{Sealed, Views};
use super::view::View;

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
}

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
    ) -> Settler {
        Settler {
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

    /// Frees the memtables that no reader holds any more; whether any are left.
    pub fn free_retired(&mut self) -> bool {
        self.retired
            .retain(|memtable| Arc::strong_count(memtable) > 1);
        !self.retired.is_empty()
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
        self.space.give_up()?;
        match self.database.reopen() {
            Ok(()) => self.publish(|_| ())?,
            Err(Error::NoSpace) => warn!("the disk is full: the database stays closed"),
            Err(error) => return Err(error),
        }
        Ok(Outcome::NoSpace)
    }
}
