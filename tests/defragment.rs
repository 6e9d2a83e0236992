//! Defragmentation, one step at a time: whatever happens between two steps, and wherever the disk
//! stops or fills up, all that was decided is there, as it was.
//!
//! The store and its settler are moved by hand here, on a simulated disk; so a stop that is named by
//! its number is the same one every time. That calls go on meanwhile is for `tests/crash.rs`,
//! `tests/model.rs` and the interop suite.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use metastore::mvcc::request::{DeleteRange, Put};
use metastore::mvcc::write_txn::WriteTxn;
use metastore::mvcc::{self, hash, history};
use metastore::storage::disk::sim::{SimDisk, SplitMix};
use metastore::storage::disk::{Disk, DiskFile};
use metastore::storage::key_range::KeyRange;
use metastore::storage::revision::Revision;
use metastore::storage::row::{LeaseRow, Stamp};
use metastore::storage::settler::{Outcome, Settler};
use metastore::storage::small::Bucket;
use metastore::storage::store::{DATABASE_FILE, Identity, Sealed, Settings, Store};
use metastore::storage::view::View;
use metastore::storage::{Error, check};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// The name of the new file.
const NEW_FILE: &str = "data.redb.new";

/// Few, so that there is something to compact.
const KEYS: u64 = 60;
const LEASES: i64 = 3;

const STAMP: Stamp = Stamp {
    millis: 0,
    author: None,
};

const STEPS_MAX: usize = 10_000;

fn settings(data: Arc<dyn Disk>, log: Arc<dyn Disk>) -> Settings {
    Settings {
        data,
        log,
        // So that there are many slices of little data.
        cache_bytes: 64 << 10,
        flush_bytes: 32 << 10,
        segment_bytes: 32 << 10,
        reserve_bytes: 64 << 10,
        quota_bytes: None,
    }
}

fn settings_on(disk: &SimDisk) -> Settings {
    settings(disk.folder("data"), disk.folder("log"))
}

/// A store that is moved by hand.
struct Driven {
    store: Store,
    settler: Settler,
    random: SplitMix,
}

/// All that a client could find out.
#[derive(Debug, Clone, PartialEq)]
struct Contents {
    revision: u64,
    floor: Option<u64>,
    history: Vec<(Revision, Vec<u8>)>,
    hash: u32,
    leases: BTreeMap<i64, Option<LeaseRow>>,
    attached: Vec<Vec<Vec<u8>>>,
    small: Vec<(Bucket, Vec<u8>, Vec<u8>)>,
}

fn contents(view: &View) -> Contents {
    let mut rows = Vec::new();
    let read = history::each(view, view.revision, |met| {
        if history::stays(view, &met)? {
            rows.push((met.at, met.bytes.to_vec()));
        }
        Ok::<_, mvcc::Error>(())
    });
    read.expect("history can be read");
    let mut leases = BTreeMap::new();
    view.for_each_lease(|id, row| {
        leases.insert(id, row);
    })
    .expect("leases can be read");
    leases.retain(|_, row| row.is_some());
    let attached = (1..=LEASES).map(|id| view.attached(id, view.revision));
    let small = view.small.all();
    Contents {
        revision: view.revision,
        floor: view.floor,
        history: rows,
        hash: hash::hash_kv(view, 0, || true).expect("it hashes").hash,
        leases,
        attached: attached.collect::<Result<_, _>>().expect("it can be read"),
        small: small
            .map(|(bucket, key, value)| (bucket, key.to_vec(), value.to_vec()))
            .collect(),
    }
}

