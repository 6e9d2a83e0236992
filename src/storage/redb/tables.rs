//! Every table: its key, its value, and their order.
//!
//! | table | key | value | order |
//! |---|---|---|---|
//! | `history` | main, sub | [`HistoryRow`](crate::storage::row::HistoryRow) | of time |
//! | `index` | user key, [descending revision](crate::storage::revision::Revision::encode_descending) | [`Version`](crate::storage::row::Version) | keys in byte order, newest version first |
//! | `meta` | name | eight bytes, big-endian; or text | of names |

use redb::TableDefinition;

/// Every version of every key, in order.
pub const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");

/// Which versions a key has.
pub const INDEX: TableDefinition<'_, (&[u8], &[u8; 12]), &[u8]> = TableDefinition::new("index");

/// What there is one of: see [`super::meta::Meta`].
pub const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
