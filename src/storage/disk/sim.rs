//! The simulated disk of the crash tests: it stops at a chosen sync, fills up, and forgets.
//!
//! ```text
//! write, set_len, create ─► unsynced, in order ─► sync     ─► synced
//! create, rename, remove ─► unsynced, in order ─► sync_dir ─► synced
//!                                     └─► survivors(seed): each kept, dropped, or torn
//! ```
//! All folders of one disk share its fate. It lives in memory, as pages that hold anything, so
//! that a segment of zeros costs nothing. All that chance decides is decided by a seed.
//!
//! It is harsher than most file systems: unsynced writes and names survive independently of their
//! order, and a write is torn at every sector. It is kinder in this: a removed name gives its
//! room back at once.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// What a file's room is counted in.
const PAGE_BYTES: u64 = 4096;

/// See the module. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    folders: BTreeMap<String, Folder>,
    files: Vec<File>,
    syncs: u64,
    stop_at: Option<u64>,
    stopped: bool,
    fail_next_sync: bool,
    capacity_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Folder {
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    unsynced: Vec<NameChange>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Add {
        name: String,
        file: usize,
    },
    Rename {
        from: String,
        to: String,
        file: usize,
    },
    Remove {
        name: String,
    },
}

#[derive(Debug, Clone, Default)]
struct File {
    content: Content,
    synced: Content,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Allocate(u64),
    SetLen(u64),
    Write { offset: u64, data: Vec<u8> },
}

/// Bytes as pages; one that is not there is zeros.
#[derive(Debug, Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Pages below this one have their room.
    allocated: u64,
}

impl SimDisk {
    /// An empty disk without end.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// The folder `name`, which is made if it is not there.
    pub fn folder(&self, name: &str) -> Arc<dyn Disk> {
        self.state().folders.entry(name.to_owned()).or_default();
        Arc::new(SimFolder {
            disk: self.clone(),
            name: name.to_owned(),
        })
    }

    /// How many syncs there were, of files and of folders.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Lets the `n`-th sync and every operation behind it fail, as if the power went.
    pub fn stop_at_sync(&self, n: u64) {
        self.state().stop_at = Some(n);
    }

    /// Lets every operation from here on fail.
    pub fn stop(&self) {
        self.state().stopped = true;
    }

    /// Whether the disk has stopped.
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Lets the next sync fail, and nothing after it.
    pub fn fail_next_sync(&self) {
        self.state().fail_next_sync = true;
    }

    /// Room for this many bytes, in whole pages, from here on; `None` is without end.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Bytes of all pages that have their room.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// What the disk holds after the power went, as a disk of its own that works: all that was
    /// synced, and of the rest what the seed says.
    pub fn survivors(&self, seed: u64) -> SimDisk {
        let state = self.state();
        let mut chance = Chance::new(seed);
        let files = state.files.iter().map(|file| {
            let mut content = file.synced.clone();
            for change in &file.unsynced {
                chance.keep(change, &mut content);
            }
            File {
                content: content.clone(),
                synced: content,
                unsynced: Vec::new(),
            }
        });
        let files = files.collect();
        let folders = state.folders.iter().map(|(name, folder)| {
            let mut names = folder.synced.clone();
            for change in &folder.unsynced {
                if chance.keeps() {
                    change.apply(&mut names);
                }
            }
            let folder = Folder {
                names: names.clone(),
                synced: names,
                unsynced: Vec::new(),
            };
            (name.clone(), folder)
        });
        let survived = State {
            folders: folders.collect(),
            files,
            ..State::default()
        };
        SimDisk {
            state: Arc::new(Mutex::new(survived)),
        }
    }

    /// What the disk holds after the process was killed and the power stayed on, as a disk of its
    /// own that works: everything, and what was not synced still is not.
    pub fn revived(&self) -> SimDisk {
        let state = State {
            syncs: 0,
            stop_at: None,
            stopped: false,
            fail_next_sync: false,
            ..self.state().clone()
        };
        SimDisk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for an operation that only a working disk can do.
    fn working(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.stopped {
            return Err(failed());
        }
        Ok(state)
    }

    fn file(&self, number: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            disk: self.clone(),
            number,
        })
    }
}

impl State {
    fn folder(&mut self, name: &str) -> &mut Folder {
        self.folders.get_mut(name).expect("a folder is never lost")
    }

    fn count_sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        if self.stop_at.is_some_and(|stop_at| self.syncs >= stop_at) {
            self.stopped = true;
        }
        let fails = std::mem::take(&mut self.fail_next_sync);
        if self.stopped || fails {
            return Err(failed());
        }
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let named = self.folders.values().flat_map(|folder| &folder.names);
        let pages = named.map(|(_, file)| self.files[*file].content.used_pages());
        pages.sum::<u64>() * PAGE_BYTES
    }

    fn free_pages(&self) -> u64 {
        match self.capacity_bytes {
            Some(bytes) => bytes.saturating_sub(self.used_bytes()) / PAGE_BYTES,
            None => u64::MAX,
        }
    }
}

