//! Every table: its key, its value, and their order.
//!
//! | table | key | value | order |
//! |---|---|---|---|
//! | `history` | main, sub | [`HistoryRow`](crate::storage::row::HistoryRow) | of time |
//! | `index` | user key, [descending revision](crate::storage::revision::Revision::encode_descending) | [`Version`](crate::storage::row::Version) | keys in byte order, newest version first |
//! | `leases` | id | [`LeaseRow`](crate::storage::row::LeaseRow) | of ids |
//! | `attached` | lease id, user key | | of leases, then keys in byte order |
//! | `small` | [bucket](crate::storage::small::Bucket), key | as etcd has it | of buckets, then keys in byte order |
//! | `meta` | name | eight bytes, big-endian; or text | of names |

use redb::TableDefinition;

/// Every version of every key, in order.
pub const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");

/// Which versions a key has.
pub const INDEX: TableDefinition<'_, (&[u8], &[u8; 12]), &[u8]> = TableDefinition::new("index");

/// The leases that are granted.
pub const LEASES: TableDefinition<'_, i64, &[u8]> = TableDefinition::new("leases");

/// Which keys a lease has: those whose newest version names it.
pub const ATTACHED: TableDefinition<'_, (i64, &[u8]), ()> = TableDefinition::new("attached");

/// Alarms, users, roles and what else there is little of.
pub const SMALL: TableDefinition<'_, (&str, &[u8]), &[u8]> = TableDefinition::new("small");

/// What there is one of: see [`super::meta::Meta`].
pub const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
