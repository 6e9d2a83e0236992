//! Any sequence of requests: the store answers as the plain model does.
//!
//! Requests draw from few keys and few leases, so that they meet, and aim at revisions near the newest one and
//! near the floor. In between the store is flushed, swept, defragmented, stopped and killed. At the end its files
//! are checked, and its tables must hold the model's history.
//!
//! `PROPTEST_CASES=n` runs n cases of each property. A case that fails is shown, and kept in
//! `tests/model.proptest-regressions`, from where every later run begins.

mod common;
#[path = "model/watches.rs"]
mod watches;

use bytes::Bytes;
use common::store::{Answer, TestStore, Write};
use metastore::engine::command::Granted;
use metastore::engine::{KeptAlive, TimeToLive};
use metastore::grpc::convert;
use metastore::lease::Standing;
use metastore::mvcc::Error;
use metastore::mvcc::model::{Model, check_overlap};
use metastore::mvcc::overlap;
use metastore::mvcc::request::{
    Compare, DeleteRange, Filters, Op, Operand, Order, Put, Range, Ranged, Relation, Target, Txn,
};
use metastore::mvcc::{hash, history};
use metastore::proto::{etcdserverpb as pb, mvccpb};
use metastore::storage::key_range::{End, KeyRange};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestCaseResult};
use tonic::{Code, Status};

/// Cases of each property, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 48;

/// Prefixes of one another, and bytes that are no text.
const KEYS: [&[u8]; 9] = [
    b"\0",
    b"a",
    b"a\0",
    b"a\0\0",
    b"aa",
    b"ab",
    b"b",
    b"\xff",
    b"\xff\xff",
];

const LEASES: [i64; 4] = [1, 2, -3, i64::MAX];

/// What happens to a store.
#[derive(Debug, Clone)]
enum Event {
    Write(Write),
    /// Asked at once, so that they are judged in batches.
    Together(Vec<Write>),
    Range(Range),
    Stream(Range),
    KeepAlive(i64),
    /// How a lease stands, and all of them.
    Look(i64),
    /// So many seconds.
    Pass(u64),
    /// History is hashed up to a revision, and read as a snapshot holds it.
    Hash(i64),
    /// All is flushed, and swept up to the floor.
    Settle,
    /// The tables are copied into a new file; what follows is asked before that has ended, or after.
    Defragment {
        waits: bool,
    },
    Restart,
    Crash,
}

/// Where a revision lies that is asked for; it is found when the request is made.
#[derive(Debug, Clone, Copy)]
struct Aim(i64);

const NEAR_NEWEST: i64 = 1 << 32;
const NEAR_FLOOR: i64 = 2 << 32;
const NEAR: i64 = 12;

impl Aim {
    fn at(self, model: &Model) -> i64 {
        let floor = model.floor().unwrap_or(1) as i64;
        match self.0 {
            n if (NEAR_NEWEST - NEAR..NEAR_NEWEST + NEAR).contains(&n) => {
                model.revision() as i64 + n - NEAR_NEWEST
            }
            n if (NEAR_FLOOR - NEAR..NEAR_FLOOR + NEAR).contains(&n) => floor + n - NEAR_FLOOR,
            n => n,
        }
    }
}

fn any_revision() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => Just(0),
        8 => (NEAR_NEWEST - 10)..=NEAR_NEWEST,
        1 => (NEAR_NEWEST + 1)..(NEAR_NEWEST + 3),
        3 => (NEAR_FLOOR - 2)..(NEAR_FLOOR + 3),
        1 => -3..0i64,
        1 => prop_oneof![Just(i64::MIN), Just(i64::MAX)],
    ]
}

fn any_key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(&KEYS[..]).prop_map(Bytes::from_static)
}

fn any_value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        1 => Just(Bytes::new()),
        6 => prop::sample::select(vec!["1", "2", "3"]).prop_map(Bytes::from),
        1 => (1000..5000usize).prop_map(|len| Bytes::from(vec![b'v'; len])),
    ]
}

fn any_range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![
        2 => Just(Bytes::new()),
        3 => any_key(),
        1 => Just(Bytes::from_static(b"\0\0")),
        2 => Just(Bytes::from_static(b"\0")),
    ];
    (any_key(), end).prop_map(|(start, end)| KeyRange::from_wire(start, end))
}