impl Driven {
    fn open(settings: &Settings, seed: u64) -> Result<Driven, Error> {
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
            peer_urls: vec!["http://localhost:2380".to_owned()],
        };
        let (store, settler) = Store::open(settings, identity)?;
        Ok(Driven {
            store,
            settler,
            random: SplitMix(seed),
        })
    }

    fn view(&self) -> Arc<View> {
        self.store.views().load()
    }

    fn contents(&self) -> Contents {
        contents(&self.view())
    }

    /// A batch of changes of any kind.
    fn write(&mut self) -> Result<(), Error> {
        self.store.begin_batch();
        for _ in 0..1 + self.random.below(4) {
            self.change();
        }
        self.store.commit()?;
        self.store.publish();
        Ok(())
    }

    fn change(&mut self) {
        let random = &mut self.random;
        let key = Bytes::from(format!("key {}", random.below(KEYS)));
        match random.below(16) {
            0 => {
                let (revision, floor) = (self.store.revision(), self.store.view().floor);
                let floor = floor.map_or(1, |floor| floor + 1);
                if floor <= revision {
                    let above = random.below(revision + 1 - floor);
                    self.store.raise_floor(floor + above);
                }
            }
            1 => {
                let row = LeaseRow {
                    ttl_secs: 1 + random.below(100),
                    seen_millis: 0,
                };
                let id = 1 + random.below(LEASES as u64) as i64;
                self.store.keep_lease(id, row);
                self.store.count_command();
            }
            2 => {
                let value = random.draw().to_be_bytes();
                let value = (random.below(3) > 0).then_some(&value[..]);
                self.store.set_small(Bucket::AuthUsers, &key, value);
                self.store.count_command();
            }
            3..=4 => {
                let mut write = WriteTxn::begin(&mut self.store, STAMP);
                let range = KeyRange::single(key);
                let delete = DeleteRange {
                    range,
                    prev_kv: false,
                };
                write.delete_range(&delete).expect("it can be read");
                write.end();
            }
            _ => {
                let lease = random.below(LEASES as u64 + 1) as i64;
                let length = match random.below(20) {
                    0 => 9000,
                    1..=4 => random.below(2000),
                    _ => random.below(200),
                };
                let value: Vec<u8> = (0..length).map(|_| random.draw() as u8).collect();
                put(&mut self.store, key, value, lease);
                if lease != 0 {
                    let row = LeaseRow {
                        ttl_secs: 60,
                        seen_millis: 0,
                    };
                    self.store.keep_lease(lease, row);
                }
            }
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let sealed: Sealed = self.store.seal().expect("no other is sealed");
        while self.settler.flush(&sealed)? != Outcome::Done {}
        self.settler.free_retired();
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), Error> {
        assert!(!self.settler.is_defragmenting());
        while self.settler.sweep()? == Outcome::More {}
        Ok(())
    }

    /// Takes steps until it is done or refused.
    fn defragment(&mut self) -> Result<Outcome, Error> {
        self.store.begin_batch();
        self.settler.free_retired();
        assert!(self.settler.can_defragment());
        for _ in 0..STEPS_MAX {
            match self.settler.defragment()? {
                Outcome::More => assert!(self.settler.is_defragmenting()),
                outcome => {
                    assert!(!self.settler.is_defragmenting());
                    return Ok(outcome);
                }
            }
        }
        panic!("a defragmentation comes to an end");
    }

    /// Much that is gone, and some that is not.
    fn fill(&mut self) -> Result<(), Error> {
        for _ in 0..3 {
            for _ in 0..40 {
                self.write()?;
            }
            self.flush()?;
        }
        self.sweep()
    }
}

