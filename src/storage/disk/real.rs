//! A folder of the file system.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::{Disk, DiskFile};

/// Folders above one of ours whose names are made durable at every start.
const DEPTH_SYNCED: usize = 4;

/// Bytes written at once where space can only be had by writing.
const ZEROS_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
}

impl RealDisk {
    /// The files of `folder`, which is made, for its owner alone, if it is not there.
    pub fn open(folder: &Path) -> io::Result<RealDisk> {
        let mut made = folder;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        // Names above are made durable as far up as they may be new: one that was made by a
        // process that was killed looks old.
        for _ in 0..DEPTH_SYNCED {
            let above = match made.parent() {
                Some(above) if above.as_os_str().is_empty() => Path::new("."),
                Some(above) => above,
                None => break,
            };
            match File::open(above).and_then(|above| above.sync_all()) {
                // A folder of others may be closed to us, and is not new then.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                synced => synced?,
            }
            made = above;
            if made == Path::new(".") {
                break;
            }
        }
        Ok(RealDisk {
            folder: folder.to_owned(),
        })
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            // A name that is no text is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.folder.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.folder.join(name))?;
        if let Err(error) = allocate(&file, len) {
            fs::remove_file(self.folder.join(name))?;
            return Err(error);
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.folder.join(from), self.folder.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let system = statvfs(&self.folder)?;
        // Not those that are kept for the superuser, who we should not be.
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let zeros = vec![0; ZEROS_BYTES];
    let mut offset = 0;
    while offset < len {
        let length = zeros.len().min((len - offset) as usize);
        file.write_all_at(&zeros[..length], offset)?;
        offset += length as u64;
    }
    Ok(())
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        // Counted in units of 512 bytes, whatever the file system's blocks are.
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn read_at_from_memory(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let length = buf.len();
        let bufs = &mut [io::IoSliceMut::new(buf)];
        // What fails here is told again, and better, by the read that may wait.
        match preadv2(&self.0, bufs, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == length => Ok(true),
            // Where it cannot be told, it counts as memory.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.read_at(buf, offset)?;
                Ok(true)
            }
            _ => {
                self.read_at(buf, offset)?;
                Ok(false)
            }
        }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