fn any_lease() -> impl Strategy<Value = i64> {
    prop::sample::select(&LEASES[..])
}

fn any_put() -> impl Strategy<Value = Put> {
    let seldom = || prop::bool::weighted(0.1);
    let lease = prop_oneof![8 => Just(0), 8 => any_lease(), 1 => Just(7)];
    (
        any_key(),
        any_value(),
        lease,
        any::<bool>(),
        seldom(),
        seldom(),
    )
        .prop_map(
            |(key, value, lease, prev_kv, ignore_value, ignore_lease)| Put {
                key,
                value,
                lease,
                prev_kv,
                ignore_value,
                ignore_lease,
            },
        )
}

fn any_delete() -> impl Strategy<Value = DeleteRange> {
    (any_range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRange { range, prev_kv })
}

fn any_read() -> impl Strategy<Value = Range> {
    let bound = || prop_oneof![6 => Just(0), 3 => any_revision()];
    let filters = prop_oneof![
        2 => Just(Filters::default()),
        1 => [bound(), bound(), bound(), bound()].prop_map(
            |[min_mod, max_mod, min_create, max_create]| Filters {
                min_mod,
                max_mod,
                min_create,
                max_create,
            }
        ),
    ];
    let limit = prop_oneof![3 => Just(0), 5 => 1..8usize, 1 => Just(usize::MAX)];
    let orders = vec![Order::None, Order::Ascend, Order::Descend];
    let targets = vec![
        Target::Key,
        Target::Key,
        Target::Version,
        Target::Create,
        Target::Mod,
        Target::Value,
    ];
    (
        any_range(),
        any_revision(),
        limit,
        prop::sample::select(orders),
        prop::sample::select(targets),
        filters,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(range, revision, limit, order, target, filters, keys_only, count_only)| Range {
                range,
                revision,
                limit,
                order,
                target,
                filters,
                keys_only,
                count_only,
            },
        )
}

fn any_guard() -> impl Strategy<Value = Compare> {
    let relations = vec![
        Relation::Equal,
        Relation::NotEqual,
        Relation::Greater,
        Relation::Less,
        Relation::Unknown,
    ];
    let small = || prop_oneof![Just(0), 1..4i64, any_revision()];
    let operand = prop_oneof![
        small().prop_map(Operand::Version),
        small().prop_map(Operand::Create),
        small().prop_map(Operand::Mod),
        any_value().prop_map(Operand::Value),
        small().prop_map(Operand::Lease),
        Just(Operand::Unknown),
    ];
    (any_range(), prop::sample::select(relations), operand).prop_map(
        |(range, relation, operand)| Compare {
            range,
            relation,
            operand,
        },
    )
}

fn any_op() -> impl Strategy<Value = Op> {
    let plain = prop_oneof![
        3 => any_put().prop_map(Op::Put),
        2 => any_delete().prop_map(Op::DeleteRange),
        2 => any_read().prop_map(Op::Range),
    ];
    plain.prop_recursive(2, 12, 3, |op| txn_of(vec(op, 0..3)).prop_map(Op::Txn))
}

fn txn_of(ops: impl Strategy<Value = Vec<Op>> + Clone) -> impl Strategy<Value = Txn> {
    let compare = vec(any_guard(), 0..3);
    (compare, ops.clone(), ops).prop_map(|(compare, success, failure)| Txn {
        compare,
        success,
        failure,
    })
}

fn any_txn() -> impl Strategy<Value = Txn> {
    txn_of(vec(any_op().boxed(), 0..5))
}

fn any_write() -> impl Strategy<Value = Write> {
    prop_oneof![
        8 => any_put().prop_map(Write::Put),
        3 => any_delete().prop_map(Write::DeleteRange),
        4 => any_txn().prop_map(Write::Txn),
        1 => (any_revision(), any::<bool>())
            .prop_map(|(revision, physical)| Write::Compact { revision, physical }),
        4 => (any_lease(), any_ttl()).prop_map(|(id, ttl_secs)| Write::Grant { id, ttl_secs }),
        1 => prop_oneof![9 => any_lease(), 1 => Just(7)].prop_map(Write::Revoke),
    ]
}