fn put(store: &mut Store, key: Bytes, value: Vec<u8>, lease: i64) {
    let mut write = WriteTxn::begin(store, STAMP);
    let put = Put {
        key,
        value: value.into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    write.put(&put).expect("it can be read");
    write.end();
}

fn sound(disk: &SimDisk, story: &str) {
    let (data, log) = (disk.folder("data"), disk.folder("log"));
    check::check(&data, &log, |_, _| ()).unwrap_or_else(|finding| panic!("{story}: {finding}"));
}

fn has(disk: &SimDisk, name: &str) -> bool {
    let names = disk.folder("data").list().expect("the disk works");
    names.iter().any(|other| other == name)
}

fn file_bytes(disk: &SimDisk) -> u64 {
    let file = disk.folder("data").open(DATABASE_FILE);
    let size = file.and_then(|file| file.size());
    size.expect("the database is there")
}

/// Most of what was written is gone, and the file is little longer than the rows that are left.
#[test]
fn the_file_is_as_small_as_what_is_in_it() {
    const LEFT: u64 = 4000;
    let disk = SimDisk::new();
    let settings = Settings {
        cache_bytes: 4 << 20,
        flush_bytes: 1 << 20,
        ..settings_on(&disk)
    };
    let mut driven = Driven::open(&settings, 1).expect("there is room");
    for number in 0..4 * LEFT {
        let key = format!("key {}", number % LEFT * 7919 % LEFT);
        let value = vec![number as u8; 200];
        driven.store.begin_batch();
        put(&mut driven.store, key.into(), value, 0);
        driven.store.commit().expect("there is room");
        driven.store.publish();
        if number % LEFT == LEFT / 2 {
            driven.flush().expect("there is room");
        }
    }
    driven.store.begin_batch();
    driven.store.raise_floor(driven.store.revision());
    driven.store.commit().expect("there is room");
    driven.store.publish();
    driven.flush().expect("there is room");
    driven.sweep().expect("there is room");
    let before = driven.contents();
    assert_eq!(before.history.len(), LEFT as usize);
    let file_before = file_bytes(&disk);
    let outcome = driven.defragment().expect("the disk works");
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(driven.contents(), before);
    let meta = driven.view().settled().meta.clone();
    let rows = meta.history_bytes + meta.index_bytes;
    let (file, used) = (file_bytes(&disk), disk.used_bytes());
    println!("rows {rows}, file {file_before} -> {file}, disk {used}");
    assert!(file < file_before / 2 && file < rows * 5 / 4 + (128 << 10));
    // Beside it lie two segments of the log and the reserve.
    assert!(used < file + (160 << 10));
    drop(driven);
    sound(&disk, "after");
}

/// Who reads on in a view of before gets what is there in it, and the old file is kept for as long.
#[test]
fn a_view_of_before_reads_on() {
    let disk = SimDisk::new();
    let mut driven = Driven::open(&settings_on(&disk), 2).expect("there is room");
    driven.fill().expect("there is room");
    driven.store.begin_batch();
    let held = driven.view();
    let before = contents(&held);
    assert_eq!(driven.defragment().expect("there is room"), Outcome::Done);
    for _ in 0..3 {
        driven.write().expect("there is room");
        driven.flush().expect("there is room");
        assert!(!driven.settler.can_defragment());
        assert_eq!(contents(&held), before);
    }
    drop(held);
    driven.settler.free_retired();
    assert!(driven.settler.can_defragment());
    assert_eq!(driven.defragment().expect("there is room"), Outcome::Done);
    drop(driven);
    sound(&disk, "after");
}

/// What happens between two steps of a defragmentation.
#[derive(Debug, Clone)]
enum Event {
    Write(u8),
    Flush,
    Steps(u8),
    Abandon,
    Crash(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..20u8).prop_map(Event::Write),
        4 => Just(Event::Flush),
        10 => (1..12u8).prop_map(Event::Steps),
        1 => Just(Event::Abandon),
        1 => any::<u64>().prop_map(Event::Crash),
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(24, |cases| cases.parse().unwrap_or(24)),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/defragment.proptest-regressions",
        ))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_changes_whatever_happens_between_steps(
        seed in any::<u64>(),
        events in vec(any_event(), 1..60),
    ) {
        let mut disk = SimDisk::new();
        let mut driven = Driven::open(&settings_on(&disk), seed).expect("there is room");
        driven.fill().expect("there is room");
        for event in events {
            let before = driven.contents();
            match event {
                Event::Write(batches) => {
                    for _ in 0..batches {
                        driven.write().expect("there is room");
                    }
                    continue;
                }
                Event::Flush => driven.flush().expect("there is room"),
                Event::Steps(steps) => for _ in 0..steps {
                    if driven.settler.is_defragmenting() {
                        driven.settler.defragment().expect("there is room");
                    } else {
                        driven.sweep().expect("there is room");
                        driven.store.begin_batch();
                        driven.settler.free_retired();
                        prop_assert!(driven.settler.can_defragment());
                        driven.settler.defragment().expect("there is room");
                    }
                },
                Event::Abandon => {
                    driven.settler.abandon().expect("the disk works");
                    prop_assert!(!has(&disk, NEW_FILE));
                }
                Event::Crash(seed) => {
                    let Driven { random, .. } = driven;
                    disk = disk.survivors(seed);
                    sound(&disk, "after a crash");
                    driven = Driven::open(&settings_on(&disk), 0).expect("there is room");
                    driven.random = random;
                    prop_assert!(!has(&disk, NEW_FILE));
                }
            }
            prop_assert!(driven.contents() == before);
        }
        let before = driven.contents();
        driven.settler.abandon().expect("the disk works");
        drop(driven);
        sound(&disk, "at the end");
        let driven = Driven::open(&settings_on(&disk), 0).expect("there is room");
        prop_assert!(driven.contents() == before);
    }
}

