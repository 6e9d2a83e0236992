//! What was sent, and what the store must hold after each step of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use metastore::mvcc::request::{
    Compare, DeleteRange, Filters, Op, Operand, Order, Put, Range, Relation, Target, Txn,
};
use metastore::storage::disk::sim::SplitMix;
use metastore::storage::key_range::KeyRange;

/// Few, so that they meet.
const KEYS: u64 = 8;
const LEASES: u64 = 6;

const ALARMS: u64 = 3;

/// Longer than any test takes, in seconds.
pub const TTL_SECS: i64 = 1_000_000;

/// One thing that is asked of the engine.
#[derive(Debug, Clone)]
pub enum Ask {
    Put(Put),
    Delete(DeleteRange),
    Txn(Txn),
    Compact {
        revision: u64,
        physical: bool,
    },
    /// For longer than any test takes.
    Grant(i64),
    Revoke(i64),
    /// The alarm that there is no space, of a member of this id.
    Raise(u64),
    Clear(u64),
}

/// A key as it stands at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub create: u64,
    pub modified: u64,
    pub version: u64,
    pub value: Bytes,
    pub lease: i64,
}

pub type Pairs = BTreeMap<Bytes, Pair>;

/// Where history stands after a step.
pub type Place = (u64, Option<u64>);

/// Every state that the steps lead through.
#[derive(Debug, Clone)]
pub struct Model {
    /// After so many steps: the newest revision, and the floor.
    pub places: Vec<Place>,
    /// After so many steps: the leases that there are.
    pub leases: Vec<BTreeSet<i64>>,
    /// After so many steps: the members with an alarm.
    pub alarms: Vec<BTreeSet<u64>>,
    /// At each revision, from 0 on.
    pub pairs: Vec<Pairs>,
    /// Whether steps raise alarms; while there is any, no step adds data.
    raises: bool,
}

impl Model {
    pub fn new() -> Model {
        Model {
            places: vec![(1, None)],
            leases: vec![BTreeSet::new()],
            alarms: vec![BTreeSet::new()],
            pairs: vec![Pairs::new(), Pairs::new()],
            raises: false,
        }
    }

    /// One whose steps raise alarms now and then.
    pub fn with_alarms() -> Model {
        Model {
            raises: true,
            ..Model::new()
        }
    }

    /// How many steps it has.
    pub fn steps(&self) -> usize {
        self.places.len() - 1
    }

    /// The state after the last step.
    pub fn place(&self) -> Place {
        self.places[self.steps()]
    }

    /// Forgets all steps behind the first so many.
    pub fn truncate(&mut self, steps: usize) {
        self.places.truncate(steps + 1);
        self.leases.truncate(steps + 1);
        self.alarms.truncate(steps + 1);
        self.pairs.truncate(self.place().0 as usize + 1);
    }

    /// Decides on a step by chance, and takes it.
    pub fn step(&mut self, random: &mut SplitMix) -> Ask {
        let (revision, floor) = self.place();
        let oldest = floor.map_or(1, |floor| floor + 1);
        let alarms = &self.alarms[self.steps()];
        let member = 1 + random.below(ALARMS);
        let ask = match random.below(26) {
            0 if self.raises && !alarms.contains(&member) => Ask::Raise(member),
            0..16 if alarms.contains(&member) => Ask::Clear(member),
            _ if !alarms.is_empty() => Ask::Delete(any_delete(random)),
            20..=21 => self.any_lease_step(random),
            22..=25 => Ask::Put(Put {
                lease: self.any_lease(random).unwrap_or(0),
                ..any_put(random)
            }),
            0..=10 => Ask::Put(any_put(random)),
            11..=12 => Ask::Delete(any_delete(random)),
            13..=17 => Ask::Txn(any_txn(random)),
            _ if oldest <= revision => Ask::Compact {
                revision: oldest + random.below(revision + 1 - oldest),
                physical: random.below(4) == 0,
            },
            _ => Ask::Put(any_put(random)),
        };
        self.take(&ask);
        ask
    }

    fn any_lease(&self, random: &mut SplitMix) -> Option<i64> {
        let leases = &self.leases[self.steps()];
        let place = random.below(leases.len().max(1) as u64);
        leases.iter().nth(place as usize).copied()
    }

    /// Grants a lease that is not there, or revokes one that is.
    fn any_lease_step(&self, random: &mut SplitMix) -> Ask {
        let id = random.below(LEASES) as i64 - 1;
        match self.any_lease(random) {
            Some(id) if random.below(3) == 0 => Ask::Revoke(id),
            _ if id != 0 && !self.leases[self.steps()].contains(&id) => Ask::Grant(id),
            Some(id) => Ask::Revoke(id),
            None => Ask::Grant(1),
        }
    }

