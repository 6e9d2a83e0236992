//! How redb reaches the disk.
//!
//! redb writes a flush as one burst and syncs it at the end; the log's fdatasync would then wait
//! behind all of it. So this backend syncs by itself whenever a few megabytes are written.
//! It remembers whether the disk was full, which redb's own error does not
//! tell once it has latched it, and notices when a read had to wait for the disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::clock::Clock;
use crate::storage::disk::{self, DiskFile};

/// Unsynced bytes after which the backend syncs. Measured beside a log that syncs every put: the
/// worst wait falls from 500–1300 ms to 31–51 ms.
const SYNC_EVERY_BYTES: u64 = 4 << 20;

/// How long reads may wait for the disk within a [`WINDOW_MILLIS`] before more of that is expected.
const WAIT_MICROS_MAX: u64 = 2000;

/// See [`WAIT_MICROS_MAX`].
const WINDOW_MILLIS: u64 = 100;

/// How long more is expected.
const COLD_MILLIS: u64 = 1000;

/// What the backend saw, shared with the owner of the database.
#[derive(Debug, Default)]
pub struct Counters {
    /// Whether a write or a growth met a full disk.
    pub full: AtomicBool,
    /// Whether a read or a sync failed, or a write for another reason: the store must end.
    pub failed: AtomicBool,
    /// The current window's number, and how long reads have waited in it.
    window: AtomicU64,
    waited_micros: AtomicU64,
    /// When, on the clock, reads count as quick again.
    cold_until_millis: AtomicU64,
}

impl Counters {
    /// Whether reads have lately had to wait for the disk.
    pub fn is_cold(&self) -> bool {
        let until = self.cold_until_millis.load(Ordering::Relaxed);
        until > 0 && Clock::System.monotonic_millis() < until
    }

    /// A read has waited since `begun_micros`. The sums are not exact when threads meet here, and
    /// need not be.
    fn count_wait(&self, begun_micros: u64) {
        let now_micros = Clock::System.monotonic_micros();
        let now_millis = now_micros / 1000;
        let window = now_millis / WINDOW_MILLIS;
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.waited_micros.store(0, Ordering::Relaxed);
        }
        let waited = now_micros - begun_micros;
        let before = self.waited_micros.fetch_add(waited, Ordering::Relaxed);
        if before + waited >= WAIT_MICROS_MAX {
            let until = now_millis + COLD_MILLIS;
            self.cold_until_millis.store(until, Ordering::Relaxed);
        }
    }
}

/// redb's file on a [`disk::Disk`].
#[derive(Debug)]
pub struct Backend {
    file: Arc<dyn DiskFile>,
    counters: Arc<Counters>,
    unsynced_bytes: AtomicU64,
}

impl Backend {
    /// A backend over `file`. The folder's lock, not redb's, keeps other processes out.
    pub fn new(file: Arc<dyn DiskFile>, counters: Arc<Counters>) -> Backend {
        Backend {
            file,
            counters,
            unsynced_bytes: AtomicU64::new(0),
        }
    }

    fn watched<T>(&self, result: io::Result<T>) -> io::Result<T> {
        match &result {
            Err(error) if disk::is_full(error) => self.counters.full.store(true, Ordering::Relaxed),
            Err(_) => self.counters.failed.store(true, Ordering::Relaxed),
            Ok(_) => {}
        }
        result
    }

    /// Of what must not fail, for want of space neither.
    fn watched_strictly<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.counters.failed.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let begun_micros = Clock::System.monotonic_micros();
        let read = self.file.read_at_from_memory(out, offset);
        if !self.watched_strictly(read)? {
            self.counters.count_wait(begun_micros);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watched(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        self.watched_strictly(self.file.sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.watched(self.file.write_at(data, offset))?;
        let length = data.len() as u64;
        let unsynced = self.unsynced_bytes.fetch_add(length, Ordering::Relaxed) + length;
        if unsynced >= SYNC_EVERY_BYTES {
            self.sync_data()?;
        }
        Ok(())
    }
}