/// Writes, and flushes after every so many steps, while a defragmentation goes from its first step
/// to its last; `told` is what is there after each batch.
fn defragment_under_load(
    settings: &Settings,
    flush_every: usize,
    told: &mut Vec<Contents>,
) -> Result<(Driven, Outcome), Error> {
    let mut driven = Driven::open(settings, 7)?;
    told.push(driven.contents());
    driven.store.begin_batch();
    for step in 0..STEPS_MAX {
        let outcome = driven.settler.defragment()?;
        if outcome != Outcome::More {
            return Ok((driven, outcome));
        }
        if step % 3 == 0 {
            driven.write()?;
            told.push(driven.contents());
        }
        if step % flush_every == flush_every - 1 {
            driven.flush()?;
        }
    }
    panic!("a defragmentation comes to an end");
}

/// A disk with a store on it that a crash has left in the middle of a flush.
fn used_disk(seed: u64) -> SimDisk {
    for stop in 1.. {
        let disk = SimDisk::new();
        let mut driven = Driven::open(&settings_on(&disk), seed).expect("there is room");
        driven.fill().expect("there is room");
        for _ in 0..40 {
            driven.write().expect("there is room");
        }
        disk.stop_at_sync(disk.syncs() + 3 * stop);
        let flushed = driven.flush();
        assert!(flushed.is_err(), "a flush has many syncs");
        let disk = disk.survivors(seed + stop);
        let driven = Driven::open(&settings_on(&disk), 0).expect("there is room");
        let view = driven.view();
        let mut rows = 0;
        let read = view.settled().for_each_history(|at, _| {
            rows += u64::from(at.main > view.settled().meta.revision);
            Ok(true)
        });
        read.expect("history can be read");
        if rows > 0 {
            return disk.survivors(0);
        }
    }
    unreachable!("some stop leaves rows of an unfinished flush")
}