fn any_ttl() -> impl Strategy<Value = i64> {
    prop_oneof![
        1 => -2..3i64,
        6 => 3..40i64,
        2 => 40..1000i64,
        1 => prop_oneof![Just(9_000_000_000), Just(9_000_000_001), Just(i64::MAX)],
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        24 => any_write().prop_map(Event::Write),
        4 => vec(any_write(), 2..8).prop_map(Event::Together),
        16 => any_read().prop_map(Event::Range),
        4 => any_read().prop_map(Event::Stream),
        3 => any_lease().prop_map(Event::KeepAlive),
        4 => prop_oneof![9 => any_lease(), 1 => Just(7)].prop_map(Event::Look),
        4 => prop_oneof![4 => 1..6u64, 2 => 6..60u64, 1 => 60..2000u64].prop_map(Event::Pass),
        4 => any_revision().prop_map(Event::Hash),
        2 => Just(Event::Settle),
        2 => any::<bool>().prop_map(|waits| Event::Defragment { waits }),
        1 => Just(Event::Restart),
        1 => Just(Event::Crash),
    ]
}

/// Puts the revisions of requests where they aim.
mod aim {
    use super::*;

    pub(super) fn write(write: &mut Write, model: &Model) {
        match write {
            Write::Put(_) | Write::DeleteRange(_) | Write::Grant { .. } | Write::Revoke(_) => {}
            Write::Txn(txn) => aim::txn(txn, model),
            Write::Compact { revision, .. } => *revision = Aim(*revision).at(model),
        }
    }

    pub(super) fn range(range: &mut Range, model: &Model) {
        let filters = &mut range.filters;
        for revision in [
            &mut range.revision,
            &mut filters.min_mod,
            &mut filters.max_mod,
            &mut filters.min_create,
            &mut filters.max_create,
        ] {
            *revision = Aim(*revision).at(model);
        }
    }

    fn txn(txn: &mut Txn, model: &Model) {
        for guard in &mut txn.compare {
            if let Operand::Version(n) | Operand::Create(n) | Operand::Mod(n) | Operand::Lease(n) =
                &mut guard.operand
            {
                *n = Aim(*n).at(model);
            }
        }
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match op {
                Op::Range(range) => aim::range(range, model),
                Op::Txn(nested) => aim::txn(nested, model),
                Op::Put(_) | Op::DeleteRange(_) => {}
            }
        }
    }
}

/// A store and the model beside it.
struct Pair {
    store: TestStore,
    model: Model,
}

impl Pair {
    fn new() -> Pair {
        Pair {
            store: TestStore::new(),
            model: Model::default(),
        }
    }

    fn happens(&mut self, event: Event) -> TestCaseResult {
        match event {
            Event::Write(write) => self.writes(vec![write], true),
            Event::Together(writes) => self.writes(writes, false),
            Event::Range(range) => self.reads(range),
            Event::Stream(range) => self.streams(range),
            Event::Hash(revision) => self.hashes(revision),
            Event::Settle => {
                // Refused where that is the floor already, and answered when all is swept.
                let revision = self.model.floor().unwrap_or(0) as i64;
                let physical = true;
                self.writes(vec![Write::Compact { revision, physical }], true)
            }
            Event::KeepAlive(id) => {
                let revision = self.model.revision();
                let ttl_secs = self.model.keep_alive(id);
                let kept = told(self.store.keep_alive(id));
                prop_assert_eq!(kept, Ok(KeptAlive { ttl_secs, revision }));
                Ok(())
            }
            Event::Look(id) => self.looks(id),
            Event::Pass(secs) => {
                self.model.pass(secs);
                self.store.pass(secs);
                Ok(())
            }
            Event::Defragment { waits: false } => {
                self.store.begin_defragment();
                Ok(())
            }
            Event::Defragment { waits: true } => {
                prop_assert_eq!(told(self.store.defragment()), Ok(()));
                Ok(())
            }
            Event::Restart => {
                self.store.restart();
                self.restarts()
            }
            Event::Crash => {
                self.store.crash();
                self.restarts()
            }
        }
    }

