//! A store of every format that was ever released opens, and holds what it held.
//!
//! `tests/fixtures/format-N/` was written by the program that wrote format N, and killed with part
//! of it in the log alone. It is copied before it is opened. That of the present format is written by
//! `cargo test --test format -- --ignored`, as long as the format is unreleased.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metastore::clock::Clock;
use metastore::engine::{Compaction, Engine};
use metastore::lease::Timing;
use metastore::mvcc::request::{DeleteRange, Filters, Op, Order, Put, Range, Target, Txn};
use metastore::storage::check::check;
use metastore::storage::disk::real::RealDisk;
use metastore::storage::key_range::{End, KeyRange};
use metastore::storage::redb::Database;
use metastore::storage::store::{DATABASE_FILE, Identity, Settings};
use metastore::storage::{Error, format};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;

const FILES: [&str; 2] = ["data.redb", "log/0000000000000001.log"];

fn folder_of(version: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{version}"))
}

/// A copy of the fixture, as the server's settings name it.
fn fixture(version: u64, copy: &TempDir) -> Settings {
    fs::create_dir(copy.path().join("log")).expect("a folder");
    for name in FILES {
        let kept = folder_of(version).join(name);
        fs::copy(kept, copy.path().join(name)).expect("the fixture is there");
    }
    settings(copy.path())
}

fn settings(folder: &Path) -> Settings {
    let disk = |folder: &Path| Arc::new(RealDisk::open(folder).expect("a folder"));
    Settings {
        data: disk(folder),
        log: disk(&folder.join("log")),
        cache_bytes: MIB as usize,
        flush_bytes: MIB as usize,
        segment_bytes: MIB,
        reserve_bytes: MIB,
        quota_bytes: None,
    }
}

fn open(settings: &Settings) -> Result<Engine, Error> {
    let another = Identity {
        cluster_id: 1,
        member_id: 1,
        peer_urls: vec!["http://elsewhere:2380".into()],
    };
    Engine::open(
        settings,
        another,
        Timing::default(),
        Compaction::default(),
        Clock::System,
    )
}

fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// All pairs at a revision, as `key=value create.mod.version`, and `@` the lease.
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
    let ranged = runtime().block_on(engine.range(request));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (ranged, _) = ranged.expect("it is readable");
    let pairs = ranged.kvs.iter().map(|kv| {
        let (key, value) = (text(&kv.key), text(&kv.value));
        let lease = match kv.lease {
            0 => String::new(),
            lease => format!("@{lease}"),
        };
        let (create, modified, version) = (kv.create, kv.modified, kv.version);
        format!("{key}={value} {create}.{modified}.{version}{lease}")
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
    assert_eq!(all(&engine, 0), ["c=z 5.8.2@7", "e=5 11.11.1@-9"]);
    assert_eq!(all(&engine, 4), ["a=2 2.3.2@8", "b=x 4.4.1@8"]);
    let at_10 = ["c=z 5.8.2@7", "d=in the log 10.10.1@7"];
    assert_eq!(all(&engine, 10), at_10);
    let leases = [
        (7, 600, &["c"][..]),
        (8, 2, &[]),
        (-9, 9_000_000_000, &["e"]),
    ];
    runtime().block_on(async {
        for (id, ttl_secs, keys) in leases {
            let answer = engine.time_to_live(id, true).await;
            let (answer, _room) = answer.expect("an answer");
            let standing = answer.standing.expect("the lease is there");
            assert_eq!(standing.ttl_secs, ttl_secs);
            assert_eq!(
                answer.keys,
                keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>()
            );
        }
        let (ids, ..) = engine.leases().await.expect("an answer");
        assert_eq!(ids, [8, 7, -9]);
    });
    drop(view);
    engine.stop();
    check(&settings.data, &settings.log, |_, _| ()).expect("it is sound still");
    assert_eq!(format::VERSION, 1, "each new format brings its fixture");
}

/// Part of it is in the tables, part of it in the log alone.
#[test]
#[ignore = "writes the fixture anew"]
fn format_1_is_written() {
    let folder = TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("log")).expect("a folder");
    let identity = Identity {
        cluster_id: 0xcdf8_1819_4e3a_8c32,
        member_id: 0x8e9e_05c5_2164_694d,
        peer_urls: vec!["http://localhost:2380".into()],
    };
    let settings = settings(folder.path());
    let timing = Timing::default();
    let engine = Engine::open(
        &settings,
        identity,
        timing,
        Compaction::default(),
        Clock::System,
    )
    .expect("it opens");
    let engine = Arc::new(engine);
    let put = |key: &'static str, value: &'static str, lease| Put {
        key: key.into(),
        value: value.into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let delete = |key: &'static str| DeleteRange {
        range: KeyRange::single(key.into()),
        prev_kv: false,
    };
    runtime().block_on(async {
        for (id, ttl_secs) in [(7, 600), (8, 0), (10, 100)] {
            engine.grant(id, ttl_secs).await.expect("a lease");
        }
        for put in [
            put("a", "1", 0),
            put("a", "2", 8),
            put("b", "x", 8),
            put("c", "y", 10),
        ] {
            engine.put(put).await.expect("a put");
        }
        engine.delete_range(delete("b")).await.expect("a delete");
        engine.put(put("a", "3", 7)).await.expect("a put");
        engine.put(put("c", "z", 7)).await.expect("a put");
        engine.compact(4, true).await.expect("all is in the tables");
        engine.delete_range(delete("a")).await.expect("a delete");
        engine.put(put("d", "in the log", 7)).await.expect("a put");
        engine.grant(-9, 9_000_000_000).await.expect("a lease");
        engine.revoke(10).await.expect("the lease is there");
        let ops = vec![Op::Put(put("e", "5", -9)), Op::DeleteRange(delete("d"))];
        let txn = Txn {
            success: ops,
            ..Txn::default()
        };
        engine.txn(txn, 0).await.expect("a txn");
    });
    // As a kill leaves it; what the log has not used yet is left out.
    fs::create_dir_all(folder_of(1).join("log")).expect("a folder");
    for name in FILES {
        let mut bytes = fs::read(folder.path().join(name)).expect("the file");
        if name.starts_with("log/") {
            let used = bytes.iter().rposition(|byte| *byte != 0).expect("rows") + 1;
            bytes.truncate(used.next_multiple_of(8));
        }
        fs::write(folder_of(1).join(name), bytes).expect("the fixture is written");
    }
    engine.stop();
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