/// Wherever in it the disk stops, all that was answered is there after, and the files are sound. What
/// a flush that was cut short has left is flushed before the last step, or after it.
#[test]
fn a_stop_at_any_sync_loses_nothing() {
    let base = used_disk(3);
    sound(&base, "before");
    for flush_every in [10, STEPS_MAX] {
        let whole = base.revived();
        let mut all = Vec::new();
        let ended = defragment_under_load(&settings_on(&whole), flush_every, &mut all);
        let (driven, outcome) = ended.expect("there is room");
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(driven.contents(), all[all.len() - 1]);
        drop(driven);
        sound(&whole, "after");
        let syncs = whole.syncs();
        assert!(syncs > 30, "there is much to stop at: {syncs}");
        for stop in 1..=syncs {
            let disk = base.revived();
            disk.stop_at_sync(stop);
            let mut told = Vec::new();
            let ended = defragment_under_load(&settings_on(&disk), flush_every, &mut told);
            assert_eq!(ended.is_err(), disk.is_stopped(), "stop {stop}");
            drop(ended);
            for fate in 0..4 {
                let story = format!("stop {stop}, fate {fate}");
                let after = match fate {
                    0 => disk.revived(),
                    _ => disk.survivors(stop * 4 + fate),
                };
                sound(&after.revived(), &story);
                let driven = Driven::open(&settings_on(&after), 0).expect("there is room");
                let found = driven.contents();
                let answered = told.len().saturating_sub(1);
                let batch = all[answered..].iter().take(2).position(|at| *at == found);
                assert!(
                    batch.is_some(),
                    "{story}: not as after batch {answered} or the next"
                );
                assert!(!has(&after, NEW_FILE), "{story}");
            }
        }
        println!("{syncs} stops");
    }
}

/// A disk that has no room for the n-th write of the new file, nor for any after it.
#[derive(Debug)]
struct Narrow {
    disk: Arc<dyn Disk>,
    writes_left: Arc<AtomicI64>,
}

#[derive(Debug)]
struct NarrowFile {
    file: Arc<dyn DiskFile>,
    writes_left: Arc<AtomicI64>,
}

