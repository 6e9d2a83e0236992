//! Room on the disk, and what is kept for when it runs out.
//!
//! A file in each folder holds room that nobody else can take: in the log's folder for one
//! segment, in the database's for the pages of a flush and a sweep. When the disk is full both are
//! given up, so that deletes and compaction, which need room to make room, go on. What would add
//! data is refused until both are had again, which is tried without end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::Error;
use super::disk::{Disk, is_full};
use super::store::Settings;

/// The file that holds room.
pub(super) const RESERVE_FILE: &str = "reserve";

/// See the module.
#[derive(Debug)]
pub struct Space {
    full: AtomicBool,
    reserves: Mutex<[Reserve; 2]>,
}

#[derive(Debug)]
struct Reserve {
    disk: Arc<dyn Disk>,
    bytes: u64,
    held: bool,
}

impl Space {
    /// Finds what is kept; the disk counts as full until [`Space::restore`] has had all of it.
    pub fn find(settings: &Settings) -> Result<Space, Error> {
        let mut reserves = Vec::new();
        for (disk, bytes) in [
            (&settings.log, settings.segment_bytes),
            (&settings.data, settings.reserve_bytes),
        ] {
            reserves.push(Reserve::find(Arc::clone(disk), bytes)?);
        }
        let reserves = reserves.try_into().expect("two were pushed");
        Ok(Space {
            full: AtomicBool::new(true),
            reserves: Mutex::new(reserves),
        })
    }

    /// Takes a step of the start; on a full disk once more, with what was kept for this.
    pub fn in_need<T>(&self, step: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        match step() {
            Err(Error::NoSpace) if self.give_up()? => step(),
            done => done,
        }
    }

    /// Whether what would add data is refused.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// The disk is full: gives up what was kept for this; whether there was anything.
    pub fn give_up(&self) -> Result<bool, Error> {
        let mut reserves = self.reserves.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.full.swap(true, Ordering::Relaxed) {
            warn!("the disk is full: what adds data is refused until there is room");
        }
        let mut given_up = false;
        for reserve in reserves.iter_mut() {
            given_up |= reserve.give_up()?;
        }
        Ok(given_up)
    }

    /// Tries to have the reserves again; then the disk is full no longer.
    pub fn restore(&self) -> Result<(), Error> {
        if !self.is_full() {
            return Ok(());
        }
        let mut reserves = self.reserves.lock().unwrap_or_else(PoisonError::into_inner);
        for reserve in reserves.iter_mut() {
            if !reserve.take()? {
                return Ok(());
            }
        }
        self.full.store(false, Ordering::Relaxed);
        info!("there is room on the disk, with a reserve");
        Ok(())
    }
}

impl Reserve {
    fn find(disk: Arc<dyn Disk>, bytes: u64) -> Result<Reserve, Error> {
        let there = disk.list()?.iter().any(|name| name == RESERVE_FILE);
        let held = there && disk.open(RESERVE_FILE)?.size()? == bytes;
        if there && !held {
            disk.remove(RESERVE_FILE)?;
        }
        Ok(Reserve { disk, bytes, held })
    }

    fn take(&mut self) -> Result<bool, Error> {
        if !self.held {
            match self.disk.create(RESERVE_FILE, self.bytes) {
                Ok(_) => self.held = true,
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.held)
    }

    fn give_up(&mut self) -> io::Result<bool> {
        let held = self.held;
        if held {
            match self.disk.remove(RESERVE_FILE) {
                // Somebody has made room by hand.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
            // Only then can the room be taken by others.
            self.disk.sync_dir()?;
            self.held = false;
        }
        Ok(held)
    }
}
