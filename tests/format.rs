//! A store of every format that was ever released opens, and holds what it held.
//!
//! `tests/fixtures/format-N/` was written by the program that wrote format N, and killed with part
//! of it in the log alone. It is copied before it is opened.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use metastore::clock::Clock;
use metastore::engine::Engine;
use metastore::mvcc::request::{Filters, Order, Range, Target};
use metastore::storage::check::check;
use metastore::storage::disk::real::RealDisk;
use metastore::storage::key_range::{End, KeyRange};
use metastore::storage::redb::Database;
use metastore::storage::store::{DATABASE_FILE, Identity, Settings};
use metastore::storage::{Error, format};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A copy of the fixture, as the server's settings name it.
fn fixture(version: u64, copy: &TempDir) -> Settings {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{version}"));
    fs::create_dir(copy.path().join("log")).expect("a folder");
    for name in ["data.redb", "log/0000000000000001.log"] {
        fs::copy(root.join(name), copy.path().join(name)).expect("the fixture is there");
    }
    let disk = |folder: &Path| Arc::new(RealDisk::open(folder).expect("a folder"));
    Settings {
        data: disk(copy.path()),
        log: disk(&copy.path().join("log")),
        cache_bytes: MIB as usize,
        flush_bytes: MIB as usize,
        segment_bytes: MIB,
        reserve_bytes: MIB,
    }
}

fn open(settings: &Settings) -> Result<Engine, Error> {
    let another = Identity {
        cluster_id: 1,
        member_id: 1,
        peer_urls: vec!["http://elsewhere:2380".into()],
    };
    Engine::open(settings, another, Clock::System)
}

/// All pairs at a revision, as `key=value create.mod.version`.
fn all(engine: &Arc<Engine>, revision: i64) -> Vec<String> {
    let request = Range {
        range: KeyRange {
            start: b"\0"[..].into(),
            end: End::Unbounded,
        },
        revision,
        limit: 0,
        order: Order::None,
        target: Target::Key,
        filters: Filters::default(),
        keys_only: false,
        count_only: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ranged = runtime.expect("a runtime").block_on(engine.range(request));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (ranged, _) = ranged.expect("it is readable");
    let pairs = ranged.kvs.iter().map(|kv| {
        let (key, value) = (text(&kv.key), text(&kv.value));
        format!("{key}={value} {}.{}.{}", kv.create, kv.modified, kv.version)
    });
    pairs.collect()
}

#[test]
fn format_1_opens() {
    let copy = TempDir::new().expect("a folder");
    let settings = fixture(1, &copy);
    check(&settings.data, &settings.log, |_, _| ()).expect("it is sound");
    let engine = Arc::new(open(&settings).expect("it opens"));
    let view = engine.view();
    assert_eq!((view.revision, view.floor), (11, Some(4)));
    assert_eq!(
        engine.identity().cluster_id,
        0xcdf8_1819_4e3a_8c32,
        "ids stay as they were"
    );
    assert_eq!(engine.identity().peer_urls, ["http://localhost:2380"]);
    assert_eq!(all(&engine, 0), ["c=z 5.8.2", "e=5 11.11.1"]);
    assert_eq!(all(&engine, 4), ["a=2 2.3.2", "b=x 4.4.1"]);
    let at_10 = ["c=z 5.8.2", "d=in the log 10.10.1"];
    assert_eq!(all(&engine, 10), at_10);
    drop(view);
    engine.stop();
    check(&settings.data, &settings.log, |_, _| ()).expect("it is sound still");
    assert_eq!(format::VERSION, 1, "each new format brings its fixture");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let copy = TempDir::new().expect("a folder");
    let settings = fixture(1, &copy);
    let file = || settings.data.open(DATABASE_FILE).expect("the file");
    let database = Database::open(file(), MIB as usize).expect("it opens");
    database
        .claim_format(format::VERSION + 1)
        .expect("it is written");
    drop(database);
    let refused = open(&settings).expect_err("it is newer");
    assert!(matches!(refused, Error::Newer { found: 2 }), "{refused}");
    assert!(refused.to_string().contains("format 2"), "{refused}");
}
