//! The same store, so plain that reading proves it. For tests only.
//!
//! It keeps every change of all time in one list, and answers each request by going through that
//! list from the start. Nothing is remembered, indexed or cut short; a compaction only notes its
//! revision. Leases lie in a map, and time is a number of seconds that tests move. It follows etcd's rules as they are told, in their order, and shares with the real
//! store nothing but the types of requests and answers.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;

use super::Error;
use super::hash::Hashed;
use super::history::Key;
use super::request::{
    Compare, Decided, DeleteRange, Deleted, Op, OpAnswer, Operand, Order, Put, Range, Ranged,
    Relation, Target, Txn, Written,
};
use crate::storage::key_range::{End, KeyRange};
use crate::storage::record::{KeyValue, Record};
use crate::storage::revision::Revision;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Oldest first.
    changes: Vec<Change>,
    floor: Option<u64>,
    leases: BTreeMap<i64, Lease>,
    /// In seconds.
    now: u64,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    ttl: u64,
    ends: u64,
    /// The server has started since the last sign of life.
    extended: bool,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The txn's place in history.
    pub main: u64,
    /// The change's place in the txn.
    pub sub: u32,
    /// The key.
    pub key: Bytes,
    /// The pair from here on; `None` is a delete.
    pub pair: Option<KeyValue>,
}

impl Change {
    /// When it was made.
    pub fn at(&self) -> Revision {
        Revision {
            main: self.main,
            sub: self.sub,
        }
    }

    /// Its version record.
    pub fn record(&self) -> Vec<u8> {
        let mut record = Record::tombstone(&self.key);
        if let Some(pair) = &self.pair {
            record.create = pair.create;
            record.modified = pair.modified;
            record.version = pair.version;
            record.value = &pair.value;
            record.lease = pair.lease;
        }
        record.encode()
    }
}

/// Which branch a txn takes, and which ones the txns in that branch take.
struct Taken {
    succeeded: bool,
    nested: Vec<Taken>,
}

impl Model {
    /// The newest revision; an empty store is at 1.
    pub fn revision(&self) -> u64 {
        self.changes.last().map_or(1, |change| change.main)
    }

    /// Where history begins.
    pub fn floor(&self) -> Option<u64> {
        self.floor
    }

    /// Reads keys.
    pub fn range(&self, request: &Range) -> Result<Ranged, Error> {
        let newest = self.revision();
        let at = if request.revision <= 0 {
            newest
        } else {
            request.revision as u64
        };
        if at > newest {
            return Err(Error::FutureRevision);
        }
        if self.floor.is_some_and(|floor| at < floor) {
            return Err(Error::Compacted);
        }
        Ok(self.pick(request, at))
    }

    /// Writes one key.
    pub fn put(&mut self, put: &Put) -> Result<Written, Error> {
        self.check_put(put)?;
        Ok(self.write(put, self.revision() + 1))
    }

    /// Deletes keys.
    pub fn delete_range(&mut self, delete: &DeleteRange) -> Deleted {
        self.remove(delete, self.revision() + 1)
    }

    /// Runs a txn.
    pub fn txn(&mut self, txn: &Txn) -> Result<Decided, Error> {
        let taken = self.choose(txn);
        self.check(txn, &taken, &mut Vec::new())?;
        Ok(self.run(txn, &taken, self.revision() + 1))
    }

    /// Raises the floor; answers the newest revision.
    pub fn compact(&mut self, revision: i64) -> Result<u64, Error> {
        let floor = self.floor.map_or(-1, |floor| floor as i64);
        if revision <= floor {
            return Err(Error::Compacted);
        }
        if revision > self.revision() as i64 {
            return Err(Error::FutureRevision);
        }
        self.floor = Some(revision as u64);
        Ok(self.revision())
    }

    /// The hash of all that etcd would hash, put together and hashed at once.
    pub fn hash(&self, revision: i64) -> Result<Hashed, Error> {
        let compact_revision = self.floor.map_or(-1, |floor| floor as i64);
        if revision > 0 && revision < compact_revision {
            return Err(Error::Compacted);
        }
        if revision > self.revision() as i64 {
            return Err(Error::FutureRevision);
        }
        let hash_revision = match revision {
            0 => self.revision() as i64,
            asked => asked,
        };
        let state = self.state(hash_revision.max(0) as u64);
        let mut hashed = b"key".to_vec();
        for change in self.history(self.floor.unwrap_or(0)) {
            let main = change.main as i64;
            let newest = self
                .changes
                .iter()
                .rfind(|other| other.key == change.key && other.main as i64 <= hash_revision);
            let kept = state.is_empty() || change.pair.is_some() && newest == Some(&change);
            let old_tombstone = main == compact_revision && change.pair.is_none();
            if main > hash_revision || main <= compact_revision && !kept || old_tombstone {
                continue;
            }
            hashed.extend_from_slice(Key::of(change.at(), change.pair.is_none()).as_bytes());
            hashed.extend_from_slice(&change.record());
        }
        Ok(Hashed {
            hash: crc32c::crc32c(&hashed),
            compact_revision,
            hash_revision,
            newest: self.revision(),
        })
    }

