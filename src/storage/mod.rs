//! What is kept: the log, the memtable, the tables, and views over all three.
//!
//! ```text
//! Store (the writer's)  ─► log ─► memtable ─► View (any reader's)
//! Settler (background)  ─► flush, sweep, defragment ─► redb ─► View
//! ```

pub mod bulk;
pub mod check;
pub mod defragment;
pub mod disk;
pub mod format;
pub mod key_range;
pub mod log;
pub mod memtable;
pub mod record;
pub mod redb;
pub mod revision;
pub mod row;
pub mod settler;
pub mod small;
pub mod space;
pub mod store;
pub mod varint;
pub mod view;

use std::io;

/// Bytes that no MetaStore writes, and what they should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged data: {0}")]
pub struct Damaged(pub &'static str);

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No room on the disk. The store goes on; asking again can help.
    #[error("the disk is full")]
    NoSpace,
    /// More in one batch than the log can hold: see [`log::BATCH_BYTES_MAX`].
    #[error("the batch is larger than the log takes")]
    TooLarge,
    /// The database was closed and opened again under this view: a new view can read on.
    #[error("this view of the database was closed")]
    Closed,
    /// The data is from a newer program.
    #[error(
        "the data is in format {found}, and this program knows only up to {}",
        format::VERSION
    )]
    Newer {
        /// The format's version.
        found: u64,
    },
    /// The log holds what was never written, or is a newer program's.
    #[error(transparent)]
    Log(log::Error),
    /// What was read is not what was written. The process ends.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The disk failed. The process ends.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The database failed. The process ends.
    #[error("the database failed: {0}")]
    Database(Box<dyn std::error::Error + Send + Sync>),
}
