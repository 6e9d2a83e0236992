//! etcd's backup format: a bbolt database with etcd's buckets, and how a store goes in and out.
//!
//! ```text
//! view ─► contents: etcd's buckets ─► save: sized, then written front to back, and signed
//! file ─► load: etcd's buckets, none of them believed ─► restore: a new store, filled in order
//! ```

pub mod bbolt;
pub mod contents;
pub mod fields;
pub mod load;
pub mod restore;
pub mod rows;
pub mod save;
pub mod wal;

use std::io;

use crate::storage::{self, Damaged};

/// The version of etcd's data format that we write, and that Status tells; its patch is always 0.
pub const STORAGE_VERSION: &str = "3.7.0";

/// Why a snapshot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store could not be read.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// What is written could not be left where it should go.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nobody wants it any more.
    #[error("the client has gone")]
    Abandoned,
}

impl From<Damaged> for Error {
    fn from(damaged: Damaged) -> Error {
        Error::Storage(damaged.into())
    }
}
