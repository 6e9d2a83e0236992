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

const RESERVE_FILE: &str = "reserve";

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
    /// Takes the reserves; a disk that is too full for them is a full disk from the start.
    pub fn new(settings: &Settings) -> Result<Space, Error> {
        let mut reserves = Vec::new();
        for (disk, bytes) in [
            (&settings.log, settings.segment_bytes),
            (&settings.data, settings.reserve_bytes),
        ] {
            reserves.push(Reserve::find(Arc::clone(disk), bytes)?);
        }
        let reserves = reserves.try_into().expect("two were pushed");
        let space = Space {
            full: AtomicBool::new(true),
            reserves: Mutex::new(reserves),
        };
        space.restore()?;
        if space.is_full() {
            warn!("the disk is too full for the reserve: what adds data is refused");
        }
        Ok(space)
    }

    /// Whether what would add data is refused.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// The disk is full: gives up what was kept for this.
    pub fn give_up(&self) -> Result<(), Error> {
        let mut reserves = self.reserves.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.full.swap(true, Ordering::Relaxed) {
            warn!("the disk is full: what adds data is refused until there is room");
        }
        for reserve in reserves.iter_mut() {
            reserve.give_up()?;
        }
        Ok(())
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

    fn give_up(&mut self) -> io::Result<()> {
        if self.held {
            self.disk.remove(RESERVE_FILE)?;
            // Only then can the room be taken by others.
            self.disk.sync_dir()?;
            self.held = false;
        }
        Ok(())
    }
}
