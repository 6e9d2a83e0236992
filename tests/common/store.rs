//! A store of a test: an engine over two folders of its own, asked from a plain function.
//!
//! Its parts are small, so that a handful of requests fills a memtable and a segment. Time moves
//! when the test moves it. When it is dropped it is stopped, and `storage::check` must find its files sound.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::thread;

use bytes::Bytes;
use metastore::clock::Clock;
use metastore::engine::alarm::{self, Alarm};
use metastore::engine::command::Granted;
use metastore::engine::{Compaction, Engine, KeptAlive, TimeToLive};
use metastore::grpc::Context;
use metastore::grpc::kv::KvService;
use metastore::lease::Timing;
use metastore::mvcc::Error;
use metastore::mvcc::model::Change;
use metastore::mvcc::request::{Decided, DeleteRange, Deleted, Put, Range, Ranged, Txn, Written};
use metastore::proto::etcdserverpb as pb;
use metastore::proto::etcdserverpb::kv_server::Kv;
use metastore::storage::check::{Report, check};
use metastore::storage::disk::Disk;
use metastore::storage::record::{KeyValue, Record};
use metastore::storage::redb::Database;
use metastore::storage::row::HistoryRow;
use metastore::storage::store::{DATABASE_FILE, Identity, Settings};
use metastore::storage::view::View;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::StreamExt;
use tonic::Status;

use super::mortal_disk::{Life, MortalDisk};

const KIB: usize = 1024;

/// What the writer is asked.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
    Compact { revision: i64, physical: bool },
    Grant { id: i64, ttl_secs: i64 },
    Revoke(i64),
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Put(Written),
    DeleteRange(Deleted),
    Txn(Decided),
    Compact(u64),
    Granted(Granted),
    Revoked(u64),
}

/// What the tables hold when the store is stopped.
#[derive(Debug)]
pub(crate) struct Tables {
    /// All versions, in order of time.
    pub(crate) history: Vec<Change>,
    /// Compaction up to here is swept.
    pub(crate) swept: u64,
}

/// See the module.
pub(crate) struct TestStore {
    folders: TempDir,
    runtime: Runtime,
    running: Option<Running>,
    compaction: Compaction,
    /// In microseconds, from life to life.
    time: Arc<AtomicU64>,
    quota_bytes: Option<u64>,
}

struct Running {
    engine: Arc<Engine>,
    life: Life,
}

impl TestStore {
    /// A store that nothing was ever written to.
    pub(crate) fn new() -> TestStore {
        TestStore::with(Compaction::default(), None)
    }

    /// One that compacts by itself.
    pub(crate) fn compacting(compaction: Compaction) -> TestStore {
        TestStore::with(compaction, None)
    }

    /// One with a quota.
    pub(crate) fn with_quota(quota_bytes: u64) -> TestStore {
        TestStore::with(Compaction::default(), Some(quota_bytes))
    }

    fn with(compaction: Compaction, quota_bytes: Option<u64>) -> TestStore {
        let folders = TempDir::new().expect("a folder for the test can be made");
        let runtime = Builder::new_current_thread().enable_all().build();
        let mut store = TestStore {
            running: None,
            compaction,
            time: Arc::new(AtomicU64::new(1_000_000)),
            quota_bytes,
            folders,
            runtime: runtime.expect("a runtime can be built"),
        };
        store.start();
        store
    }