    /// The changes that stay on disk once compaction at `floor` is swept: all that are newer, and
    /// of each key the last one up to there, unless that is a delete before `floor`.
    pub fn history(&self, floor: u64) -> Vec<Change> {
        let mut kept = Vec::new();
        for (place, change) in self.changes.iter().enumerate() {
            let superseded = self.changes[place + 1..]
                .iter()
                .any(|later| later.key == change.key && later.main <= floor);
            let old_delete = change.pair.is_none() && change.main < floor;
            if change.main > floor || (!superseded && !old_delete) {
                kept.push(change.clone());
            }
        }
        kept
    }
}

/// Leases, by etcd's default settings.
impl Model {
    /// Grants a lease; answers its TTL.
    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<u64, Error> {
        if ttl > 9_000_000_000 {
            return Err(Error::LeaseTooLong);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let ttl = ttl.max(2) as u64;
        let lease = Lease {
            ttl,
            ends: self.now + ttl,
            extended: false,
        };
        self.leases.insert(id, lease);
        Ok(ttl)
    }

    /// Removes a lease and its keys; answers the newest revision.
    pub fn revoke(&mut self, id: i64) -> Result<u64, Error> {
        if self.leases.remove(&id).is_none() {
            return Err(Error::LeaseNotFound);
        }
        let main = self.revision() + 1;
        for key in self.attached(id) {
            self.add(main, key, None);
        }
        Ok(self.revision())
    }

    /// Lets a lease run anew; answers its TTL, or 0.
    pub fn keep_alive(&mut self, id: i64) -> u64 {
        let now = self.now;
        let Some(lease) = self.leases.get_mut(&id) else {
            return 0;
        };
        lease.ends = now + lease.ttl;
        lease.extended = false;
        lease.ttl
    }

    /// What is left of a lease in whole seconds, and its TTL.
    pub fn time_to_live(&self, id: i64) -> Option<(i64, u64)> {
        let lease = self.leases.get(&id)?;
        Some(((lease.ends - self.now) as i64 - 1, lease.ttl))
    }

    /// The keys of a lease, in order.
    pub fn attached(&self, id: i64) -> Vec<Bytes> {
        let pairs = self.state(self.revision()).into_values();
        let attached = pairs.filter(|pair| pair.lease == id);
        attached.map(|pair| pair.key).collect()
    }

    /// All leases, soonest to end first.
    pub fn leases(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.leases.keys().copied().collect();
        ids.sort_by_key(|id| self.leases[id].ends);
        ids
    }

    /// Time passes: what has run out goes, those first that ended first.
    pub fn pass(&mut self, secs: u64) {
        self.now += secs;
        for id in self.leases() {
            if self.leases[&id].ends <= self.now {
                self.revoke(id).expect("it is there");
            }
        }
    }

    /// The server starts anew. A lease that was seen alive since the last start has all of its TTL,
    /// and a second. Of any other `left` tells what it has in whole seconds; answers whether that
    /// is within bounds.
    pub fn restart(&mut self, left: impl Fn(i64) -> i64) -> bool {
        let mut within = true;
        for (id, lease) in &mut self.leases {
            let most = self.now + lease.ttl + 1;
            if lease.extended {
                let ends = self.now + left(*id) as u64 + 1;
                within &= (lease.ends..=most).contains(&ends);
                lease.ends = ends;
            } else {
                lease.ends = most;
                lease.extended = true;
            }
        }
        within
    }
}

/// The state at a revision.
impl Model {
    fn state(&self, at: u64) -> BTreeMap<Bytes, KeyValue> {
        let mut state = BTreeMap::new();
        for change in &self.changes {
            if change.main <= at {
                match &change.pair {
                    Some(pair) => state.insert(change.key.clone(), pair.clone()),
                    None => state.remove(&change.key),
                };
            }
        }
        state
    }

    fn newest(&self, key: &Bytes) -> Option<KeyValue> {
        self.state(self.revision()).remove(key)
    }

    fn pairs(&self, range: &KeyRange, at: u64) -> Vec<KeyValue> {
        let state = self.state(at).into_values();
        state.filter(|pair| holds_key(range, &pair.key)).collect()
    }

