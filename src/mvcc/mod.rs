//! What a revision means: reading at one, and deciding the next.
//!
//! Plain functions over a [`View`](crate::storage::view::View). Requests are exact types here:
//! what the wire can say wrongly was refused by `grpc`, except what only the store can know.

pub mod compare;
pub mod counts;
pub mod hash;
pub mod history;
#[doc(hidden)]
pub mod model;
pub mod overlap;
pub mod range;
pub mod request;
pub mod txn;
pub mod write_txn;

use crate::storage::{self, Damaged};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked below the compaction. Asking again cannot help.
    #[error("the revision is compacted")]
    Compacted,
    /// Asked above the newest revision.
    #[error("the revision is in the future")]
    FutureRevision,
    /// The value or lease of an absent key was to be kept, or an operation is none at all.
    #[error("the key is not there")]
    KeyNotFound,
    /// The lease of a put does not exist.
    #[error("the lease is not there")]
    LeaseNotFound,
    /// A lease of that id is there already.
    #[error("the lease is there already")]
    LeaseExists,
    /// A lease was to live longer than leases can.
    #[error("the lease's TTL is too long")]
    LeaseTooLong,
    /// No key was given.
    #[error("no key is given")]
    EmptyKey,
    /// A value beside the wish to keep the old one.
    #[error("a value is given, and the old one to be kept")]
    ValueProvided,
    /// A lease beside the wish to keep the old one.
    #[error("a lease is given, and the old one to be kept")]
    LeaseProvided,
    /// More operations in a txn than allowed.
    #[error("the txn has too many operations")]
    TooManyOps,
    /// Two operations of a txn would change one key.
    #[error("the txn changes a key twice")]
    DuplicateKey,
    /// A sort order or target that does not exist.
    #[error("there is no such order")]
    InvalidSortOption,
    /// The request is larger than the log takes.
    #[error("the request is too large")]
    RequestTooLarge,
    /// Adding this would pass the quota, the alarm of that is raised, or the disk is full.
    #[error("there is no space")]
    NoSpace,
    /// The alarm is raised that the data are not what they should be: nothing is changed.
    #[error("the data are said to be corrupt")]
    Corrupt,
    /// There are as many alarms as there may be.
    #[error("there are too many alarms")]
    TooManyAlarms,
    /// A defragmentation needs more free space on the disk than there is.
    #[error("there is no room for a defragmentation")]
    NoRoom,
    /// The store stops.
    #[error("the store stops")]
    Stopped,
    /// The disk failed, or holds what was never written.
    #[error(transparent)]
    Storage(storage::Error),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        match error {
            storage::Error::NoSpace => Error::NoSpace,
            other => Error::Storage(other),
        }
    }
}

impl From<Damaged> for Error {
    fn from(error: Damaged) -> Error {
        Error::Storage(error.into())
    }
}