    fn start(&mut self) {
        let life = Life::default();
        let settings = Settings {
            data: MortalDisk::open(&self.folder("data"), &life),
            log: MortalDisk::open(&self.folder("log"), &life),
            cache_bytes: 256 * KIB,
            flush_bytes: 16 * KIB,
            segment_bytes: 64 * KIB as u64,
            reserve_bytes: 64 * KIB as u64,
            quota_bytes: self.quota_bytes,
        };
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
            peer_urls: vec!["http://localhost:2380".to_owned()],
        };
        let clock = Clock::Manual(Arc::clone(&self.time));
        let engine = Engine::open(
            &settings,
            identity,
            Timing::default(),
            self.compaction,
            clock,
        )
        .expect("the store opens");
        self.running = Some(Running {
            engine: Arc::new(engine),
            life,
        });
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folders.path()).join(name)
    }

    /// What is behind it.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.running.as_ref().expect("the store runs").engine
    }

    /// The current view.
    pub(crate) fn view(&self) -> Arc<View> {
        self.engine().view()
    }

    /// Writes one key.
    pub(crate) fn put(&self, put: Put) -> Result<Written, Error> {
        self.runtime.block_on(self.engine().put(put))
    }

    /// Deletes keys.
    pub(crate) fn delete_range(&self, delete: DeleteRange) -> Result<Deleted, Error> {
        self.runtime.block_on(self.engine().delete_range(delete))
    }

    /// Runs a txn.
    pub(crate) fn txn(&self, txn: Txn) -> Result<Decided, Error> {
        self.runtime.block_on(self.engine().txn(txn, 0))
    }

    /// Raises the floor.
    pub(crate) fn compact(&self, revision: i64, physical: bool) -> Result<u64, Error> {
        self.runtime
            .block_on(self.engine().compact(revision, physical))
    }

    /// Refuses what would pass the quota.
    pub(crate) fn check_quota(&self, cost: u64) -> Result<(), Error> {
        self.runtime.block_on(self.engine().check_quota(cost))
    }

    /// Raises an alarm.
    pub(crate) fn raise(&self, alarm: Alarm) {
        let raised = self.runtime.block_on(self.engine().raise(alarm));
        raised.expect("it can be raised");
    }

    /// Clears an alarm; whether it was there.
    pub(crate) fn clear(&self, alarm: Alarm) -> Result<bool, Error> {
        let cleared = self.runtime.block_on(self.engine().clear(alarm));
        cleared.map(|(was_there, _)| was_there)
    }

    /// All alarms that are raised.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        alarm::raised(&self.view().small).collect()
    }

    /// Lets a plain function wait.
    pub(crate) fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Copies the tables into a new file.
    pub(crate) fn defragment(&self) -> Result<(), Error> {
        self.runtime.block_on(self.engine().defragment())
    }

    /// The same, and goes on at once.
    pub(crate) fn begin_defragment(&self) {
        let engine = Arc::clone(self.engine());
        // It may be given up by a stop, and nobody waits for it.
        let defragmenting = self.runtime.spawn(async move { engine.defragment().await });
        self.runtime.block_on(tokio::task::yield_now());
        drop(defragmenting);
    }

    /// Grants a lease.
    pub(crate) fn grant(&self, id: i64, ttl_secs: i64) -> Result<Granted, Error> {
        self.runtime.block_on(self.engine().grant(id, ttl_secs))
    }

    /// Removes a lease.
    pub(crate) fn revoke(&self, id: i64) -> Result<u64, Error> {
        self.runtime.block_on(self.engine().revoke(id))
    }

    /// Lets a lease run anew.
    pub(crate) fn keep_alive(&self, id: i64) -> Result<KeptAlive, Error> {
        self.runtime.block_on(self.engine().keep_alive(id))
    }

    /// How a lease stands, and its keys.
    pub(crate) fn time_to_live(&self, id: i64) -> Result<TimeToLive, Error> {
        let answer = self.runtime.block_on(self.engine().time_to_live(id, true));
        answer.map(|(answer, _room)| answer)
    }

    /// All leases, soonest to end first.
    pub(crate) fn leases(&self) -> Result<Vec<i64>, Error> {
        let answer = self.runtime.block_on(self.engine().leases());
        answer.map(|(ids, _, _room)| ids)
    }

    /// Lets time pass, and what has run out then expire.
    pub(crate) fn pass(&self, secs: u64) {
        self.move_clock(secs);
        let expired = self.runtime.block_on(self.engine().expire_due());
        expired.expect("what has run out can go");
    }

    /// Lets time pass, and nobody look.
    pub(crate) fn move_clock(&self, secs: u64) {
        self.time.fetch_add(secs * 1_000_000, Ordering::Relaxed);
    }

    /// Asks the writer all of `writes` before it answers any, so that they share batches.
    pub(crate) fn write_together(&self, writes: Vec<Write>) -> Vec<Result<Answer, Error>> {
        let engine = self.engine();
        type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer, Error>> + 'a>>;
        let mut asking: Vec<Asking<'_>> = Vec::new();
        for write in writes {
            asking.push(Box::pin(ask(engine, write)));
        }
        let mut answers: Vec<_> = asking.iter().map(|_| None).collect();
        self.runtime.block_on(std::future::poll_fn(|context| {
            for (asking, answer) in asking.iter_mut().zip(&mut answers) {
                if answer.is_none()
                    && let Poll::Ready(ready) = asking.as_mut().poll(context)
                {
                    *answer = Some(ready);
                }
            }
            match answers.iter().all(Option::is_some) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        }));
        answers.into_iter().flatten().collect()
    }

    /// Reads keys.
    pub(crate) fn range(&self, request: Range) -> Result<Ranged, Error> {
        let answer = self.runtime.block_on(self.engine().range(request));
        answer.map(|(ranged, _room)| ranged)
    }

    /// Reads keys as a stream, through the KV service.
    pub(crate) fn range_stream(
        &self,
        request: pb::RangeRequest,
    ) -> Result<Vec<pb::RangeResponse>, Status> {
        let service = KvService(Arc::new(Context {
            engine: Arc::clone(self.engine()),
            txn_ops_max: 128,
            request_bytes_max: 4 * KIB,
            quota_bytes: 0,
            name: String::new(),
            client_urls: Vec::new(),
            stopping: tokio::sync::watch::channel(false).1,
        }));
        self.runtime.block_on(async {
            let stream = service.range_stream(tonic::Request::new(request)).await?;
            let mut stream = stream.into_inner();
            let mut parts = Vec::new();
            while let Some(part) = stream.next().await {
                parts.push(part?.range_response.expect("a part holds an answer"));
            }
            Ok(parts)
        })
    }

    /// The same, with another quota.
    pub(crate) fn restart_with_quota(&mut self, quota_bytes: Option<u64>) {
        self.quota_bytes = quota_bytes;
        self.restart();
    }

    /// Stops the store in good order and opens it again.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Ends the store as if its process were killed, and opens what is there.
    pub(crate) fn crash(&mut self) {
        let running = self.running.take().expect("the store runs");
        running.life.end();
        running.engine.stop();
        drop(running);
        self.start();
    }

    fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.engine.stop();
        }
    }

    fn disks(&self) -> [Arc<dyn Disk>; 2] {
        let life = Life::default();
        ["data", "log"].map(|name| MortalDisk::open(&self.folder(name), &life))
    }

    /// Stops the store and checks its files.
    pub(crate) fn check(&mut self) -> Report {
        self.stop();
        let [data, log] = self.disks();
        let names = data.list().expect("the folder can be read");
        assert!(
            !names.iter().any(|name| name.ends_with(".new")),
            "{names:?}"
        );
        match check(&data, &log, |_, _| ()) {
            Ok(report) => {
                assert_eq!(report.strays, 0, "a lease is gone, and not all of its keys");
                report
            }
            Err(finding) => panic!("the store is not sound: {finding}"),
        }
    }

    /// What the tables of the stopped store hold.
    pub(crate) fn tables(&mut self) -> Tables {
        self.stop();
        let [data, _] = self.disks();
        let file = data.open(DATABASE_FILE).expect("the database is there");
        let database = Database::open(file, 256 * KIB).expect("the database opens");
        let reader = database.reader().expect("the database can be read");
        let mut history = Vec::new();
        let read = reader.for_each_history(|at, value| {
            let row = HistoryRow::decode(value)?;
            let record = Bytes::copy_from_slice(row.record);
            history.push(Change {
                main: at.main,
                sub: at.sub,
                key: Bytes::copy_from_slice(Record::decode(&record)?.key),
                pair: match row.tombstone {
                    true => None,
                    false => Some(KeyValue::of(&record)?),
                },
            });
            Ok(true)
        });
        read.expect("history can be read");
        Tables {
            history,
            swept: reader.meta.swept,
        }
    }
}

async fn ask(engine: &Arc<Engine>, write: Write) -> Result<Answer, Error> {
    Ok(match write {
        Write::Put(put) => Answer::Put(engine.put(put).await?),
        Write::DeleteRange(delete) => Answer::DeleteRange(engine.delete_range(delete).await?),
        Write::Txn(txn) => Answer::Txn(engine.txn(txn, 0).await?),
        Write::Compact { revision, physical } => {
            Answer::Compact(engine.compact(revision, physical).await?)
        }
        Write::Grant { id, ttl_secs } => Answer::Granted(engine.grant(id, ttl_secs).await?),
        Write::Revoke(id) => Answer::Revoked(engine.revoke(id).await?),
    })
}

impl Drop for TestStore {
    fn drop(&mut self) {
        if thread::panicking() {
            self.stop();
        } else {
            self.check();
        }
    }
}