    fn looks(&self, id: i64) -> TestCaseResult {
        let expected = TimeToLive {
            standing: self
                .model
                .time_to_live(id)
                .map(|(left_secs, ttl_secs)| Standing {
                    left_secs,
                    ttl_secs,
                }),
            keys: self
                .model
                .attached(id)
                .iter()
                .map(|key| key.to_vec())
                .collect(),
            revision: self.model.revision(),
        };
        prop_assert_eq!(told(self.store.time_to_live(id)), Ok(expected));
        prop_assert_eq!(told(self.store.leases()), Ok(self.model.leases()));
        Ok(())
    }

    fn restarts(&mut self) -> TestCaseResult {
        let store = &self.store;
        let left = |id| {
            let answer = store.time_to_live(id).expect("it can be looked at");
            answer.standing.map_or(-1, |standing| standing.left_secs)
        };
        prop_assert!(
            self.model.restart(left),
            "a lease has too little or too much"
        );
        for id in LEASES {
            self.looks(id)?;
        }
        Ok(())
    }

    fn writes(&mut self, mut writes: Vec<Write>, alone: bool) -> TestCaseResult {
        // A txn that only reads does not queue behind the others.
        writes.retain(|write| alone || !matches!(write, Write::Txn(txn) if txn.is_read_only()));
        for write in &mut writes {
            aim::write(write, &self.model);
        }
        let expected: Vec<_> = writes.iter().map(|write| self.model_write(write)).collect();
        let answers = match &mut writes[..] {
            [_] => vec![self.store_write(writes.remove(0))],
            _ => self.store.write_together(writes),
        };
        let answers: Vec<_> = answers.into_iter().map(told).collect();
        prop_assert_eq!(answers, expected);
        Ok(())
    }

    fn store_write(&self, write: Write) -> Result<Answer, Error> {
        match write {
            Write::Put(put) => self.store.put(put).map(Answer::Put),
            Write::DeleteRange(delete) => self.store.delete_range(delete).map(Answer::DeleteRange),
            Write::Txn(txn) => self.store.txn(txn).map(Answer::Txn),
            Write::Compact { revision, physical } => {
                self.store.compact(revision, physical).map(Answer::Compact)
            }
            Write::Grant { id, ttl_secs } => self.store.grant(id, ttl_secs).map(Answer::Granted),
            Write::Revoke(id) => self.store.revoke(id).map(Answer::Revoked),
        }
    }

    fn model_write(&mut self, write: &Write) -> Result<Answer, String> {
        told(match write {
            Write::Put(put) => self.model.put(put).map(Answer::Put),
            Write::DeleteRange(delete) => Ok(Answer::DeleteRange(self.model.delete_range(delete))),
            Write::Txn(txn) => self.model.txn(txn).map(Answer::Txn),
            Write::Compact { revision, .. } => self.model.compact(*revision).map(Answer::Compact),
            Write::Grant { id, ttl_secs } => self.model.grant(*id, *ttl_secs).map(|ttl_secs| {
                let revision = self.model.revision();
                Answer::Granted(Granted {
                    id: *id,
                    ttl_secs,
                    revision,
                })
            }),
            Write::Revoke(id) => self.model.revoke(*id).map(Answer::Revoked),
        })
    }

    fn reads(&mut self, mut range: Range) -> TestCaseResult {
        aim::range(&mut range, &self.model);
        let expected = told(self.model.range(&range));
        prop_assert_eq!(told(self.store.range(range)), expected);
        Ok(())
    }

    /// The parts of a stream add up to the range.
    fn streams(&mut self, mut range: Range) -> TestCaseResult {
        range.filters = Filters::default();
        if range.order == Order::Descend || range.target != Target::Key {
            range.order = Order::None;
            range.target = Target::Key;
        }
        aim::range(&mut range, &self.model);
        let expected = match self.model.range(&range) {
            Ok(ranged) => Ok(in_parts_together(vec![ranged_on_the_wire(ranged)])?),
            Err(error) => Err(worded(Status::from(error))),
        };
        let answer = match self.store.range_stream(request_of(&range)) {
            Ok(parts) => Ok(in_parts_together(parts)?),
            Err(status) => Err(worded(status)),
        };
        prop_assert_eq!(answer, expected);
        Ok(())
    }

