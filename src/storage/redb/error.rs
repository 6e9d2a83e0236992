//! redb's errors, told by what the caller can do.

use std::io;

use crate::storage::disk::is_full;
use crate::storage::{Damaged, Error};

fn tell(error: redb::Error) -> Error {
    match error {
        redb::Error::DatabaseClosed | redb::Error::PreviousIo => Error::Closed,
        redb::Error::Io(error) if is_full(&error) => Error::NoSpace,
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            Damaged("this is not a file that redb wrote").into()
        }
        redb::Error::Io(error) => Error::Io(error),
        other => Error::Database(Box::new(other)),
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Error {
            fn from(error: redb::$error) -> Error {
                tell(error.into())
            }
        }
    )*};
}

from_redb!(
    StorageError,
    DatabaseError,
    TransactionError,
    TableError,
    CommitError
);
