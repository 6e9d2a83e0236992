//! What can be asked of the store, and what it answers, in exact types.

use bytes::Bytes;

use crate::storage::key_range::KeyRange;
use crate::storage::record::KeyValue;

/// Read keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub range: KeyRange,
    /// At which revision: 0 is the newest. Negative ones mean the newest too, except within a txn
    /// (see [`crate::mvcc::txn`]).
    pub revision: i64,
    /// Most pairs that are answered; 0 is no limit.
    pub limit: usize,
    /// Direction of sorting.
    pub order: Order,
    /// Field to sort by.
    pub target: Target,
    /// Which pairs count as asked for.
    pub filters: Filters,
    /// Leave the values out.
    pub keys_only: bool,
    /// Count only.
    pub count_only: bool,
}

/// Direction of sorting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// None asked for: that of keys, or ascending by another target.
    None,
    /// Lowest first.
    Ascend,
    /// Highest first.
    Descend,
}

/// Field to sort by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The key.
    Key,
    /// Puts in this life.
    Version,
    /// Revision of the life's first put.
    Create,
    /// Revision of the last change.
    Mod,
    /// The value.
    Value,
}

/// Bounds on the revisions of a pair; 0 is no bound, and others count as they stand, even negative
/// ones (as etcd: script `range_filters`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filters {
    /// Least revision of the last change.
    pub min_mod: i64,
    /// Greatest revision of the last change.
    pub max_mod: i64,
    /// Least revision of the life's first put.
    pub min_create: i64,
    /// Greatest revision of the life's first put.
    pub max_create: i64,
}

impl Filters {
    /// Whether any bound is set.
    pub fn any(&self) -> bool {
        *self != Filters::default()
    }

    /// Whether a pair of these revisions passes.
    pub fn pass(&self, create: u64, modified: u64) -> bool {
        let within = |revision: u64, min: i64, max: i64| {
            let revision = revision as i64;
            (min == 0 || revision >= min) && (max == 0 || revision <= max)
        };
        within(create, self.min_create, self.max_create)
            && within(modified, self.min_mod, self.max_mod)
    }
}

/// Write a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: Bytes,
    /// The value; unless the old one is kept.
    pub value: Bytes,
    /// The lease; 0 is none.
    pub lease: i64,
    /// Answer the pair of before.
    pub prev_kv: bool,
    /// Keep the value that is there.
    pub ignore_value: bool,
    /// Keep the lease that is there.
    pub ignore_lease: bool,
}

/// Delete keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRange {
    /// Which keys.
    pub range: KeyRange,
    /// Answer the pairs of before.
    pub prev_kv: bool,
}

/// Guards, and operations for when they hold and when not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// What is done then.
    pub success: Vec<Op>,
    /// What is done otherwise.
    pub failure: Vec<Op>,
}

/// One operation of a txn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Range(Range),
    /// Write.
    Put(Put),
    /// Delete.
    DeleteRange(DeleteRange),
    /// A txn in the txn.
    Txn(Txn),
}

impl Txn {
    /// Whether it can change nothing, and so is a read.
    pub fn is_read_only(&self) -> bool {
        let mut ops = self.success.iter().chain(&self.failure);
        ops.all(|op| matches!(op, Op::Range(_)))
    }

    /// Whether it can add data, in either branch.
    pub fn can_put(&self) -> bool {
        let mut ops = self.success.iter().chain(&self.failure);
        ops.any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(txn) => txn.can_put(),
            Op::Range(_) | Op::DeleteRange(_) => false,
        })
    }
}

/// One guard: holds if every key of the range stands in `relation` to the operand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// How the stored field must stand to the operand.
    pub relation: Relation,
    /// Which field, and with what.
    pub operand: Operand,
}

/// How the stored field stands to the operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Stored = operand.
    Equal,
    /// Stored > operand.
    Greater,
    /// Stored < operand.
    Less,
    /// Stored ≠ operand.
    NotEqual,
    /// A number that names none: always holds (as etcd: script `unknown_enums`).
    Unknown,
}

/// Which field is compared, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// Puts in this life.
    Version(i64),
    /// Revision of the life's first put.
    Create(i64),
    /// Revision of the last change.
    Mod(i64),
    /// The value.
    Value(Bytes),
    /// The lease.
    Lease(i64),
    /// A number that names no field: taken as equal (as etcd: script `unknown_enums`).
    Unknown,
}

/// Answer to [`Range`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranged {
    /// The newest revision when it was read.
    pub revision: u64,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut any off.
    pub more: bool,
    /// How many keys the range has, whatever limit and filters say.
    pub count: u64,
}

/// Answer to [`Put`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The put's revision.
    pub revision: u64,
    /// The pair of before, if asked for and there.
    pub prev_kv: Option<KeyValue>,
}

/// Answer to [`DeleteRange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The delete's revision; the newest one if nothing was there to delete.
    pub revision: u64,
    /// How many keys.
    pub deleted: u64,
    /// The pairs of before, if asked for, in key order.
    pub prev_kvs: Vec<KeyValue>,
}

/// Answer to [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The txn's revision; the newest one if it changed nothing.
    pub revision: u64,
    /// Whether the guards held.
    pub succeeded: bool,
    /// An answer for each operation of the branch taken.
    pub answers: Vec<OpAnswer>,
}

/// Answer to one operation of a txn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpAnswer {
    /// To a read.
    Range(Ranged),
    /// To a write.
    Put(Written),
    /// To a delete.
    DeleteRange(Deleted),
    /// To a txn in the txn.
    Txn(Decided),
}
