//! What the fuzz targets run: each is a plain function over any bytes, for tests only.
//!
//! `fuzz/run` calls them without end with bytes that a fuzzer grows; `cargo test` calls them with a
//! few. Each panics where a promise of the code it calls is broken.

use std::io::Write;

use bytes::Bytes;
use prost::Message;

use crate::auth::permission::{Access, Rights};
use crate::auth::{self, Asker};
use crate::grpc::{convert, logged};
use crate::mvcc::{model, overlap};
use crate::proto::{authpb, etcdserverpb as pb, mvccpb};
use crate::snapshot::bbolt::writer::{Size, Writer};
use crate::snapshot::bbolt::{
    self,
    reader::{self, Reader, Seen},
};
use crate::snapshot::wal::{self, Content};
use crate::snapshot::{load, rows};
use crate::storage::key_range::KeyRange;
use crate::storage::log;
use crate::storage::record::{KeyValue, Record, key_of};
use crate::storage::revision::Revision;
use crate::storage::row::{Change, HistoryRow, LeaseRow, LogRow, Version};
use crate::storage::small::{Bucket, Small};
use crate::storage::store::Replayed;

/// Most guards and operations of a txn, as the server has it.
const TXN_OPS_MAX: usize = 128;

/// A segment of the log: reading it ends, hands out batches that lie one behind the other, and
/// replays them or refuses them. Bytes without a header are read as behind one.
pub fn log_reader(bytes: &[u8]) {
    let seed = log::segment_seed(bytes, 1).unwrap_or(0);
    let mut ends = 0;
    let scan = log::scan(&bytes, seed, None, 0, |at, batch| {
        assert!(at >= ends, "batches do not overlap");
        ends = at + batch.rows.len();
        assert!(ends <= bytes.len(), "a batch lies within its segment");
        replays(batch.rows);
        Ok(())
    });
    let scan = scan.expect("only the visitor refuses");
    assert!(scan.end >= ends && scan.end + scan.torn_bytes <= bytes.len());
    assert!(scan.later.is_none_or(|later| later > scan.end));
    // The same bytes as rows, since no fuzzer finds a checksum.
    replays(bytes);
}

/// The rows of a batch are put back, or refused.
fn replays(rows: &[u8]) {
    let batch = log::Batch {
        number: 1,
        index: 1,
        rows,
    };
    let mut replayed = Replayed::from_the_first();
    let _ = replayed.take(&batch);
    let memtable = replayed.memtable;
    let pairs = memtable.attachments();
    let together = pairs.iter().filter(|(_, _, together)| *together);
    for (lease, key, _) in together {
        let mut is_given = false;
        memtable.for_each_given(*lease, |given| is_given |= key_of(given) == key_of(key));
        assert!(is_given);
    }
}

/// Whatever a row's reader accepts is what its writer would have written.
pub fn row_decoder(bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest;
        let Ok(row) = LogRow::take(&mut rest) else {
            break;
        };
        let taken = &before[..before.len() - rest.len()];
        let mut again = Vec::new();
        row.encode(&mut again);
        assert_eq!(again, taken, "a log row");
        if let LogRow::Change(at, row) = row {
            change(at, &row);
        }
    }
    if let Ok(row) = HistoryRow::decode(bytes) {
        let mut again = Vec::new();
        row.encode(&mut again);
        assert_eq!(again, bytes, "a history row");
        assert_eq!(row.encoded_len(), bytes.len());
    }
    if let Ok(row) = LeaseRow::decode(bytes) {
        assert_eq!(row.to_vec(), bytes, "a lease row");
    }
    for main in [0, 1, 200, u64::MAX] {
        let at = Revision { main, sub: 0 };
        if let Ok(version) = Version::decode(at, bytes) {
            assert_eq!(version.encode(), bytes, "an index row");
        }
    }
}

fn change(at: Revision, row: &HistoryRow<'_>) {
    let Ok(change) = Change::from_log(at, row) else {
        return;
    };
    assert_eq!(change.history_row(), *row, "a change");
    let index = change.version().encode();
    assert_eq!(Version::decode(at, &index), Ok(change.version()));
}