fn failed() -> io::Error {
    io::Error::from(rustix::io::Errno::IO)
}

fn full() -> io::Error {
    io::Error::from(rustix::io::Errno::NOSPC)
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Add { name, file } => {
                names.insert(name.clone(), *file);
            }
            NameChange::Rename { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Remove { name } => {
                names.remove(name);
            }
        }
    }
}

impl Folder {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        let file = self.names.get(name).copied();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl File {
    fn change(&mut self, change: Change) {
        self.content.apply(&change);
        self.unsynced.push(change);
    }
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Allocate(len) => {
                self.len = self.len.max(*len);
                self.allocated = self.allocated.max(len.div_ceil(PAGE_BYTES));
            }
            Change::SetLen(len) => self.set_len(*len),
            Change::Write { offset, data } => self.write(*offset, data),
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let pages = len.div_ceil(PAGE_BYTES);
            self.pages.split_off(&pages);
            self.allocated = self.allocated.min(pages);
            if let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES)) {
                page[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, part) in parts(offset, data.len()) {
            let page = self.pages.entry(at / PAGE_BYTES);
            let page = page.or_insert_with(|| vec![0; PAGE_BYTES as usize].into());
            let start = (at % PAGE_BYTES) as usize;
            page[start..start + part.len()].copy_from_slice(&data[part]);
        }
        if !data.is_empty() {
            self.len = self.len.max(offset + data.len() as u64);
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        for (at, part) in parts(offset, buf.len()) {
            let start = (at % PAGE_BYTES) as usize;
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => buf[part.clone()].copy_from_slice(&page[start..start + part.len()]),
                None => buf[part].fill(0),
            }
        }
    }

    fn has_room(&self, page: u64) -> bool {
        page < self.allocated || self.pages.contains_key(&page)
    }

    fn used_pages(&self) -> u64 {
        self.allocated + self.pages.range(self.allocated..).count() as u64
    }

    /// How many of `length` bytes at `offset` can be written with so many free pages.
    fn fitting(&self, offset: u64, length: usize, mut free_pages: u64) -> usize {
        for (at, part) in parts(offset, length) {
            if !self.has_room(at / PAGE_BYTES) {
                if free_pages == 0 {
                    return part.start;
                }
                free_pages -= 1;
            }
        }
        length
    }
}

/// `length` bytes at `offset`, page by page: where each part lies, and which bytes it is.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let rest = (PAGE_BYTES - at % PAGE_BYTES) as usize;
        let part = done..length.min(done + rest);
        done = part.end;
        (!part.is_empty()).then_some((at, part))
    })
}

/// What becomes of unsynced changes.
#[derive(Debug)]
struct Chance {
    random: SplitMix,
    /// Some crashes lose all, some lose nothing, most are in between.
    mood: u64,
}

impl Chance {
    fn new(seed: u64) -> Chance {
        let mut random = SplitMix(seed);
        let mood = random.below(6);
        Chance { random, mood }
    }

    fn keeps(&mut self) -> bool {
        match self.mood {
            0 => false,
            1 => true,
            _ => self.random.below(2) == 0,
        }
    }

    fn keep(&mut self, change: &Change, content: &mut Content) {
        let torn = self.mood > 1 && self.random.below(2) == 0;
        match change {
            Change::Write { offset, data } if torn => {
                let end = offset + data.len() as u64;
                let mut at = *offset;
                while at < end {
                    let next = end.min((at / SECTOR_BYTES + 1) * SECTOR_BYTES);
                    if self.random.below(2) == 0 {
                        let part = (at - offset) as usize..(next - offset) as usize;
                        content.write(at, &data[part]);
                    }
                    at = next;
                }
            }
            change if self.keeps() => content.apply(change),
            _ => {}
        }
    }
}

/// Numbers by chance, the same for the same seed: SplitMix64.
#[derive(Debug, Clone)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of the numbers below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

#[derive(Debug)]
struct SimFolder {
    disk: SimDisk,
    name: String,
}

