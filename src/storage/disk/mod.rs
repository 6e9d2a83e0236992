//! The disk, as the store sees it: the files of one folder.
//!
//! Everything that must survive a crash goes through [`Disk`] and [`DiskFile`]: the log's
//! segments, the redb file, the reserve. The server uses [`RealDisk`]; the crash tests put a
//! simulated disk in its place that stops at a chosen sync and forgets what was not synced.
//!
//! What holds of every implementation:
//! - A write is durable once a later `sync` of its file has returned, and not before.
//! - A created, renamed or removed name is durable once `sync_dir` has returned.
//! - After `allocate` or `create`, writes within the length cannot run out of space.

pub mod real;
pub mod sim;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// The files of one folder.
pub trait Disk: Debug + Send + Sync + 'static {
    /// The names in the folder, sorted.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file that exists, to read and write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes a new file of `len` zero bytes that are all allocated, so that writing them cannot
    /// run out of space. Fails with `AlreadyExists` if the name is taken; leaves nothing behind if
    /// the space cannot be had.
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, in place of what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. A file that is still open lives on until it is closed.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all names of the folder durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// Bytes that can still be written here.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Bytes that it takes on the disk, if that can be told: of its length not all need be allocated.
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.size()
    }

    /// Fills `buf` from `offset` on; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// As [`DiskFile::read_at`]; whether all of it came from memory, if that can be told.
    fn read_at_from_memory(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buf, offset)?;
        Ok(true)
    }

    /// Writes all of `data` at `offset`, growing the file if need be.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or grows it with zeros that need not be allocated.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes all earlier writes of this file durable (fdatasync: data, and length if it changed).
    fn sync(&self) -> io::Result<()>;
}

/// Whether `error` says that there is no room, by size or by quota.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
