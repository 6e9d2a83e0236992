//! What etcd's database holds of a store: ten buckets and their rows.
//!
//! A small bucket is put together in memory. The bucket `key` is history itself, row for row, and is
//! passed on as it is read.

use std::collections::BTreeMap;

use bytes::BufMut;
use serde_json::{Map, Value, json};

use super::{Error, STORAGE_VERSION};
use crate::mvcc::history::{self, Key, stays};
use crate::storage::revision::Revision;
use crate::storage::small;
use crate::storage::store::Identity;
use crate::storage::varint;
use crate::storage::view::View;

/// Fields 1 and 2 of etcd's `leasepb.Lease`, numbers. (Its third is what a checkpoint says is left
/// of the TTL; without it the lease has all of it again.)
const LEASE_ID: u8 = 1 << 3;
const LEASE_TTL: u8 = 2 << 3;

/// The one member of a store's cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// URLs offered to clients.
    pub client_urls: Vec<String>,
    /// How often the store was opened: etcd's raft term.
    pub term: u64,
}

impl Member {
    /// That of a store, as far as a store knows it. Its peer URLs are those that it was told last.
    pub fn of(view: &View, identity: &Identity, term: u64) -> Member {
        let id = identity.member_id;
        Member {
            id,
            name: "default".to_owned(),
            peer_urls: told_peer_urls(view, id).unwrap_or_else(|| identity.peer_urls.clone()),
            client_urls: Vec::new(),
            term,
        }
    }
}

/// An empty list is null where etcd has written it.
fn told_peer_urls(view: &View, id: u64) -> Option<Vec<String>> {
    let row = view.small.get(small::Bucket::Members, &member_key(id))?;
    let json: Value = serde_json::from_slice(row).ok()?;
    let urls = json.get("peerURLs")?.as_array();
    let urls = urls.into_iter().flatten().filter_map(Value::as_str);
    Some(urls.map(str::to_owned).collect())
}

/// The row that keeps which peer URLs the member was told.
pub fn member_row(id: u64, peer_urls: &[String]) -> (Vec<u8>, Vec<u8>) {
    let value = json!({"id": id, "peerURLs": peer_urls}).to_string();
    (member_key(id), value.into_bytes())
}

fn member_key(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

/// One of etcd's buckets.
#[derive(Debug)]
pub struct Bucket {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub rows: Rows,
}

/// Where a bucket's rows are.
#[derive(Debug)]
pub enum Rows {
    /// Here.
    Few(BTreeMap<Vec<u8>, Vec<u8>>),
    /// In the view: all of history that compaction leaves.
    History,
    /// In the view: all leases.
    Leases,
}

/// All buckets of the store, in byte order of their names.
pub fn buckets(view: &View, member: &Member) -> Vec<Bucket> {
    let few = |name, rows| Bucket {
        name,
        rows: Rows::Few(rows),
    };
    let row = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    let copied = |bucket: small::Bucket| {
        let rows = view.small.rows(bucket);
        let rows = rows.map(|(key, value)| (key.to_vec(), value.to_vec()));
        few(bucket.name(), rows.collect())
    };
    // What we keep in an alarm's value is nothing to others.
    let alarms = view.small.rows(small::Bucket::Alarm);
    let alarms = alarms.map(|(key, _)| (key.to_vec(), Vec::new()));
    let downgrade = json!({"target-version": "", "enabled": false}).to_string();
    vec![
        few(small::Bucket::Alarm.name(), alarms.collect()),
        copied(small::Bucket::Auth),
        copied(small::Bucket::AuthRoles),
        copied(small::Bucket::AuthUsers),
        few(
            "cluster",
            BTreeMap::from([
                row("clusterVersion", STORAGE_VERSION),
                row("downgrade", &downgrade),
            ]),
        ),
        Bucket {
            name: "key",
            rows: Rows::History,
        },
        Bucket {
            name: "lease",
            rows: Rows::Leases,
        },
        few(
            "members",
            BTreeMap::from([(
                member_key(member.id),
                member_json(member).to_string().into_bytes(),
            )]),
        ),
        few("members_removed", BTreeMap::new()),
        few("meta", meta(view, member)),
    ]
}

/// Visits the rows of `bucket` in byte order of their keys. `go_on` is asked with each of the view's,
/// those that are left out included.
pub fn each_row(
    view: &View,
    bucket: &Bucket,
    go_on: impl Fn() -> bool,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let wanted = || go_on().then_some(()).ok_or(Error::Abandoned);
    match &bucket.rows {
        Rows::Few(rows) => rows.iter().try_for_each(|(key, value)| {
            wanted()?;
            visit(key, value)
        }),
        Rows::History => history::each(view, view.revision, |met| {
            wanted()?;
            if stays(view, &met)? {
                visit(met.key().as_bytes(), met.bytes)?;
            }
            Ok(())
        }),
        Rows::Leases => {
            // By id as unsigned numbers, as their bytes are in order.
            let mut ttls = BTreeMap::new();
            view.for_each_lease(|id, row| {
                match row {
                    Some(row) => ttls.insert(id as u64, row.ttl_secs),
                    None => ttls.remove(&(id as u64)),
                };
            })?;
            ttls.into_iter().try_for_each(|(id, ttl_secs)| {
                wanted()?;
                let mut lease = Vec::with_capacity(22);
                lease.put_u8(LEASE_ID);
                varint::put(&mut lease, id);
                lease.put_u8(LEASE_TTL);
                varint::put(&mut lease, ttl_secs);
                visit(&id.to_be_bytes(), &lease)
            })
        }
    }
}

/// A checksum of all that a snapshot holds, but for what etcd's Hash passes over.
pub fn hash(view: &View, member: &Member, go_on: impl Fn() -> bool) -> Result<u32, Error> {
    let mut hash = 0;
    for bucket in buckets(view, member) {
        hash = crc32c::crc32c_append(hash, bucket.name.as_bytes());
        each_row(view, &bucket, &go_on, |key, value| {
            let passed_over: [&[u8]; 3] = [b"consistent_index", b"term", b"storageVersion"];
            if bucket.name != "meta" || !passed_over.contains(&key) {
                hash = crc32c::crc32c_append(hash, key);
                hash = crc32c::crc32c_append(hash, value);
            }
            Ok(())
        })?;
    }
    Ok(hash)
}

fn meta(view: &View, member: &Member) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let voters = json!({"voters": [member.id]}).to_string();
    let mut rows = BTreeMap::from([
        ("confState", voters.into_bytes()),
        ("consistent_index", view.index.max(1).to_be_bytes().into()),
        ("storageVersion", STORAGE_VERSION.into()),
        ("term", member.term.max(1).to_be_bytes().into()),
    ]);
    if let Some(floor) = view.floor {
        let at = Revision {
            main: floor,
            sub: 0,
        };
        let key = Key::of(at, false).as_bytes().to_vec();
        rows.insert("scheduledCompactRev", key.clone());
        rows.insert("finishedCompactRev", key);
    }
    let owned = |(key, value): (&str, Vec<u8>)| (key.as_bytes().to_vec(), value);
    rows.into_iter().map(owned).collect()
}

/// As etcd writes it: what is empty is left out.
fn member_json(member: &Member) -> Value {
    let mut json = Map::new();
    json.insert("id".into(), member.id.into());
    json.insert("peerURLs".into(), member.peer_urls.clone().into());
    if !member.name.is_empty() {
        json.insert("name".into(), member.name.clone().into());
    }
    if !member.client_urls.is_empty() {
        json.insert("clientURLs".into(), member.client_urls.clone().into());
    }
    json.into()
}