    fn pick(&self, request: &Range, at: u64) -> Ranged {
        let mut kvs = self.pairs(&request.range, at);
        let count = kvs.len() as u64;
        let revision = self.revision();
        if request.count_only {
            return Ranged {
                revision,
                kvs: Vec::new(),
                more: false,
                count,
            };
        }
        // As etcd: without a direction only the first keys are looked at, even if they are then
        // sorted by something else.
        let filters = &request.filters;
        let no_filters = filters.min_mod == 0
            && filters.max_mod == 0
            && filters.min_create == 0
            && filters.max_create == 0;
        let key_order = request.order == Order::None
            || request.target == Target::Key && request.order == Order::Ascend;
        if request.limit > 0 && no_filters && key_order {
            kvs.truncate(request.limit.saturating_add(1));
        }
        kvs.retain(|pair| {
            let (create, modified) = (pair.create as i64, pair.modified as i64);
            (filters.max_mod == 0 || modified <= filters.max_mod)
                && (filters.min_mod == 0 || modified >= filters.min_mod)
                && (filters.max_create == 0 || create <= filters.max_create)
                && (filters.min_create == 0 || create >= filters.min_create)
        });
        kvs.sort_by(|a, b| {
            let ascending = match request.target {
                Target::Key => a.key.cmp(&b.key),
                Target::Version => a.version.cmp(&b.version),
                Target::Create => a.create.cmp(&b.create),
                Target::Mod => a.modified.cmp(&b.modified),
                Target::Value => a.value.cmp(&b.value),
            };
            match request.order {
                Order::None | Order::Ascend => ascending,
                Order::Descend => ascending.reverse(),
            }
        });
        let more = request.limit > 0 && kvs.len() > request.limit;
        if more {
            kvs.truncate(request.limit);
        }
        if request.keys_only {
            for pair in &mut kvs {
                pair.value = Bytes::new();
                // As etcd 3.7, which has leases at hand only where it also sorted by value.
                if request.target != Target::Value {
                    pair.lease = 0;
                }
            }
        }
        Ranged {
            revision,
            kvs,
            more,
            count,
        }
    }
}

/// Changes at revision `main`, which is the next one, or the current one within a txn that has
/// changed something.
impl Model {
    fn add(&mut self, main: u64, key: Bytes, pair: Option<KeyValue>) {
        let before = self.changes.iter().filter(|change| change.main == main);
        let sub = before.count() as u32;
        self.changes.push(Change {
            main,
            sub,
            key,
            pair,
        });
    }

    fn write(&mut self, put: &Put, main: u64) -> Written {
        let before = self.newest(&put.key);
        let mut pair = KeyValue {
            key: put.key.clone(),
            create: main,
            modified: main,
            version: 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        if let Some(before) = &before {
            pair.create = before.create;
            pair.version = before.version + 1;
            if put.ignore_value {
                pair.value = before.value.clone();
            }
            if put.ignore_lease {
                pair.lease = before.lease;
            }
        }
        self.add(main, put.key.clone(), Some(pair));
        Written {
            revision: main,
            prev_kv: if put.prev_kv { before } else { None },
        }
    }

    fn remove(&mut self, delete: &DeleteRange, main: u64) -> Deleted {
        let there = self.pairs(&delete.range, self.revision());
        for pair in &there {
            self.add(main, pair.key.clone(), None);
        }
        Deleted {
            revision: self.revision(),
            deleted: there.len() as u64,
            prev_kvs: if delete.prev_kv { there } else { Vec::new() },
        }
    }
}

/// Txns.
impl Model {
    fn choose(&self, txn: &Txn) -> Taken {
        let succeeded = txn.compare.iter().all(|guard| self.guard_holds(guard));
        let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
            Op::Txn(nested) => Some(self.choose(nested)),
            _ => None,
        });
        Taken {
            succeeded,
            nested: nested.collect(),
        }
    }

    fn guard_holds(&self, guard: &Compare) -> bool {
        let pairs = self.pairs(&guard.range, self.revision());
        if pairs.is_empty() {
            // What is not there has no value to compare, and 0 for all else.
            let absent = KeyValue::default();
            return !matches!(guard.operand, Operand::Value(_)) && pair_holds(&absent, guard);
        }
        pairs.iter().all(|pair| pair_holds(pair, guard))
    }

