//! What can be asked of the writer, and where it answers.

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot;

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
}

impl Command {
    /// Whether it can add data, and so is refused on a full disk.
    pub fn adds(&self) -> bool {
        match self {
            Command::Put(_) => true,
            Command::Txn(txn) => txn.can_put(),
            Command::DeleteRange(_) | Command::Compact { .. } => false,
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
    /// Its share of the queue, given back when it is answered.
    pub room: OwnedSemaphorePermit,
}

/// The way back to who asked.
#[derive(Debug)]
pub struct Reply {
    /// Resolves the future that waits.
    pub sender: oneshot::Sender<Result<Answer, Error>>,
    /// The network thread that the future lives on, if it is one.
    pub home: Option<Home>,
}
