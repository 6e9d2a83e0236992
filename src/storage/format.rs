//! The format's version, and each step up to it.
//!
//! | version | since | what changed |
//! |---|---|---|
//! | 1 | 0.1.0 | the first |

use super::Error;

/// What this program writes; in `meta` under `format`.
pub const VERSION: u64 = 1;

/// Refuses data of a newer program. Each older version gets its step up here.
pub fn accept(version: u64) -> Result<(), Error> {
    match version {
        VERSION => Ok(()),
        0 => Err(super::Damaged("format version 0 in meta").into()),
        newer => Err(Error::Newer { found: newer }),
    }
}
