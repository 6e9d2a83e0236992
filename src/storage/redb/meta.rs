//! What there is one of: the rows of table `meta` as one value.
//!
//! Written whole in the same redb txn as the rows it speaks of, so that the tables and their
//! description never part.

use redb::{ReadableTable, Table};

use crate::storage::{Damaged, Error, format};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The cluster's id, fixed at the first start.
    pub cluster_id: u64,
    /// The one member's id, fixed at the first start.
    pub member_id: u64,
    /// The peer URLs that the ids were made of.
    pub peer_urls: Vec<String>,
    /// Whether the log has ever been begun: from then on a missing log is damage.
    pub log_begun: bool,
    /// How often the server has started; etcd's raft term.
    pub term: u64,
    /// The last batch of the log that the tables hold.
    pub applied_batch: u64,
    /// The last command that the tables hold; etcd's raft index.
    pub applied_index: u64,
    /// The newest revision that was ever given, whether or not a row of it is left.
    pub revision: u64,
    /// Where history begins; `None` before the first compaction.
    pub floor: Option<u64>,
    /// The sweep has removed what compaction at this revision removes.
    pub swept: u64,
    /// Rows in `history`.
    pub history_rows: u64,
    /// Rows in `index`: as many, but for those of a flush that is not finished.
    pub index_rows: u64,
    /// Bytes of the rows of `history`, keys and values.
    pub history_bytes: u64,
    /// Bytes of the rows of `index`, keys and values.
    pub index_bytes: u64,
    /// Milliseconds that the server has run on this data, as far as they were kept.
    pub served: u64,
    /// Rows in `leases`.
    pub lease_rows: u64,
    /// Rows in `attached`.
    pub attached_rows: u64,
    /// Bytes of the rows of both, keys and values.
    pub lease_bytes: u64,
}

type MetaTable<'txn> = Table<'txn, &'static str, &'static [u8]>;

impl Meta {
    /// A store that nothing was ever written to.
    pub fn new(cluster_id: u64, member_id: u64, peer_urls: Vec<String>) -> Meta {
        Meta {
            cluster_id,
            member_id,
            peer_urls,
            log_begun: false,
            term: 1,
            applied_batch: 0,
            applied_index: 0,
            revision: 1,
            floor: None,
            swept: 0,
            history_rows: 0,
            index_rows: 0,
            history_bytes: 0,
            index_bytes: 0,
            served: 0,
            lease_rows: 0,
            attached_rows: 0,
            lease_bytes: 0,
        }
    }

    /// Writes all rows.
    pub fn write(&self, table: &mut MetaTable<'_>) -> Result<(), redb::StorageError> {
        for (name, number) in [
            ("format", format::VERSION),
            ("cluster_id", self.cluster_id),
            ("member_id", self.member_id),
            ("log_begun", u64::from(self.log_begun)),
            ("term", self.term),
            ("applied_batch", self.applied_batch),
            ("applied_index", self.applied_index),
            ("revision", self.revision),
            ("swept", self.swept),
            ("history_rows", self.history_rows),
            ("index_rows", self.index_rows),
            ("history_bytes", self.history_bytes),
            ("index_bytes", self.index_bytes),
            ("served", self.served),
            ("lease_rows", self.lease_rows),
            ("attached_rows", self.attached_rows),
            ("lease_bytes", self.lease_bytes),
        ] {
            table.insert(name, &number.to_be_bytes()[..])?;
        }
        if let Some(floor) = self.floor {
            table.insert("floor", &floor.to_be_bytes()[..])?;
        }
        table.insert("peer_urls", self.peer_urls.join(",").as_bytes())?;
        Ok(())
    }

    /// Reads all rows; refuses a format newer than this program's before it looks at the rest.
    pub fn read(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Meta, Error> {
        let number = |name| -> Result<Option<u64>, Error> {
            let Some(row) = table.get(name)? else {
                return Ok(None);
            };
            let bytes = row.value().try_into();
            let bytes = bytes.map_err(|_| Damaged("a row of meta is not eight bytes long"))?;
            Ok(Some(u64::from_be_bytes(bytes)))
        };
        let needed = |name| -> Result<u64, Error> {
            Ok(number(name)?.ok_or(Damaged("a row of meta is missing"))?)
        };
        format::accept(needed("format")?)?;
        let urls = table.get("peer_urls")?;
        let urls = urls.ok_or(Damaged("the peer URLs are missing in meta"))?;
        let urls = std::str::from_utf8(urls.value())
            .map_err(|_| Damaged("the peer URLs in meta are not text"))?;
        Ok(Meta {
            cluster_id: needed("cluster_id")?,
            member_id: needed("member_id")?,
            peer_urls: urls.split(',').map(str::to_owned).collect(),
            log_begun: needed("log_begun")? != 0,
            term: needed("term")?,
            applied_batch: needed("applied_batch")?,
            applied_index: needed("applied_index")?,
            revision: needed("revision")?,
            floor: number("floor")?,
            swept: needed("swept")?,
            history_rows: needed("history_rows")?,
            index_rows: needed("index_rows")?,
            history_bytes: needed("history_bytes")?,
            index_bytes: needed("index_bytes")?,
            served: needed("served")?,
            lease_rows: needed("lease_rows")?,
            attached_rows: needed("attached_rows")?,
            lease_bytes: needed("lease_bytes")?,
        })
    }
}
