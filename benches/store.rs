//! The store by itself, without a network: `cargo bench --bench store [-- FILTER]`.
//!
//! Each bench has a store of its own on the file system of `target/`. Puts are as durable as the
//! server's, so they measure the disk too; reads measure memory and the database's cache.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use metastore::clock::Clock;
use metastore::engine::{Compaction, Engine};
use metastore::lease::Timing;
use metastore::mvcc::request::{
    Compare, Filters, Op, Operand, Order, Put, Range, Relation, Target, Txn,
};
use metastore::storage::disk::real::RealDisk;
use metastore::storage::key_range::{End, KeyRange};
use metastore::storage::memtable::Memtable;
use metastore::storage::record::Record;
use metastore::storage::revision::Revision;
use metastore::storage::row::Change;
use metastore::storage::store::{Identity, Settings};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;
/// Puts that are asked for at once, as by so many clients.
const AT_ONCE: u64 = 256;

struct Bench {
    runtime: Runtime,
    engine: Option<Arc<Engine>>,
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let engine = Some(open(&folder));
        Bench {
            runtime,
            engine,
            folder,
        }
    }

    /// A store with [`KEYS`] keys, all settled in the tables.
    fn filled() -> Bench {
        let bench = Bench::new();
        for begin in (0..KEYS).step_by(AT_ONCE as usize) {
            bench.put(begin..begin + AT_ONCE);
        }
        bench
            .runtime
            .block_on(bench.engine().compact(1, true))
            .expect("revision 1 is past");
        bench
    }

    fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("it is open")
    }

    fn put(&self, numbers: impl Iterator<Item = u64>) {
        self.runtime.block_on(async {
            let mut puts = JoinSet::new();
            for number in numbers {
                let engine = Arc::clone(self.engine());
                puts.spawn(async move { engine.put(put(number)).await });
            }
            while let Some(done) = puts.join_next().await {
                done.expect("no panic").expect("a put");
            }
        });
    }

    fn range(&self, request: Range) -> u64 {
        let (ranged, _) = self
            .runtime
            .block_on(self.engine().range(request))
            .expect("a range");
        ranged.count
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

fn open(folder: &TempDir) -> Arc<Engine> {
    let disk = |name| Arc::new(RealDisk::open(&folder.path().join(name)).expect("a folder"));
    let settings = Settings {
        data: disk("data"),
        log: disk("log"),
        cache_bytes: 64 << 20,
        flush_bytes: 64 << 20,
        segment_bytes: 64 << 20,
        reserve_bytes: 1 << 20,
        quota_bytes: None,
    };
    let identity = Identity {
        cluster_id: 1,
        member_id: 2,
        peer_urls: vec!["http://localhost:2380".into()],
    };
    Arc::new(
        Engine::open(
            &settings,
            identity,
            Timing::default(),
            Compaction::default(),
            Clock::System,
        )
        .expect("a store"),
    )
}

fn key(number: u64) -> Bytes {
    // Neighbours in time are no neighbours in the key space.
    format!(
        "/bench/{:016x}",
        (number % KEYS).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    )
    .into()
}

fn put(number: u64) -> Put {
    Put {
        key: key(number),
        value: Bytes::from(vec![number as u8; VALUE_BYTES]),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn range(start: Bytes, end: End, revision: i64, limit: usize) -> Range {
    Range {
        range: KeyRange { start, end },
        revision,
        limit,
        order: Order::None,
        target: Target::Key,
        filters: Filters::default(),
        keys_only: false,
        count_only: false,
    }
}

fn compare_and_swap(number: u64) -> Txn {
    Txn {
        compare: vec![Compare {
            range: KeyRange::single(key(number)),
            relation: Relation::Greater,
            operand: Operand::Version(0),
        }],
        success: vec![Op::Put(put(number))],
        failure: Vec::new(),
    }
}

fn writes(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    let bench = Bench::filled();
    let mut next = 0;
    group.bench_function("put, one at a time", |b| {
        b.iter(|| {
            next += 1;
            bench.put(next..next + 1);
        });
    });
    group.bench_function("txn, one at a time", |b| {
        b.iter(|| {
            next += 1;
            let txn = bench.engine().txn(compare_and_swap(next), VALUE_BYTES);
            bench.runtime.block_on(txn).expect("a txn")
        });
    });
    group.throughput(Throughput::Elements(AT_ONCE));
    group.bench_function("put, 256 at once", |b| {
        b.iter(|| {
            bench.put(next..next + AT_ONCE);
            next += AT_ONCE;
        });
    });
}

fn reads(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    let bench = Bench::filled();
    let newest = bench.engine().view().revision;
    // A second version of every key, in memory.
    for begin in (0..KEYS / 2).step_by(AT_ONCE as usize) {
        bench.put(begin..begin + AT_ONCE);
    }
    let mut next = 0;
    for (name, from, revision) in [
        ("get, from the memtable", 0, 0),
        ("get, from the tables", KEYS / 2 + AT_ONCE, 0),
        ("get, at an old revision", 0, newest as i64),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                next = (next + 7) % (KEYS / 2 - AT_ONCE);
                bench.range(range(key(from + next), End::Single, revision, 0))
            });
        });
    }
    for (name, revision) in [
        ("1000 keys", 0),
        ("1000 keys, at an old revision", newest as i64),
    ] {
        // With a limit the whole range is counted once, and then remembered.
        group.throughput(Throughput::Elements(1000));
        group.bench_function(name, |b| {
            let start = Bytes::from_static(b"/bench/80");
            let end = End::Before(Bytes::from_static(b"/bench/828f5c28"));
            b.iter(|| black_box(bench.range(range(start.clone(), end.clone(), revision, 0))));
        });
    }
}

