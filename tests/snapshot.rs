//! Snapshots: what the wire carries, what the file holds, and what a slow or a lost client costs.

#![allow(clippy::disallowed_methods, reason = "tests poll, with a deadline")]

mod common;

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::Server;
use metastore::clock::Clock;
use metastore::engine::snapshots::{PIECE_BYTES, Snapshot};
use metastore::engine::{Compaction, Engine};
use metastore::lease::Timing;
use metastore::mvcc::hash;
use metastore::mvcc::request::Put;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::{PutRequest, SnapshotRequest};
use metastore::snapshot::bbolt::reader::{Reader, Seen};
use metastore::snapshot::contents::{self, Member};
use metastore::snapshot::save;
use metastore::storage::disk::real::RealDisk;
use metastore::storage::disk::{Disk, DiskFile};
use metastore::storage::store::{Identity, Settings};
use metastore::storage::view::View;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const TRAILER_BYTES: usize = 32;
/// Room that is left beside a file for a slow client.
const MARGIN_BYTES: u64 = 256 << 20;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Buckets of a snapshot file, with as many rows as they have, once its checksum is found right.
fn rows_of(file: &[u8]) -> Vec<(String, u64)> {
    let (database, trailer) = file.split_at(file.len() - TRAILER_BYTES);
    assert_eq!(Sha256::digest(database).as_slice(), trailer);
    assert_eq!(database.len() % 4096, 0);
    let reader = Reader::open(database).expect("it is a database");
    assert_eq!(reader.bytes(), database.len() as u64);
    let mut seen = Seen::default();
    let mut found = Vec::new();
    for bucket in reader.buckets(&mut seen).expect("its root is sound") {
        let mut count = 0;
        let mut rows = reader.rows(&bucket, &mut seen).expect("it is sound");
        while rows.next().expect("it is sound").is_some() {
            count += 1;
        }
        found.push((String::from_utf8(bucket.name).expect("a name"), count));
    }
    found
}

#[test]
fn the_wire_carries_pieces_then_the_checksum() {
    let dir = TempDir::new().expect("a folder for the test can be made");
    let binary = Path::new(env!("CARGO_BIN_EXE_metastore"));
    let server = Server::start(binary, &dir.path().join("data"), &[]);
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be built").block_on(async {
        let mut kv = KvClient::new(server.channel());
        let mut put = async |number: u32| {
            let request = PutRequest {
                key: Bytes::from(number.to_be_bytes().to_vec()),
                value: Bytes::from(vec![7; 20_000]),
                ..Default::default()
            };
            kv.put(request).await.expect("there is room")
        };
        for number in 0..20 {
            put(number).await;
        }
        let mut client = MaintenanceClient::new(server.channel());
        let stream = client.snapshot(SnapshotRequest {}).await;
        let mut stream = stream.expect("a snapshot is made").into_inner();
        let (mut parts, mut number) = (Vec::new(), 20);
        while let Some(part) = stream.message().await.expect("it is whole") {
            parts.push(part);
            // Written while it is made, and no part of it.
            put(number).await;
            number += 1;
        }
        let mut file = Vec::new();
        let (trailer, data) = parts.split_last().expect("there are parts");
        let total: usize = data.iter().map(|part| part.blob.len()).sum();
        let (last, whole) = data.split_last().expect("there are data");
        assert!(whole.iter().all(|part| part.blob.len() == PIECE_BYTES));
        assert!(!last.blob.is_empty());
        for part in data {
            file.extend_from_slice(&part.blob);
            assert_eq!(part.remaining_bytes, (total - file.len()) as u64);
        }
        assert_eq!((trailer.blob.len(), trailer.remaining_bytes), (32, 0));
        file.extend_from_slice(&trailer.blob);
        for part in &parts {
            assert!(part.header.is_none());
            assert_eq!(part.version, "3.7.0");
        }
        let expected = [
            ("alarm", 0),
            ("auth", 0),
            ("authRoles", 0),
            ("authUsers", 0),
            ("cluster", 2),
            ("key", 20),
            ("lease", 0),
            ("members", 1),
            ("members_removed", 0),
            ("meta", 4),
        ];
        let expected: Vec<_> = expected.map(|(name, rows)| (name.to_owned(), rows)).into();
        assert_eq!(rows_of(&file), expected);
    });
}

/// An engine that holds `bytes`, and no more, in one process with the test.
struct Store {
    engine: Arc<Engine>,
    folders: TempDir,
    runtime: Runtime,
}

impl Store {
    fn with(bytes: usize) -> Store {
        Store::on(bytes, |data| Arc::new(data))
    }

