//! What can be asked of the writer, and where it answers.

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot;

use super::alarm::{Alarm, By};
use super::replies::Home;
use crate::mvcc::Error;
use crate::mvcc::request::{Decided, DeleteRange, Deleted, Put, Txn, Written};

/// One thing that the writer decides.
#[derive(Debug)]
pub enum Command {
    /// Write a key.
    Put(Put),
    /// Delete keys.
    DeleteRange(DeleteRange),
    /// Run a txn that can change something.
    Txn(Txn),
    /// Raise the floor.
    Compact {
        /// To this revision.
        revision: i64,
        /// Answer when the compacted rows are gone from the disk.
        physical: bool,
    },
    /// Give space back to the file system.
    Defragment,
    /// Grant a lease.
    Grant {
        /// Its id; 0 leaves the choice to the writer.
        id: i64,
        /// For so many seconds, or as many as are the least.
        ttl_secs: i64,
    },
    /// Remove a lease and its keys.
    Revoke(i64),
    /// Remove leases that have run out, and their keys.
    Expire(Expire),
    /// Keep signs of life of leases, and how long the server has run.
    KeepSigns,
    /// Raise an alarm.
    Raise(Alarm, By),
    /// Clear an alarm.
    Clear(Alarm),
    /// Clear the alarm that the server has raised, if there is room again.
    ClearOwn,
    /// Keep these as the member's peer URLs.
    UpdateMember(Vec<String>),
}

/// Which leases that have run out are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expire {
    /// The next few.
    Next,
    /// This one.
    One(i64),
}

/// What the writer decided.
#[derive(Debug)]
pub enum Answer {
    /// Of [`Command::Put`].
    Put(Written),
    /// Of [`Command::DeleteRange`].
    DeleteRange(Deleted),
    /// Of [`Command::Txn`].
    Txn(Decided),
    /// Of [`Command::Compact`]: the newest revision.
    Compact(u64),
    /// Of [`Command::Defragment`].
    Defragmented,
    /// Of [`Command::Grant`].
    Granted(Granted),
    /// Of [`Command::Revoke`]: the newest revision.
    Revoked(u64),
    /// Of [`Command::Expire`].
    Expired,
    /// Of [`Command::KeepSigns`]: whether there are more to keep.
    KeptSigns {
        /// Ask again.
        more: bool,
    },
    /// Of [`Command::Raise`].
    Raised {
        /// Whether it was not raised before.
        is_new: bool,
        /// The newest revision.
        revision: u64,
    },
    /// Of [`Command::Clear`] and [`Command::ClearOwn`].
    Cleared {
        /// Whether there was anything to clear.
        was_there: bool,
        /// The newest revision.
        revision: u64,
    },
    /// Of [`Command::UpdateMember`].
    UpdatedMember,
}

/// A lease as it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub id: i64,
    /// For so many seconds.
    pub ttl_secs: u64,
    /// The newest revision.
    pub revision: u64,
}

impl Command {
    /// Whether it can add data, and so is refused on a full disk.
    pub fn adds(&self) -> bool {
        match self {
            Command::Put(_)
            | Command::Grant { .. }
            | Command::KeepSigns
            | Command::UpdateMember(_) => true,
            Command::Txn(txn) => txn.can_put(),
            Command::DeleteRange(_)
            | Command::Compact { .. }
            | Command::Defragment
            | Command::Revoke(_)
            | Command::Expire(_)
            | Command::Raise(..)
            | Command::Clear(_)
            | Command::ClearOwn => false,
        }
    }

    /// Whether it changes keys or leases, and so can be refused for the sake of an alarm.
    pub fn is_change(&self) -> bool {
        match self {
            Command::Put(_)
            | Command::DeleteRange(_)
            | Command::Txn(_)
            | Command::Compact { .. }
            | Command::Grant { .. }
            | Command::Revoke(_)
            | Command::Expire(_) => true,
            Command::Defragment
            | Command::KeepSigns
            | Command::Raise(..)
            | Command::Clear(_)
            | Command::ClearOwn
            | Command::UpdateMember(_) => false,
        }
    }
}

/// A command in the queue.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub command: Command,
    /// Who asks.
    pub reply: Reply,
    /// Its share of the queue, given back when it is answered; the writer's own takes none.
    pub room: Option<OwnedSemaphorePermit>,
}

impl Asked {
    /// What the writer asks itself: nobody waits for the answer.
    pub fn by_the_writer(command: Command) -> Asked {
        let (sender, _) = oneshot::channel();
        Asked {
            command,
            reply: Reply { sender, home: None },
            room: None,
        }
    }
}

/// The way back to who asked.
#[derive(Debug)]
pub struct Reply {
    /// Resolves the future that waits.
    pub sender: oneshot::Sender<Result<Answer, Error>>,
    /// The network thread that the future lives on, if it is one.
    pub home: Option<Home>,
}
