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

/// Why a call about the member, its cluster or its version is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Peer URLs that are none.
    BadUrls,
    /// A peer URL that a member has.
    UrlExists,
    /// No second member can be had, nor the only one be let go.
    NotEnoughStarted,
    /// There is no such member.
    NoMember,
    /// The member votes already.
    NotALearner,
    /// The lead cannot go there.
    BadTransferee,
    /// What is given as a version is none.
    NoVersion,
    /// Nobody could go back to that version from this one.
    NotTheVersionBefore,
    /// Nobody can go back to another version from ours.
    NoWayBack,
    /// A number that names nothing to do with a downgrade.
    UnknownMethod,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Status {
        let (code, text) = match refused {
            Refused::BadUrls => (
                Code::InvalidArgument,
                "etcdserver: given member URLs are invalid",
            ),
            Refused::UrlExists => (
                Code::FailedPrecondition,
                "etcdserver: Peer URLs already exists",
            ),
            // As etcd: this one goes without its code (script `member`).
            Refused::NotEnoughStarted => (
                Code::Unknown,
                "etcdserver: re-configuration failed due to not enough started members",
            ),
            Refused::NoMember => (Code::NotFound, "etcdserver: member not found"),
            Refused::NotALearner => (
                Code::FailedPrecondition,
                "etcdserver: can only promote a learner member",
            ),
            Refused::BadTransferee => (
                Code::FailedPrecondition,
                "etcdserver: bad leader transferee",
            ),
            Refused::NoVersion => (
                Code::InvalidArgument,
                "etcdserver: wrong downgrade target version format",
            ),
            Refused::NotTheVersionBefore => (
                Code::InvalidArgument,
                "etcdserver: invalid downgrade target version",
            ),
            Refused::NoWayBack => (
                Code::FailedPrecondition,
                "MetaStore cannot be downgraded: its data are those of etcd 3.7",
            ),
            Refused::UnknownMethod => (Code::Unknown, "etcdserver: unknown method"),
        };
        Status::new(code, text)
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
            // etcd passes on what the operating system says.
            Error::NoRoom => (
                Code::ResourceExhausted,
                "etcdserver: not enough free disk space to defragment",
            ),
            Error::Stopped | Error::Storage(_) => (Code::Unavailable, "etcdserver: server stopped"),
        };
        Status::new(code, text)
    }
}