fn compaction(c: &mut Criterion) {
    let mut group = c.benchmark_group("compaction");
    group.sample_size(10);
    group.throughput(Throughput::Elements(KEYS));
    group.bench_function("sweep of 100,000 superseded versions", |b| {
        b.iter_batched(
            || {
                let bench = Bench::filled();
                for begin in (0..KEYS).step_by(AT_ONCE as usize) {
                    bench.put(begin..begin + AT_ONCE);
                }
                bench
            },
            |bench| {
                let newest = bench.engine().view().revision as i64;
                bench
                    .runtime
                    .block_on(bench.engine().compact(newest, true))
                    .expect("compacted");
                bench
            },
            BatchSize::PerIteration,
        );
    });
}

fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10);
    let bench = Bench::new();
    for begin in (0..KEYS / 2).step_by(AT_ONCE as usize) {
        bench.put(begin..begin + AT_ONCE);
    }
    group.throughput(Throughput::Elements(KEYS / 2));
    group.bench_function("open with 50,000 changes in the log", |b| {
        b.iter_batched(
            || {
                // As after a crash: the files as they are, taken from under a running store.
                let copy = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
                for part in ["data", "log"] {
                    std::fs::create_dir(copy.path().join(part)).expect("a folder");
                    for file in std::fs::read_dir(bench.folder.path().join(part)).expect("files") {
                        let file = file.expect("a file");
                        let to = copy.path().join(part).join(file.file_name());
                        std::fs::copy(file.path(), to).expect("a copy");
                    }
                }
                copy
            },
            |copy| {
                let engine = open(&copy);
                assert!(engine.view().revision > KEYS / 2, "all changes are there");
                (engine, copy)
            },
            BatchSize::PerIteration,
        );
    });
}

fn memtable(c: &mut Criterion) {
    let mut group = c.benchmark_group("memtable");
    group.throughput(Throughput::Elements(KEYS));
    let changes: Vec<Change> = (0..KEYS)
        .map(|number| {
            let record = Record {
                key: &key(number),
                create: 2,
                modified: number + 2,
                version: number + 1,
                value: &[0; VALUE_BYTES],
                lease: 0,
            };
            let main = number + 2;
            Change::new(Revision { main, sub: 0 }, &record, None)
        })
        .collect();
    group.bench_function("push 100,000 random keys", |b| {
        b.iter_batched(
            || changes.clone(),
            |changes| {
                let memtable = Memtable::default();
                for change in changes {
                    memtable.push(change);
                }
                memtable
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, memtable, reads, writes, compaction, recovery);
criterion_main!(benches);
