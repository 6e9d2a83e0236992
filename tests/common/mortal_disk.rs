//! A folder whose user can die: from then on the user's every call fails and changes nothing.
//!
//! This is how a process ends that is killed: what it wrote is there, what it had not written is
//! not, and the next one finds the folder as it is. Syncs are left out, since the operating system
//! lives on; what a power failure loses is the business of the crash tests.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use metastore::storage::disk::real::RealDisk;
use metastore::storage::disk::{Disk, DiskFile};

/// How long it takes to remove a file.
const REMOVAL: Duration = Duration::from_millis(2);

/// Whether the user of some folders is alive. Each call holds the lock, so that none is under way
/// when the user dies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    ended: Arc<RwLock<bool>>,
}

impl Life {
    /// Ends it.
    pub(crate) fn end(&self) {
        *self.ended.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn alive(&self) -> io::Result<RwLockReadGuard<'_, bool>> {
        let ended = self.ended.read().unwrap_or_else(PoisonError::into_inner);
        if *ended {
            return Err(io::Error::other("the process was killed"));
        }
        Ok(ended)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MortalDisk {
    disk: RealDisk,
    life: Life,
}

impl MortalDisk {
    /// The files of `folder`, for one life.
    pub(crate) fn open(folder: &Path, life: &Life) -> Arc<dyn Disk> {
        Arc::new(MortalDisk {
            disk: RealDisk::open(folder).expect("a folder of the test can be opened"),
            life: life.clone(),
        })
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(MortalFile {
            file,
            life: self.life.clone(),
        })
    }
}

impl Disk for MortalDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let _alive = self.life.alive()?;
        self.disk.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let _alive = self.life.alive()?;
        Ok(self.file(self.disk.open(name)?))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let _alive = self.life.alive()?;
        Ok(self.file(self.disk.create(name, len)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let _alive = self.life.alive()?;
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let _alive = self.life.alive()?;
        // As slow as a real one: others must not take a flush for done before the log is cut.
        thread::sleep(REMOVAL);
        self.disk.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        let _alive = self.life.alive()?;
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let _alive = self.life.alive()?;
        self.disk.free_bytes()
    }
}

#[derive(Debug)]
struct MortalFile {
    file: Arc<dyn DiskFile>,
    life: Life,
}

impl DiskFile for MortalFile {
    fn size(&self) -> io::Result<u64> {
        let _alive = self.life.alive()?;
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let _alive = self.life.alive()?;
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let _alive = self.life.alive()?;
        self.file.write_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _alive = self.life.alive()?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let _alive = self.life.alive()?;
        Ok(())
    }
}