    /// One whose data folder is what `wrap` makes of it.
    fn on(bytes: usize, wrap: impl FnOnce(RealDisk) -> Arc<dyn Disk>) -> Store {
        let folders = TempDir::new().expect("a folder for the test can be made");
        let open = |name| {
            let disk = RealDisk::open(&folders.path().join(name));
            disk.expect("a folder can be opened")
        };
        let settings = Settings {
            data: wrap(open("data")),
            log: Arc::new(open("log")),
            cache_bytes: 4 << 20,
            flush_bytes: 4 << 20,
            segment_bytes: 4 << 20,
            reserve_bytes: 0,
            quota_bytes: None,
        };
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
            peer_urls: vec!["http://localhost:2380".to_owned()],
        };
        let engine = Engine::open(
            &settings,
            identity,
            Timing::default(),
            Compaction::default(),
            Clock::System,
        )
        .expect("the store opens");
        let runtime = Builder::new_current_thread().enable_all().build();
        let mut store = Store {
            engine: Arc::new(engine),
            folders,
            runtime: runtime.expect("a runtime can be built"),
        };
        for number in 0..bytes / 100_000 {
            store.put(number as u32);
        }
        store
    }

    /// One whose data folder has that room for more; and what was wanted of it.
    fn with_room(bytes: usize, room: Room) -> (Store, Wanted) {
        let wanted = Wanted::default();
        let store = Store::on(bytes, |disk| {
            let wanted = Arc::clone(&wanted);
            Arc::new(Spooling { disk, room, wanted })
        });
        (store, wanted)
    }

    fn put(&mut self, number: u32) {
        let put = Put {
            key: Bytes::from(number.to_be_bytes().to_vec()),
            value: Bytes::from(vec![7; 100_000]),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let written = self.runtime.block_on(self.engine.put(put));
        written.expect("there is room");
    }

    /// Takes all that is left of a snapshot that nobody has taken from: whole pieces, and in the file as
    /// many changes.
    fn take_all(&self, snapshot: &mut Snapshot, changes: u64) {
        let total = snapshot.bytes() as usize + TRAILER_BYTES;
        let mut file = Vec::new();
        self.runtime.block_on(async {
            while let Some(piece) = snapshot.next().await.expect("it is whole") {
                assert!(piece.len() == PIECE_BYTES || file.len() + PIECE_BYTES > total - 64);
                file.extend_from_slice(&piece);
            }
        });
        assert_eq!(file.len(), total);
        assert!(rows_of(&file).contains(&("key".to_owned(), changes)));
    }

    /// Begins a snapshot, and puts something, so that nobody else holds its view.
    fn begin(&mut self) -> (Snapshot, Weak<View>) {
        let view = Arc::downgrade(&self.engine.view());
        let snapshot = self.runtime.block_on(self.engine.snapshot(member()));
        let snapshot = snapshot.expect("a snapshot is begun");
        assert!(view.strong_count() > 0, "the snapshot is still being read");
        self.put(u32::MAX);
        (snapshot, view)
    }
}

fn member() -> Member {
    Member {
        id: 2,
        name: "default".to_owned(),
        peer_urls: Vec::new(),
        client_urls: Vec::new(),
        term: 1,
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

fn await_end_of(view: &Weak<View>) {
    let deadline = Instant::now() + WAIT_MAX;
    while view.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the view is still held");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_slow_client_holds_no_view_and_gets_all() {
    let mut store = Store::with(10_000_000);
    let (mut snapshot, view) = store.begin();
    await_end_of(&view);
    let data = store.folders.path().join("data");
    let names = std::fs::read_dir(data).expect("the folder is there");
    let spooled = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.contains("spool"));
    assert_eq!(spooled, None, "the file has no name");
    store.take_all(&mut snapshot, 100);
}

/// What reads all of a view asks at each row whether to go on, those that compaction has removed included.
#[test]
fn a_read_of_all_can_end_at_each_row() {
    // It fits a memtable, so that nothing is swept.
    const CHANGES: usize = 30;
    let mut store = Store::with(0);
    for _ in 0..CHANGES {
        store.put(7);
    }
    let newest = store.engine.view().revision as i64;
    let compacted = store.runtime.block_on(store.engine.compact(newest, false));
    compacted.expect("it is there");
    let view = store.engine.view();
    let asked = Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        true
    };
    contents::hash(&view, &member(), go_on).expect("it is sound");
    assert!(asked.take() >= CHANGES);
    save::size(&view, &member(), go_on).expect("it is sound");
    assert!(asked.take() >= CHANGES);
    hash::hash_kv(&view, 0, go_on).expect("it is sound");
    // Once for each key besides, whether any is there.
    assert!(asked.take() > CHANGES);
}

