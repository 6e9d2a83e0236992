//! Whether who asks for a command may do to keys what it does to them.
//!
//! A lease stands for its keys: who may not write one of them may neither revoke the lease, nor put
//! another key under it, unless it may change users and roles (as etcd). Grants and compactions
//! name no keys.

use std::collections::HashSet;

use super::command::Command;
use crate::auth::permission::{Access, Rights};
use crate::auth::{self, Asker};
use crate::lease::pending::Pending;
use crate::mvcc::request::{DeleteRange, Op, Put, Txn};
use crate::mvcc::write_txn::NEWEST;
use crate::storage;
use crate::storage::key_range::KeyRange;
use crate::storage::view::View;

/// Why a command is not let pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rights are lacking.
    #[error(transparent)]
    Auth(#[from] auth::Error),
    /// Which keys a lease has could not be read.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// Refuses a command for which `asker` lacks a right, in `view`, this batch included.
pub fn check(view: &View, leases: &Pending, asker: &Asker, command: &Command) -> Result<(), Error> {
    if !auth::is_on(&view.small) {
        return Ok(());
    }
    let mut check = Check {
        view,
        leases,
        asker,
        rights: None,
        passed: HashSet::new(),
    };
    match command {
        Command::Put(put) => check.put(put),
        Command::DeleteRange(delete) => check.delete(delete),
        Command::Txn(txn) => check.txn(txn),
        Command::Revoke(id) => check.lease(*id),
        _ => Ok(()),
    }
}

struct Check<'a> {
    view: &'a View,
    leases: &'a Pending,
    asker: &'a Asker,
    /// Found when the first key is looked at: without one nobody needs any.
    rights: Option<Rights>,
    /// Leases whose keys may all be written.
    passed: HashSet<i64>,
}

impl Check<'_> {
    fn keys(&mut self, access: Access, range: &KeyRange) -> Result<(), Error> {
        let rights = match &self.rights {
            Some(rights) => rights,
            None => {
                let rights = Rights::of(&self.view.small, self.asker)?;
                self.rights.insert(rights)
            }
        };
        Ok(rights.permit(access, range)?)
    }

    fn put(&mut self, put: &Put) -> Result<(), Error> {
        let key = KeyRange::single(put.key.clone());
        self.keys(Access::Write, &key)?;
        self.lease(put.lease)?;
        if put.prev_kv {
            self.keys(Access::Read, &key)?;
        }
        Ok(())
    }

    fn delete(&mut self, delete: &DeleteRange) -> Result<(), Error> {
        self.keys(Access::Write, &delete.range)?;
        if delete.prev_kv {
            self.keys(Access::Read, &delete.range)?;
        }
        Ok(())
    }

    /// Both branches, whichever will be taken.
    fn txn(&mut self, txn: &Txn) -> Result<(), Error> {
        for guard in &txn.compare {
            self.keys(Access::Read, &guard.range)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(read) => self.keys(Access::Read, &read.range)?,
                Op::Put(put) => self.put(put)?,
                Op::DeleteRange(delete) => self.delete(delete)?,
                Op::Txn(nested) => self.txn(nested)?,
            }
        }
        Ok(())
    }

    /// A lease that is not there has no keys.
    fn lease(&mut self, id: i64) -> Result<(), Error> {
        if self.passed.contains(&id) || !self.leases.exists(id) {
            return Ok(());
        }
        if auth::check_admin(&self.view.small, self.asker).is_err() {
            for key in self.view.attached(id, NEWEST)? {
                self.keys(Access::Write, &KeyRange::single(key.into()))?;
            }
        }
        self.passed.insert(id);
        Ok(())
    }
}
