//! Guards of a txn.

use std::cmp::Ordering;

use super::Error;
use super::request::{Compare, Operand, Relation};
use crate::storage::record::KeyValue;
use crate::storage::view::{Met, View};

/// Whether `guard` holds in the newest state of `view`: for every key that is there. If none is,
/// the field counts as 0, and a value compares with nothing (as etcd: script `txn_compare`).
pub fn holds(view: &View, at: u64, guard: &Compare) -> Result<bool, Error> {
    let (mut any, mut all, mut failed) = (false, true, None);
    view.walk(&guard.range, at, |_, met| {
        if met.version.tombstone {
            return true;
        }
        any = true;
        match stands(view, guard, &met) {
            Ok(stands) => all = stands,
            Err(error) => failed = Some(error),
        }
        all && failed.is_none()
    })?;
    match failed {
        Some(error) => Err(error),
        None if any => Ok(all),
        None => Ok(match guard.operand {
            Operand::Value(_) => false,
            Operand::Version(n) | Operand::Create(n) | Operand::Mod(n) | Operand::Lease(n) => {
                relates(guard.relation, 0.cmp(&n))
            }
            Operand::Unknown => relates(guard.relation, Ordering::Equal),
        }),
    }
}

fn stands(view: &View, guard: &Compare, met: &Met) -> Result<bool, Error> {
    let version = &met.version;
    let ordering = match &guard.operand {
        Operand::Version(n) => (version.version as i64).cmp(n),
        Operand::Create(n) => (version.create as i64).cmp(n),
        Operand::Mod(n) => (version.revision.main as i64).cmp(n),
        Operand::Lease(n) => version.lease.cmp(n),
        Operand::Value(operand) => KeyValue::of(&view.record(met)?)?.value.cmp(operand),
        Operand::Unknown => Ordering::Equal,
    };
    Ok(relates(guard.relation, ordering))
}

fn relates(relation: Relation, stored_to_operand: Ordering) -> bool {
    match relation {
        Relation::Equal => stored_to_operand.is_eq(),
        Relation::Greater => stored_to_operand.is_gt(),
        Relation::Less => stored_to_operand.is_lt(),
        Relation::NotEqual => stored_to_operand.is_ne(),
        Relation::Unknown => true,
    }
}