/// Not even what would fit there: there may be any number of such clients.
#[test]
fn a_slow_client_holds_nothing_in_memory() {
    for bytes in [10_000_000, 300_000] {
        let (mut store, wanted) = Store::with_room(bytes, Room::Plenty);
        let (mut snapshot, view) = store.begin();
        let total = snapshot.bytes() as usize + TRAILER_BYTES;
        await_end_of(&view);
        let spooled = wanted.lock().expect("nobody panics with it").clone();
        assert!(
            matches!(spooled[..], [length] if length >= total as u64 + MARGIN_BYTES),
            "{spooled:?} of {total}"
        );
        store.take_all(&mut snapshot, bytes as u64 / 100_000);
    }
}

/// Files for slow clients leave as much room as they take, so that many of them do not fill the disk.
#[test]
fn files_for_slow_clients_leave_room() {
    let (mut store, wanted) = Store::with_room(10_000_000, Room::Plenty);
    let wanted_one = |times_before: usize| {
        let deadline = Instant::now() + WAIT_MAX;
        while times(&wanted) == times_before {
            assert!(Instant::now() < deadline, "no file was wanted");
            thread::sleep(Duration::from_millis(10));
        }
        wanted.lock().expect("nobody panics with it")[times_before] - MARGIN_BYTES
    };
    let (first, view) = store.begin();
    await_end_of(&view);
    let first_bytes = wanted_one(0);
    let (second, view) = store.begin();
    await_end_of(&view);
    let total = second.bytes() + TRAILER_BYTES as u64;
    assert_eq!(wanted_one(1), first_bytes + total);
    drop((first, second));
    let (third, _) = store.begin();
    let total = third.bytes() + TRAILER_BYTES as u64;
    assert_eq!(wanted_one(2), total, "what has gone does not count");
}

/// What a folder says to a file beside the database.
#[derive(Debug, Clone, Copy)]
enum Room {
    Plenty,
    None,
    /// It ends the thread that wants one, as a bug would.
    Panic,
}

/// A folder that knows how large a file was wanted beside the database, each time.
#[derive(Debug)]
struct Spooling {
    disk: RealDisk,
    room: Room,
    wanted: Wanted,
}

type Wanted = Arc<Mutex<Vec<u64>>>;

fn times(wanted: &Wanted) -> usize {
    wanted.lock().expect("nobody panics with it").len()
}

impl Disk for Spooling {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        if name.contains("spool") {
            self.wanted.lock().expect("nobody panics with it").push(len);
            match self.room {
                Room::Plenty => {}
                Room::None => return Err(io::ErrorKind::StorageFull.into()),
                Room::Panic => panic!("as a bug would end it"),
            }
        }
        self.disk.create(name, len)
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

/// Threads for long reads that are taken, by clients that read nothing and for whom there is no file.
#[test]
fn who_waits_for_a_thread_holds_no_view() {
    let (mut store, _) = Store::with_room(10_000_000, Room::None);
    let (_first, _) = store.begin();
    let (_second, _) = store.begin();
    let view = Arc::downgrade(&store.engine.view());
    let engine = Arc::clone(&store.engine);
    let snapshot = store
        .runtime
        .spawn(async move { engine.snapshot(member()).await });
    let engine = Arc::clone(&store.engine);
    let hash = store.runtime.spawn(async move { engine.hash_kv(0).await });
    // Both have been asked before this is answered.
    store.put(0);
    await_end_of(&view);
    assert!(!snapshot.is_finished() && !hash.is_finished());
    snapshot.abort();
    hash.abort();
}

/// Without room for a file the client has longer, and gets all if it is back within that time.
#[test]
fn a_slow_client_gets_all_without_room_for_a_file() {
    let (mut store, wanted) = Store::with_room(10_000_000, Room::None);
    let (mut snapshot, view) = store.begin();
    let deadline = Instant::now() + WAIT_MAX;
    while times(&wanted) == 0 {
        assert!(Instant::now() < deadline, "no file was wanted");
        thread::sleep(Duration::from_millis(10));
    }
    store.take_all(&mut snapshot, 100);
    await_end_of(&view);
    assert_eq!(times(&wanted), 1);
}

/// A client is told when the thread that works for it has ended, however it did.
#[test]
fn a_thread_that_panics_ends_the_snapshot() {
    let (mut store, wanted) = Store::with_room(10_000_000, Room::Panic);
    let (mut snapshot, view) = store.begin();
    await_end_of(&view);
    assert_eq!(times(&wanted), 1);
    store.runtime.block_on(async {
        let rest = async { while let Ok(Some(_)) = snapshot.next().await {} };
        let ended = tokio::time::timeout(WAIT_MAX, rest).await;
        ended.expect("its end is told");
    });
}

#[test]
fn a_client_that_goes_frees_the_view() {
    let mut store = Store::with(10_000_000);
    let (mut snapshot, view) = store.begin();
    let piece = store.runtime.block_on(snapshot.next());
    assert!(piece.expect("there is one").is_some());
    drop(snapshot);
    await_end_of(&view);
}