    /// What compaction removes is not there, be it swept or not.
    fn hashes(&mut self, revision: i64) -> TestCaseResult {
        let revision = Aim(revision).at(&self.model);
        let view = self.store.view();
        let hashed = told(hash::hash_kv(&view, revision, || true));
        prop_assert_eq!(hashed, told(self.model.hash(revision)));
        let mut rows = Vec::new();
        let read = history::each(&view, view.revision, |met| {
            if history::stays(&view, &met)? {
                rows.push((met.at, met.bytes.to_vec()));
            }
            Ok::<_, Error>(())
        });
        prop_assert!(read.is_ok());
        let kept = self.model.history(self.model.floor().unwrap_or(0));
        let kept: Vec<_> = kept.iter().map(|c| (c.at(), c.record())).collect();
        prop_assert_eq!(rows, kept);
        Ok(())
    }

    /// Stops the store, and looks at what it left.
    fn ends(mut self) -> TestCaseResult {
        let report = self.store.check();
        prop_assert_eq!(report.revision, self.model.revision());
        prop_assert_eq!(report.floor, self.model.floor());
        prop_assert_eq!(report.unsettled, 0);
        prop_assert_eq!(report.leases, self.model.leases().len() as u64);
        let tables = self.store.tables();
        prop_assert_eq!(tables.history, self.model.history(tables.swept));
        Ok(())
    }
}

/// Errors of storage are no answers, and the others are told by their names.
fn told<T>(answer: Result<T, Error>) -> Result<T, String> {
    answer.map_err(|error| format!("{error:?}"))
}

fn request_of(range: &Range) -> pb::RangeRequest {
    let range_end = match &range.range.end {
        End::Single => Bytes::new(),
        End::Before(end) => end.clone(),
        End::Unbounded => Bytes::from_static(b"\0"),
    };
    pb::RangeRequest {
        key: range.range.start.clone(),
        range_end,
        limit: i64::try_from(range.limit).unwrap_or(-1),
        revision: range.revision,
        keys_only: range.keys_only,
        count_only: range.count_only,
        ..Default::default()
    }
}

fn ranged_on_the_wire(ranged: Ranged) -> pb::RangeResponse {
    let header = pb::ResponseHeader {
        revision: ranged.revision as i64,
        ..Default::default()
    };
    convert::ranged(ranged, header)
}

/// Revision, pairs, `more` and `count` of all parts of a stream; only the last may say more than
/// its pairs, and only it may be empty.
fn in_parts_together(
    parts: Vec<pb::RangeResponse>,
) -> Result<(i64, Vec<mvccpb::KeyValue>, bool, i64), TestCaseError> {
    let (mut kvs, len) = (Vec::new(), parts.len());
    for (place, part) in parts.into_iter().enumerate() {
        kvs.extend(part.kvs.clone());
        if place + 1 == len {
            let header = part.header;
            prop_assert!(header.is_some() && (len == 1 || !part.kvs.is_empty()));
            return Ok((
                header.unwrap_or_default().revision,
                kvs,
                part.more,
                part.count,
            ));
        }
        let only_pairs = pb::RangeResponse {
            kvs: part.kvs.clone(),
            ..Default::default()
        };
        prop_assert!(!part.kvs.is_empty());
        prop_assert_eq!(part, only_pairs);
    }
    Err(TestCaseError::fail("a stream has at least one part"))
}

fn worded(status: Status) -> (Code, String) {
    (status.code(), status.message().to_owned())
}

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    let mut config = ProptestConfig::default();
    if !asked {
        config.cases = cases;
    }
    config.max_shrink_iters = 2000;
    config.max_shrink_time = 30_000;
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(
        "tests/model.proptest-regressions",
    )));
    config
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn the_store_answers_as_the_model(events in vec(any_event(), 1..100)) {
        let mut pair = Pair::new();
        for event in events {
            pair.happens(event)?;
        }
        pair.ends()?;
    }
}

/// Keys of a long range: more than a read looks at on the caller's thread, and more than a reader
/// takes of a memtable at once.
const LONG: u16 = 700;