/// Whatever is accepted as a record is the message that any protobuf decoder reads there.
pub fn record_codec(bytes: &[u8]) {
    let owned = Bytes::copy_from_slice(bytes);
    let Ok(record) = Record::decode(bytes) else {
        assert!(KeyValue::of(&owned).is_err());
        // A message as it would be encoded anew is refused for want of a key alone.
        if let Ok(message) = mvccpb::KeyValue::decode(bytes) {
            assert!(message.key.is_empty() || message.encode_to_vec() != bytes);
        }
        return;
    };
    assert_eq!(record.encode(), bytes);
    let message = mvccpb::KeyValue::decode(bytes).expect("a record is a message");
    assert_eq!(message.encode_to_vec(), bytes);
    let pair = KeyValue::of(&owned).expect("a record is a pair");
    assert_eq!(pair.key, record.key);
    assert_eq!(pair.value, record.value);
    assert_eq!(convert::key_value(pair), message);
}

/// Whatever the reader of bbolt's files takes, the writer writes so that it reads the same.
pub fn bbolt_reader(bytes: &[u8]) {
    let read_again = |buckets: &Buckets| {
        let size = write_buckets(Writer::sizing(), buckets);
        let mut file = Vec::new();
        let writer = Writer::begin(&mut file, size).expect("memory takes all");
        write_buckets(writer, buckets);
        read_buckets(&file).expect("what was written can be read")
    };
    if let Ok(buckets) = read_buckets(bytes) {
        assert_eq!(read_again(&buckets), buckets);
    }
    let _ = wal::read_bytes(bytes, logged_entry);
    logged_entry(Content::Request(bytes));
    logged_entry(Content::Members(bytes));
    small_row(bytes);
    // No fuzzer finds a checksum.
    let mut signed = bytes.to_vec();
    bbolt::sign(&mut signed);
    if let Ok(buckets) = read_buckets(&signed) {
        assert_eq!(read_again(&buckets), buckets);
    }
    if let Ok(mut database) = load::Database::open(&signed[..]) {
        let _ = database.state();
        let _ = database.history::<load::Error>(|_, _| Ok(()));
    }
}

/// An entry of etcd's log becomes what can be judged, or is refused.
fn logged_entry(content: Content<'_>) {
    match content {
        Content::Request(request) => {
            let _ = logged::read(request);
        }
        Content::Members(change) => {
            let _ = wal::member_change(change);
        }
    }
}

/// A row of a small bucket is what etcd reads there, or is refused.
fn small_row(bytes: &[u8]) {
    for bucket in Bucket::ALL {
        let _ = rows::check(bucket, bytes, b"");
        let Ok(user) = authpb::User::decode(bytes) else {
            continue;
        };
        let is_user = rows::check(bucket, &user.name, bytes).is_ok();
        assert!(is_user || bucket != Bucket::AuthUsers);
        let mut small = Small::default();
        small.set(bucket, &user.name, Some(bytes));
        let _ = (auth::is_on(&small), auth::revision(&small));
        let name = String::from_utf8_lossy(&user.name).into_owned();
        let change = auth::Change::DeleteUser(name.clone());
        assert_eq!(
            auth::decide(&small, &Asker::default(), &change).is_ok(),
            is_user && bucket == Bucket::AuthUsers && name.as_bytes() == user.name
        );
    }
    if let Ok(role) = authpb::Role::decode(bytes) {
        rights(&role);
    }
}

/// Rights to the range of a permission include those to its ends.
fn rights(role: &authpb::Role) {
    let mut small = Small::default();
    let user = authpb::User {
        roles: vec!["role".to_owned()],
        ..Default::default()
    };
    let rows: [(Bucket, &[u8], &[u8]); 3] = [
        (Bucket::Auth, auth::ENABLED, &[1]),
        (Bucket::AuthUsers, b"user", &user.encode_to_vec()),
        (Bucket::AuthRoles, b"role", &role.encode_to_vec()),
    ];
    for (bucket, key, value) in rows {
        small.set(bucket, key, Some(value));
    }
    let asker = Asker {
        user: "user".to_owned(),
        revision: 1,
    };
    let rights = Rights::of(&small, &asker).expect("the user is there");
    for permission in &role.key_permission {
        let (key, end) = (permission.key.clone(), permission.range_end.clone());
        for access in [Access::Read, Access::Write] {
            let one = KeyRange::single(key.clone());
            let may_all = rights.permit(access, &KeyRange::from_wire(key.clone(), end.clone()));
            assert!(may_all.is_err() || rights.permit(access, &one).is_ok());
        }
    }
}