    /// Takes a step that is given.
    pub fn take(&mut self, ask: &Ask) {
        let (newest, mut floor) = self.place();
        let mut pairs = self.pairs[newest as usize].clone();
        let mut leases = self.leases[self.steps()].clone();
        let mut alarms = self.alarms[self.steps()].clone();
        let main = newest + 1;
        let changed = match ask {
            Ask::Put(request) => put(&mut pairs, main, request),
            Ask::Delete(request) => delete(&mut pairs, request),
            Ask::Txn(txn) => {
                let holds = txn.compare.iter().all(|compare| holds(&pairs, compare));
                let ops = if holds { &txn.success } else { &txn.failure };
                let mut changed = false;
                for op in ops {
                    changed |= match op {
                        Op::Put(request) => put(&mut pairs, main, request),
                        Op::DeleteRange(request) => delete(&mut pairs, request),
                        Op::Range(_) | Op::Txn(_) => unreachable!("no such op is sent"),
                    };
                }
                changed
            }
            Ask::Compact { revision, .. } => {
                floor = Some(*revision);
                false
            }
            Ask::Grant(id) => {
                assert!(leases.insert(*id), "it was not there");
                false
            }
            Ask::Revoke(id) => {
                assert!(leases.remove(id), "it was there");
                let before = pairs.len();
                pairs.retain(|_, pair| pair.lease != *id);
                pairs.len() < before
            }
            Ask::Raise(member) => {
                assert!(alarms.insert(*member), "it was not raised");
                false
            }
            Ask::Clear(member) => {
                assert!(alarms.remove(member), "it was raised");
                false
            }
        };
        if changed {
            self.pairs.push(pairs);
        }
        self.leases.push(leases);
        self.alarms.push(alarms);
        self.places.push((newest + u64::from(changed), floor));
    }
}

fn put(pairs: &mut Pairs, main: u64, put: &Put) -> bool {
    let before = pairs.get(&put.key);
    let pair = Pair {
        create: before.map_or(main, |before| before.create),
        modified: main,
        version: before.map_or(0, |before| before.version) + 1,
        value: put.value.clone(),
        lease: put.lease,
    };
    pairs.insert(put.key.clone(), pair);
    true
}

fn delete(pairs: &mut Pairs, delete: &DeleteRange) -> bool {
    let before = pairs.len();
    pairs.retain(|key, _| !delete.range.contains(key));
    pairs.len() < before
}

fn holds(pairs: &Pairs, compare: &Compare) -> bool {
    let version = pairs
        .get(&compare.range.start)
        .map_or(0, |pair| pair.version);
    compare.operand == Operand::Version(version as i64)
}

fn any_key(random: &mut SplitMix) -> Bytes {
    format!("key {}", random.below(KEYS)).into()
}

/// Mostly small, some of several pages, and some that end with zeros.
pub fn any_put(random: &mut SplitMix) -> Put {
    let length = match random.below(12) {
        0 => 6000,
        1..=3 => random.below(2500),
        _ => random.below(120),
    };
    let mut value: Vec<u8> = (0..length).map(|_| random.draw() as u8).collect();
    if random.below(8) == 0 {
        value.resize(value.len() + 900, 0);
    }
    put_of(any_key(random), value)
}

pub fn put_of(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
    Put {
        key: key.into(),
        value: value.into(),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn any_delete(random: &mut SplitMix) -> DeleteRange {
    let key = any_key(random);
    let end = match random.below(4) {
        0 => any_key(random),
        _ => Bytes::new(),
    };
    DeleteRange {
        range: KeyRange::from_wire(key, end),
        prev_kv: random.below(4) == 0,
    }
}

/// A guard that holds now and then, and several changes.
fn any_txn(random: &mut SplitMix) -> Txn {
    let compare = Compare {
        range: KeyRange::single(any_key(random)),
        relation: Relation::Equal,
        operand: Operand::Version(random.below(3) as i64),
    };
    let mut branch = || {
        let mut ops = vec![Op::Put(any_put(random))];
        let deleted = KeyRange::single(any_key(random));
        let Op::Put(put) = &ops[0] else {
            unreachable!("a put stands first")
        };
        if deleted.start != put.key {
            let range = deleted;
            ops.push(Op::DeleteRange(DeleteRange {
                range,
                prev_kv: false,
            }));
        }
        ops
    };
    Txn {
        compare: vec![compare],
        success: branch(),
        failure: branch(),
    }
}

/// All keys at a revision.
pub fn all_at(revision: u64) -> Range {
    Range {
        range: KeyRange::from_wire(Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        revision: revision as i64,
        limit: 0,
        order: Order::None,
        target: Target::Key,
        filters: Filters::default(),
        keys_only: false,
        count_only: false,
    }
}