    fn check<'a>(
        &self,
        txn: &'a Txn,
        taken: &Taken,
        deleted: &mut Vec<&'a KeyRange>,
    ) -> Result<(), Error> {
        let mut nested = taken.nested.iter();
        for op in branch(txn, taken.succeeded) {
            match op {
                Op::Range(range) => {
                    // As etcd: within a txn a negative revision is one before the floor.
                    let floor = self.floor.map_or(-1, |floor| floor as i64);
                    if range.revision > self.revision() as i64 {
                        return Err(Error::FutureRevision);
                    }
                    if range.revision != 0 && range.revision < floor {
                        return Err(Error::Compacted);
                    }
                }
                Op::Put(put) => {
                    self.check_put(put)?;
                    // Unlike etcd, which dies of it: what this txn deletes cannot be kept.
                    let keeps = put.ignore_value || put.ignore_lease;
                    if keeps && deleted.iter().any(|range| holds_key(range, &put.key)) {
                        return Err(Error::KeyNotFound);
                    }
                }
                Op::DeleteRange(delete) => deleted.push(&delete.range),
                Op::Txn(txn) => {
                    let taken = nested.next().expect("it was chosen");
                    self.check(txn, taken, deleted)?;
                }
            }
        }
        Ok(())
    }

    fn check_put(&self, put: &Put) -> Result<(), Error> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && self.newest(&put.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn run(&mut self, txn: &Txn, taken: &Taken, main: u64) -> Decided {
        let mut nested = taken.nested.iter();
        let mut answers = Vec::new();
        for op in branch(txn, taken.succeeded) {
            answers.push(match op {
                Op::Range(range) if range.revision > 0 => {
                    OpAnswer::Range(self.pick(range, range.revision as u64))
                }
                Op::Range(range) => OpAnswer::Range(self.pick(range, self.revision())),
                Op::Put(put) => OpAnswer::Put(self.write(put, main)),
                Op::DeleteRange(delete) => OpAnswer::DeleteRange(self.remove(delete, main)),
                Op::Txn(txn) => {
                    let taken = nested.next().expect("it was chosen");
                    OpAnswer::Txn(self.run(txn, taken, main))
                }
            });
        }
        Decided {
            revision: self.revision(),
            succeeded: taken.succeeded,
            answers,
        }
    }
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    match succeeded {
        true => &txn.success,
        false => &txn.failure,
    }
}

fn holds_key(range: &KeyRange, key: &Bytes) -> bool {
    match &range.end {
        End::Single => *key == range.start,
        End::Before(end) => range.start <= *key && *key < *end,
        End::Unbounded => range.start <= *key,
    }
}

fn pair_holds(pair: &KeyValue, guard: &Compare) -> bool {
    let stored_to_operand = match &guard.operand {
        Operand::Version(n) => (pair.version as i64).cmp(n),
        Operand::Create(n) => (pair.create as i64).cmp(n),
        Operand::Mod(n) => (pair.modified as i64).cmp(n),
        Operand::Value(value) => pair.value.cmp(value),
        Operand::Lease(n) => pair.lease.cmp(n),
        Operand::Unknown => Ordering::Equal,
    };
    match guard.relation {
        Relation::Equal => stored_to_operand == Ordering::Equal,
        Relation::NotEqual => stored_to_operand != Ordering::Equal,
        Relation::Greater => stored_to_operand == Ordering::Greater,
        Relation::Less => stored_to_operand == Ordering::Less,
        Relation::Unknown => true,
    }
}

/// Refuses a txn of which etcd says that it changes a key twice: its rules, a list at a time.
pub fn check_overlap(txn: &Txn) -> Result<(), Error> {
    changed(&txn.success)?;
    changed(&txn.failure)?;
    Ok(())
}

type Changed = (Vec<Bytes>, Vec<KeyRange>);

fn changed(ops: &[Op]) -> Result<Changed, Error> {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for op in ops {
        if let Op::DeleteRange(delete) = op {
            deletes.push(delete.range.clone());
        }
    }
    for op in ops {
        if let Op::Txn(txn) = op {
            let (success_puts, success_deletes) = changed(&txn.success)?;
            let (failure_puts, failure_deletes) = changed(&txn.failure)?;
            for key in &success_puts {
                refuse_if(puts.contains(key) || deletes_key(&deletes, key))?;
                puts.push(key.clone());
            }
            for key in &failure_puts {
                // Only one branch is taken, so both may put the key.
                if !success_puts.contains(key) {
                    refuse_if(puts.contains(key) || deletes_key(&deletes, key))?;
                    puts.push(key.clone());
                }
            }
            deletes.extend(success_deletes);
            deletes.extend(failure_deletes);
        }
    }
    for op in ops {
        if let Op::Put(put) = op {
            refuse_if(puts.contains(&put.key) || deletes_key(&deletes, &put.key))?;
            puts.push(put.key.clone());
        }
    }
    Ok((puts, deletes))
}

fn deletes_key(deletes: &[KeyRange], key: &Bytes) -> bool {
    // As etcd: a delete without an end is not looked at.
    let mut looked_at = deletes.iter().filter(|range| range.end != End::Unbounded);
    looked_at.any(|range| holds_key(range, key))
}

fn refuse_if(twice: bool) -> Result<(), Error> {
    match twice {
        true => Err(Error::DuplicateKey),
        false => Ok(()),
    }
}