impl NarrowFile {
    fn take(&self) -> io::Result<()> {
        match self.writes_left.fetch_sub(1, Ordering::Relaxed) {
            ..=0 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl Disk for Narrow {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(name)?;
        let writes_left = Arc::clone(&self.writes_left);
        Ok(match name {
            NEW_FILE => Arc::new(NarrowFile { file, writes_left }),
            _ => file,
        })
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.create(name, len)?;
        let writes_left = Arc::clone(&self.writes_left);
        Ok(match name {
            NEW_FILE => Arc::new(NarrowFile { file, writes_left }),
            _ => file,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

impl DiskFile for NarrowFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.take()?;
        self.file.write_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.take()?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.take()?;
        self.file.sync()
    }
}

/// Wherever the disk fills up, nothing is left of it, and the store goes on; the reserve is kept.
#[test]
fn a_full_disk_ends_it_and_nothing_else() {
    let base = used_disk(4);
    let mut number = 0;
    loop {
        let disk = base.revived();
        let narrow = Arc::new(Narrow {
            disk: disk.folder("data"),
            writes_left: Arc::new(AtomicI64::new(i64::MAX)),
        });
        let settings = settings(Arc::clone(&narrow) as Arc<dyn Disk>, disk.folder("log"));
        // The first start makes a file of that name too, others do not.
        narrow.writes_left.store(number, Ordering::Relaxed);
        let story = format!("no room for write {number}");
        let mut told = Vec::new();
        let ended = defragment_under_load(&settings, 10, &mut told);
        let (mut driven, outcome) = ended.unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_eq!(driven.contents(), told[told.len() - 1], "{story}");
        assert!(
            !has(&disk, NEW_FILE) && !driven.store.space().is_full(),
            "{story}"
        );
        if outcome == Outcome::Done {
            break;
        }
        driven.write().expect("there is room");
        driven.flush().expect("there is room");
        driven.sweep().expect("there is room");
        driven.settler.check_disk().expect("the database is whole");
        let before = driven.contents();
        if number % 5 == 0 {
            narrow.writes_left.store(i64::MAX, Ordering::Relaxed);
            assert_eq!(driven.defragment().expect("there is room"), Outcome::Done);
            assert_eq!(driven.contents(), before, "{story}");
        }
        drop(driven);
        sound(&disk, &story);
        let driven = Driven::open(&settings_on(&disk), 0).expect("there is room");
        assert_eq!(driven.contents(), before, "{story}");
        // The start and the end alike, and some of what is between.
        number += if number < 30 { 1 } else { 7 };
    }
    assert!(number > 50, "there is much to write: {number}");
    println!("{number} writes and more");
}

/// A flush that has no room gets that of the new file, and the reserve is kept.
#[test]
fn it_gives_way_to_a_flush_on_a_full_disk() {
    let disk = SimDisk::new();
    let mut driven = Driven::open(&settings_on(&disk), 6).expect("there is room");
    for number in 0..400 {
        driven.store.begin_batch();
        put(
            &mut driven.store,
            format!("key {number}").into(),
            vec![7; 500],
            0,
        );
        driven.store.commit().expect("there is room");
        driven.store.publish();
    }
    driven.flush().expect("there is room");
    let used = disk.used_bytes();
    while disk.used_bytes() < used + (150 << 10) {
        let outcome = driven.settler.defragment().expect("there is room");
        assert_eq!(outcome, Outcome::More);
    }
    driven.write().expect("there is room");
    let before = driven.contents();
    disk.set_capacity(Some(disk.used_bytes()));
    driven
        .flush()
        .expect("there is room once the new file is gone");
    assert!(!driven.settler.is_defragmenting() && !has(&disk, NEW_FILE));
    assert!(!driven.store.space().is_full());
    assert_eq!(driven.contents(), before);
    disk.set_capacity(None);
    assert_eq!(driven.defragment().expect("there is room"), Outcome::Done);
    assert_eq!(driven.contents(), before);
    drop(driven);
    sound(&disk, "after");
}

/// History that grows faster than it is copied holds it up for so long, and then flushes wait.
#[test]
fn it_comes_to_an_end_whatever_is_written() {
    let disk = SimDisk::new();
    let mut driven = Driven::open(&settings_on(&disk), 8).expect("there is room");
    driven.fill().expect("there is room");
    driven.settler.defragment().expect("there is room");
    let mut flushes = 0;
    while !driven.settler.holds_flushes() {
        for _ in 0..5 {
            driven.write().expect("there is room");
        }
        driven.flush().expect("there is room");
        driven.settler.defragment().expect("there is room");
        assert!(driven.settler.is_defragmenting());
        flushes += 1;
        assert!(flushes < 200, "flushes are held at last");
    }
    let before = driven.contents();
    while driven.settler.defragment().expect("there is room") == Outcome::More {}
    assert_eq!(driven.contents(), before);
    assert!(!driven.settler.holds_flushes());
    drop(driven);
    sound(&disk, "after");
}

/// With less room than it may need it does not begin, and with too little left beside it it ends.
#[test]
fn too_little_room_refuses_it() {
    let disk = SimDisk::new();
    let mut driven = Driven::open(&settings_on(&disk), 5).expect("there is room");
    driven.fill().expect("there is room");
    let before = driven.contents();
    let used = disk.used_bytes();
    let (mut refused, mut ended, mut done) = (0, 0, 0);
    for kib in (0..2000).step_by(4) {
        disk.set_capacity(Some(used + (kib << 10)));
        driven.store.begin_batch();
        driven.settler.free_retired();
        let first = driven.settler.defragment().expect("it is refused at most");
        let mut outcome = first;
        while outcome == Outcome::More {
            outcome = driven.settler.defragment().expect("it is refused at most");
        }
        assert!(!has(&disk, NEW_FILE) && !driven.store.space().is_full());
        assert_eq!(driven.contents(), before);
        match (first, outcome) {
            (Outcome::NoSpace, _) => refused += 1,
            (_, Outcome::NoSpace) => ended += 1,
            _ => {
                done += 1;
                break;
            }
        }
    }
    println!("{refused} refused, {ended} ended, {done} done");
    assert!(
        refused > 0 && ended > 0 && done > 0,
        "{refused}, {ended}, {done}"
    );
    drop(driven);
    sound(&disk, "after");
}
