//! The data folder: whose it is, and that only one process has it.
//!
//! ```text
//! DATA/metastore/lock        held while the server runs
//! DATA/metastore/data.redb   the tables
//! DATA/metastore/log/        the log, unless --wal-dir puts it elsewhere
//! DATA/metastore/reserve     room for a full disk
//! DATA/metastore.part        a store that is still being made from other data
//! ```
//! All that is ours lies in one folder of its own, so that what others keep beside it stays theirs.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use crate::storage::disk::Disk;
use crate::storage::disk::real::RealDisk;
use crate::storage::log;

const OURS: &str = "metastore";

/// The folder of a store in the making: nothing starts from it.
const PART: &str = "metastore.part";

/// A data folder that this process has.
#[derive(Debug)]
pub struct DataDir {
    /// The folder of the database.
    pub data: Arc<dyn Disk>,
    /// The folder of the log.
    pub log: Arc<dyn Disk>,
    _locks: [File; 2],
}

/// Whether the folder holds a store of ours.
pub fn has_store(data_dir: &Path) -> bool {
    data_dir.join(OURS).is_dir()
}

impl DataDir {
    /// Takes the folder, and makes it if it is not there; refuses one that is another's.
    pub fn open(data_dir: &Path, wal_dir: Option<&Path>) -> Result<DataDir, Error> {
        refuse_foreign(data_dir)?;
        let ours = data_dir.join(OURS);
        let log = wal_dir.map_or_else(|| ours.join("log"), Path::to_path_buf);
        let cannot = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Folder { path, cause }
        };
        let data = RealDisk::open(&ours).map_err(cannot(&ours))?;
        let data_lock = lock(&ours)?;
        let log_disk = RealDisk::open(&log).map_err(cannot(&log))?;
        let log_lock = lock(&log)?;
        Ok(DataDir {
            data: Arc::new(data),
            log: Arc::new(log_disk),
            _locks: [data_lock, log_lock],
        })
    }
}

/// A folder with files in it and no store of ours is not ours to fill.
fn refuse_foreign(data_dir: &Path) -> Result<(), Error> {
    let path = data_dir.to_owned();
    let names = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    let names = match names {
        Ok(names) => names,
        Err(cause) => return Err(Error::Folder { path, cause }),
    };
    if names.iter().any(|name| name == OURS) {
        return Ok(());
    }
    match names.iter().find(|name| is_anybodys(name)) {
        Some(name) => Err(Error::ForeignFolder {
            path,
            found: PathBuf::from(name),
        }),
        None => Ok(()),
    }
}

/// What a file system or a shell leaves in a new folder does not make it anybody's.
fn is_anybodys(name: &OsStr) -> bool {
    name != "lost+found" && !name.as_encoded_bytes().starts_with(b".")
}

/// Makes a store in `data_dir`: `fill` writes it in two folders of its own, that of the database and
/// that of the log. Until all of it is on disk nothing starts from it.
pub fn make_store<T>(
    data_dir: &Path,
    wal_dir: Option<&Path>,
    fill: impl FnOnce([&Arc<dyn Disk>; 2]) -> Result<T, Error>,
) -> Result<T, Error> {
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |cause| Error::Folder { path, cause }
    };
    if let Some(wal_dir) = wal_dir {
        let disk = RealDisk::open(wal_dir).map_err(cannot(wal_dir))?;
        let names = disk.list().map_err(cannot(wal_dir))?;
        if names.iter().any(|name| log::is_segment(name)) {
            let path = wal_dir.to_owned();
            return Err(Error::NotEmpty { path });
        }
    }
    let part = data_dir.join(PART);
    let disk = RealDisk::open(&part).map_err(cannot(&part))?;
    let _lock = lock(&part)?;
    // What an earlier try has left.
    for name in disk.list().map_err(cannot(&part))? {
        if name != "lock" && name != "log" {
            disk.remove(&name).map_err(cannot(&part))?;
        }
    }
    let log = part.join("log");
    let log_disk = RealDisk::open(&log).map_err(cannot(&log))?;
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(disk), Arc::new(log_disk)];
    let made = fill([&disks[0], &disks[1]])?;
    disks[0].sync_dir().map_err(cannot(&part))?;
    let above = RealDisk::open(data_dir).map_err(cannot(data_dir))?;
    above.rename(PART, OURS).map_err(cannot(data_dir))?;
    above.sync_dir().map_err(cannot(data_dir))?;
    Ok(made)
}

/// Refuses a folder that holds anything.
pub fn refuse_full(data_dir: &Path) -> Result<(), Error> {
    let path = || data_dir.to_owned();
    let cannot = |cause| Error::Folder {
        path: path(),
        cause,
    };
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot(error)),
    };
    for entry in entries {
        let name = entry.map_err(cannot)?.file_name();
        if name != PART && is_anybodys(&name) {
            return Err(Error::NotEmpty { path: path() });
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let cannot = |cause| Error::Folder {
        path: path.clone(),
        cause,
    };
    let mut options = File::options();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            path: folder.to_owned(),
        }),
        Err(TryLockError::Error(cause)) => Err(cannot(cause)),
    }
}