fn any_long_event() -> impl Strategy<Value = Event> {
    let key = || (0..LONG + 10).prop_map(|n| Bytes::from(format!("{n:04}")));
    let bound = prop_oneof![3 => key().prop_map(End::Before), 1 => Just(End::Unbounded)];
    let range = (key(), bound).prop_map(|(start, end)| KeyRange { start, end });
    let range = range.boxed();
    let read = (
        any_read(),
        range.clone(),
        prop_oneof![Just(0), 1..LONG as usize],
    );
    let read = read.prop_map(|(mut read, range, limit)| {
        (read.range, read.limit) = (range, limit);
        read
    });
    let read = read.boxed();
    let put = (any_put(), key()).prop_map(|(mut put, key)| {
        put.key = key;
        Write::Put(put)
    });
    let delete = (key(), 1..40u16, any::<bool>()).prop_map(|(start, _, prev_kv)| {
        let end = Bytes::from([&start[..3], b"~"].concat());
        let range = KeyRange {
            start,
            end: End::Before(end),
        };
        Write::DeleteRange(DeleteRange { range, prev_kv })
    });
    let compact = (any_revision(), any::<bool>());
    let compact = compact.prop_map(|(revision, physical)| Write::Compact { revision, physical });
    let write = prop_oneof![8 => put, 4 => delete, 1 => compact];
    prop_oneof![
        8 => write.prop_map(Event::Write),
        8 => read.clone().prop_map(Event::Range),
        2 => read.prop_map(Event::Stream),
        1 => Just(Event::Settle),
        1 => any::<bool>().prop_map(|waits| Event::Defragment { waits }),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(config(CASES / 4))]

    #[test]
    fn long_ranges_answer_as_the_model(
        fills in 1..4usize,
        pages in [40..300usize, 40..300usize],
        events in vec(any_long_event(), 1..30),
    ) {
        let mut pair = Pair::new();
        for fill in 0..fills {
            // Each in its own layer, so that walks over the range merge them.
            let keys = (0..LONG).filter(|n| usize::from(*n) % fills <= fill);
            pair.happens(Event::Write(Write::Txn(fill_of(keys))))?;
            if fill == 0 {
                pair.happens(Event::Settle)?;
            }
        }
        for event in events {
            pair.happens(event)?;
        }
        pair.pages(pages)?;
        pair.ends()?;
    }
}

fn fill_of(keys: impl Iterator<Item = u16>) -> Txn {
    let put = |n| {
        Op::Put(Put {
            key: Bytes::from(format!("{n:04}")),
            value: Bytes::from(format!("{}", n % 7)),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    };
    Txn {
        success: keys.map(put).collect(),
        ..Txn::default()
    }
}

impl Pair {
    /// Reads two lists of one revision at once, so many keys at a time and each page behind the
    /// one before, while the newest state moves on.
    fn pages(&mut self, limits: [usize; 2]) -> TestCaseResult {
        let revision = self.model.revision() as i64;
        let mut lists = Vec::from(["0", "02"].map(Bytes::from).map(Some));
        while lists.iter().any(Option::is_some) {
            for (list, limit) in lists.iter_mut().zip(limits) {
                let Some(start) = list.take() else { continue };
                let range = Range {
                    range: KeyRange {
                        start,
                        end: End::Unbounded,
                    },
                    revision,
                    limit,
                    order: Order::None,
                    target: Target::Key,
                    filters: Filters::default(),
                    keys_only: false,
                    count_only: false,
                };
                let expected = told(self.model.range(&range));
                prop_assert_eq!(told(self.store.range(range)), expected.clone());
                if let Ok(Ranged {
                    kvs, more: true, ..
                }) = expected
                {
                    let last = kvs.last().expect("a page that is cut is not empty");
                    *list = Some(Bytes::from([&last.key[..], b"\0"].concat()));
                    let range = KeyRange::single(last.key.clone());
                    let prev_kv = false;
                    let delete = Write::DeleteRange(DeleteRange { range, prev_kv });
                    self.happens(Event::Write(delete))?;
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(CASES * 20))]

    /// Which txns change a key twice is decided without a store.
    #[test]
    fn overlaps_are_found_as_by_the_model(txn in any_txn()) {
        prop_assert_eq!(told(overlap::check(&txn)), told(check_overlap(&txn)));
    }
}