impl Disk for SimFolder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.disk.working()?;
        Ok(state.folder(&self.name).names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let number = self.disk.working()?.folder(&self.name).find(name)?;
        Ok(self.disk.file(number))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.disk.working()?;
        if state.folder(&self.name).find(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.free_pages() < len.div_ceil(PAGE_BYTES) {
            return Err(full());
        }
        let number = state.files.len();
        let mut file = File::default();
        file.change(Change::Allocate(len));
        state.files.push(file);
        let name = name.to_owned();
        state
            .folder(&self.name)
            .change(NameChange::Add { name, file: number });
        drop(state);
        Ok(self.disk.file(number))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.disk.working()?;
        let folder = state.folder(&self.name);
        let file = folder.find(from)?;
        folder.change(NameChange::Rename {
            file,
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.disk.working()?;
        let folder = state.folder(&self.name);
        folder.find(name)?;
        let name = name.to_owned();
        folder.change(NameChange::Remove { name });
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.disk.working()?;
        state.count_sync()?;
        let folder = state.folder(&self.name);
        folder.synced = folder.names.clone();
        folder.unsynced.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let free_pages = self.disk.working()?.free_pages();
        Ok(free_pages.saturating_mul(PAGE_BYTES))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    number: usize,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.working()?.files[self.number].content.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.working()?;
        let content = &state.files[self.number].content;
        if offset + buf.len() as u64 > content.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.working()?;
        let free_pages = state.free_pages();
        let file = &mut state.files[self.number];
        let fitting = file.content.fitting(offset, data.len(), free_pages);
        // As write(2): what there is room for is written all the same.
        file.change(Change::Write {
            offset,
            data: data[..fitting].to_vec(),
        });
        if fitting < data.len() {
            return Err(full());
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.working()?;
        state.files[self.number].change(Change::SetLen(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.working()?;
        state.count_sync()?;
        let file = &mut state.files[self.number];
        for change in std::mem::take(&mut file.unsynced) {
            file.synced.apply(&change);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: u64 = 200;

    fn read(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
        let file = disk.folder("a").open(name).ok()?;
        let mut bytes = vec![0; file.size().expect("the disk works") as usize];
        file.read_at(&mut bytes, 0).expect("all of it is there");
        Some(bytes)
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may() {
        let disk = SimDisk::new();
        let folder = disk.folder("a");
        let file = folder.create("f", 2048).expect("there is room");
        file.write_at(&[1; 2048], 0).expect("it writes");
        file.sync().expect("it syncs");
        folder.sync_dir().expect("it syncs");
        file.write_at(&[2; 2048], 0).expect("it writes");
        folder.rename("f", "g").expect("it is there");
        let (mut torn, mut old, mut new) = (0, 0, 0);
        for seed in 0..SEEDS {
            let after = disk.survivors(seed);
            let bytes = read(&after, "f").or(read(&after, "g")).expect("one name");
            assert!(read(&after, "f").is_none() || read(&after, "g").is_none());
            assert!(bytes.chunks(512).all(|sector| sector == [sector[0]; 512]));
            match bytes.iter().filter(|byte| **byte == 2).count() {
                0 => old += 1,
                2048 => new += 1,
                _ => torn += 1,
            }
            assert_eq!(read(&disk.survivors(seed), "g"), read(&after, "g"));
        }
        assert!(torn > 0 && old > 0 && new > 0, "{torn} {old} {new}");
    }

    #[test]
    fn after_the_stop_nothing_works() {
        let disk = SimDisk::new();
        let folder = disk.folder("a");
        disk.stop_at_sync(2);
        let file = folder.create("f", 0).expect("there is room");
        folder.sync_dir().expect("the first sync");
        file.write_at(b"new", 0).expect("it writes");
        assert!(!disk.is_stopped());
        assert_eq!(file.sync().map_err(|e| e.raw_os_error()), Err(Some(5)));
        assert!(disk.is_stopped() && file.size().is_err() && folder.list().is_err());
        assert_eq!(disk.syncs(), 2);
        let kept = (0..SEEDS).filter(|seed| read(&disk.survivors(*seed), "f").unwrap() == b"new");
        assert!((1..SEEDS as usize).contains(&kept.count()));
    }

    #[test]
    fn room_is_counted_in_pages_that_are_written_or_allocated() {
        let disk = SimDisk::new();
        let folder = disk.folder("a");
        disk.set_capacity(Some(4 * PAGE_BYTES));
        let sparse = folder.create("sparse", 0).expect("no room is needed");
        sparse.set_len(100 * PAGE_BYTES).expect("nor here");
        let whole = folder.create("whole", 2 * PAGE_BYTES).expect("half of it");
        assert_eq!(disk.used_bytes(), 2 * PAGE_BYTES);
        sparse
            .write_at(&[1; 8192], 50 * PAGE_BYTES)
            .expect("the rest");
        whole.write_at(&[1; 8192], 0).expect("it has its room");
        let error = sparse.write_at(&[1; 100], 0).expect_err("no room is left");
        assert!(super::super::is_full(&error));
        assert_eq!(folder.free_bytes().expect("the disk works"), 0);
        assert!(folder.create("more", 1).is_err() && folder.list().unwrap().len() == 2);
        disk.set_capacity(None);
        sparse.write_at(&[1; 100], 0).expect("there is room again");
        disk.fail_next_sync();
        assert!(sparse.sync().is_err() && sparse.sync().is_ok());
    }

    #[test]
    fn a_file_that_is_cut_and_grown_has_zeros() {
        let disk = SimDisk::new();
        let file = disk.folder("a").create("f", 0).expect("there is room");
        file.write_at(&[7; 10_000], 0).expect("it writes");
        file.set_len(5000).expect("it cuts");
        file.set_len(9000).expect("it grows");
        let bytes = read(&disk, "f").expect("it is there");
        assert!(bytes.len() == 9000 && bytes[..5000] == [7; 5000] && bytes[5000..] == [0; 4000]);
    }
}
