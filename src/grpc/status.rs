//! Errors on the wire: gRPC's code and etcd's exact words, which clients compare.

use tonic::{Code, Status};

use crate::mvcc::Error;
use crate::watch::answer::Refusal;

/// Why a watcher was not made: a text within an answer, and no status.
pub fn refusal(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NegativeStart => "etcdserver: mvcc: required revision has been compacted",
        Refusal::EmptyRange => "mvcc: watcher range is empty",
        Refusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let (code, text) = match error {
            Error::Compacted => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            Error::FutureRevision => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            Error::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            Error::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            Error::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
            Error::LeaseTooLong => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            Error::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            Error::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            Error::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            Error::TooManyOps => (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
            ),
            Error::DuplicateKey => (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
            ),
            Error::InvalidSortOption => (Code::InvalidArgument, "etcdserver: invalid sort option"),
            Error::RequestTooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
            Error::NoSpace => (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            Error::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
            Error::TooManyAlarms => (Code::ResourceExhausted, "etcdserver: too many requests"),
            Error::Stopped | Error::Storage(_) => (Code::Unavailable, "etcdserver: server stopped"),
        };
        Status::new(code, text)
    }
}