/// Name and rows of each.
type Buckets = Vec<(Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>)>;

fn read_buckets(bytes: &[u8]) -> Result<Buckets, reader::Error> {
    let file = Reader::open(bytes)?;
    let mut seen = Seen::default();
    let mut all = Vec::new();
    for bucket in file.buckets(&mut seen)? {
        let mut found = Vec::new();
        let mut rows = file.rows(&bucket, &mut seen)?;
        while let Some((key, value)) = rows.next()? {
            found.push((key.to_vec(), value.to_vec()));
        }
        all.push((bucket.name, found));
    }
    file.check_freelist(&mut seen)?;
    Ok(all)
}

fn write_buckets<W: Write>(mut writer: Writer<W>, buckets: &Buckets) -> Size {
    for (name, rows) in buckets {
        writer.bucket(name).expect("memory takes all");
        for (key, value) in rows {
            writer.put(key, value).expect("memory takes all");
        }
    }
    writer.finish().expect("memory takes all")
}

/// Any message is refused or made a txn, and both ways of finding overlaps agree about it.
pub fn txn_validation(bytes: &[u8]) {
    let Ok(message) = pb::TxnRequest::decode(bytes) else {
        return;
    };
    let checked = convert::txn(message.clone(), TXN_OPS_MAX);
    let unlimited = convert::txn(message, usize::MAX);
    let Ok(txn) = checked else {
        return;
    };
    assert!(unlimited.is_ok(), "a limit only refuses");
    assert!(overlap::check(&txn).is_ok());
    assert!(model::check_overlap(&txn).is_ok());
    let mut model = model::Model::default();
    let _ = model.txn(&txn);
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::disk::real::RealDisk;
    use crate::storage::log::Log;

    /// Bytes that each target takes a different way through.
    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let key = b"key";
        let record = Record {
            key,
            create: 2,
            modified: 2,
            version: 1,
            value: b"value",
            lease: 7,
        };
        let at = |sub| Revision { main: 2, sub };
        let put = Change::new(at(0), &record, None);
        let delete = Change::new(at(1), &Record::tombstone(key), None);
        let mut rows = Vec::new();
        let lease = LeaseRow {
            ttl_secs: 60,
            seen_millis: 1500,
        };
        LogRow::Lease(7, lease).encode(&mut rows);
        for change in [&put, &delete] {
            LogRow::Change(change.revision, change.history_row()).encode(&mut rows);
        }
        LogRow::Left(7).encode(&mut rows);
        LogRow::Revoke(7).encode(&mut rows);
        LogRow::Served(2000).encode(&mut rows);
        LogRow::Floor(2).encode(&mut rows);
        LogRow::Term(2).encode(&mut rows);
        let put_request = pb::PutRequest {
            key: Bytes::from_static(key),
            ..Default::default()
        };
        let put_op = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(put_request)),
        };
        let guard = pb::Compare {
            key: Bytes::from_static(key),
            ..Default::default()
        };
        let mut txn = pb::TxnRequest {
            compare: vec![guard],
            success: vec![put_op.clone()],
            failure: vec![put_op],
        };
        for _ in 0..3 {
            let nested = pb::RequestOp {
                request: Some(pb::request_op::Request::RequestTxn(txn.clone())),
            };
            txn.failure = vec![nested];
        }
        let mut history = Vec::new();
        put.history_row().encode(&mut history);
        vec![
            ("record", record.encode().to_vec()),
            ("tombstone", Record::tombstone(key).encode().to_vec()),
            ("index_row", put.version().encode()),
            ("history_row", history),
            ("lease_row", lease.to_vec()),
            ("segment", segment(&rows)),
            ("rows", rows),
            ("txn", txn.encode_to_vec()),
            ("bbolt", bbolt_file()),
        ]
    }

    /// A file with a tree of two levels, an inline bucket and an empty one.
    fn bbolt_file() -> Vec<u8> {
        let row = |number: u16| (number.to_be_bytes().to_vec(), b"value".to_vec());
        let buckets: Buckets = [("a", 0), ("b", 3), ("key", 300)]
            .map(|(name, rows)| (name.into(), (0..rows).map(row).collect()))
            .into();
        let size = write_buckets(Writer::sizing(), &buckets);
        let mut file = Vec::new();
        let writer = Writer::begin(&mut file, size).expect("memory takes all");
        write_buckets(writer, &buckets);
        file
    }

    /// A segment of three batches; its salt is another each time.
    fn segment(rows: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let disk = Arc::new(RealDisk::open(folder.path()).expect("it can be opened"));
        let settings = log::Settings { segment_bytes: 512 };
        let log = Log::open(disk, settings, 0, &mut |_| unreachable!("it is empty"));
        let mut log = log.expect("a log can be begun");
        for index in 1..=3 {
            log.append(index, rows).expect("a batch can be appended");
        }
        let file = folder.path().join(format!("{:016x}.log", 1));
        std::fs::read(file).expect("the segment is there")
    }

    fn run_all(bytes: &[u8]) {
        log_reader(bytes);
        row_decoder(bytes);
        record_codec(bytes);
        txn_validation(bytes);
        bbolt_reader(bytes);
    }

    /// `UPDATE_GOLDENFILES=1` writes the fuzzer's seeds anew.
    #[test]
    fn seeds_pass() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (name, seed) in seeds() {
            run_all(&seed);
            let file = folder.join(name);
            if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
                std::fs::write(&file, &seed).expect("the seeds' folder can be written");
            }
            let kept = std::fs::read(&file).expect("the seed is there");
            run_all(&kept);
            if name == "segment" {
                let crc_seed = log::segment_seed(&kept, 1).expect("it has a header");
                let mut batches = 0;
                let scan = log::scan(&kept, crc_seed, None, 0, |_, _| {
                    batches += 1;
                    Ok(())
                });
                assert!(scan.is_ok() && batches == 3, "the seed holds three batches");
            } else {
                assert_eq!(kept, seed, "fuzz/seeds/{name}");
            }
        }
    }

    /// Files of an etcd, which `fuzz/run` begins with as well.
    fn etcds_files() -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/etcd-3.6/member");
        let log = "wal/0000000000000000-0000000000000000.wal";
        let read = |name| std::fs::read(folder.join(name)).expect("the fixture is there");
        ["snap/db", log].map(read).into()
    }

    #[test]
    fn files_of_etcd_pass() {
        let mut requests = Vec::new();
        for file in etcds_files() {
            run_all(&file);
            let _ = wal::read_bytes(&file, |content| match content {
                Content::Request(request) => requests.push(request.to_vec()),
                Content::Members(change) => {
                    wal::member_change(change).expect("etcd wrote it");
                }
            });
        }
        // Twice, as the last segment and as another.
        assert!(requests.len() > 40, "{}", requests.len());
        for request in requests {
            logged::read(&request).expect("etcd wrote it");
        }
    }

    proptest! {
        #[test]
        fn files_of_etcd_that_are_bent_pass(
            file in 0..2usize,
            bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = etcds_files().swap_remove(file);
            for (place, byte) in bends {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bbolt_reader(&bytes);
        }

        #[test]
        fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            run_all(&bytes);
        }

        /// A seed with a few bytes changed, and perhaps cut.
        #[test]
        fn seeds_that_are_bent_pass(
            seed in 0..8usize,
            bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let (_, mut bytes) = seeds().swap_remove(seed);
            for (place, byte) in bends {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            run_all(&bytes);
            run_all(&bytes[..cut.index(bytes.len())]);
        }
    }
}
