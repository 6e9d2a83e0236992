//! The writer's work without its threads: for what the log of another server asks for.
//!
//! ```text
//! request ─► judge, in order ─► log, publish      many share a sync
//!                         └─► flush when due      end: all is in the tables, and no log is left
//! ```
//! What was asked is judged as it was when it was asked: by the same judge, alarms included, and by
//! the rights of then. Time stands still, since what time decided was logged as well: a lease ends
//! where the log says so. Whoever opens this must throw the store away unless [`Offline::end`] has
//! answered.

use std::sync::Arc;

use super::command::Command;
use super::judge::judge;
use super::permit;
use crate::auth::{self, Asker, Change};
use crate::clock::Clock;
use crate::lease::expiry::{ELSEWHERE_MILLIS, row_with_left};
use crate::lease::pending::Pending;
use crate::lease::{Leases, Timing};
use crate::mvcc;
use crate::storage;
use crate::storage::row::LeaseRow;
use crate::storage::settler::{Outcome, Settler};
use crate::storage::store::{self, Identity, Settings, Store};

/// Most requests that share one sync.
const BATCH_MAX: usize = 1024;

/// What another server has logged.
#[derive(Debug)]
pub struct Logged {
    /// Who asked.
    pub asker: Asker,
    /// What for.
    pub request: Request,
}

/// What was asked for.
#[derive(Debug)]
pub enum Request {
    /// What clients of ours can ask for as well.
    Command(Command),
    /// That so many seconds are left of leases; 0 is all of their TTL.
    Left(Vec<(i64, u64)>),
    /// That users or roles change, or whether authentication is on.
    Auth(Change),
    /// What changes nothing that is kept here.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Offline {
    settings: Settings,
    store: Store,
    settler: Settler,
    leases: Pending,
    /// Requests that wait for a sync.
    waiting: usize,
}

impl Offline {
    /// Opens a store that no process has open, and that nothing was served from yet.
    pub fn open(settings: Settings, timing: Timing) -> Result<Offline, storage::Error> {
        // It has one: this one would be used if the store were made.
        let identity = Identity {
            cluster_id: 0,
            member_id: 0,
            peer_urls: Vec::new(),
        };
        let (mut store, settler) = Store::open(&settings, identity)?;
        let leases = Leases::of(&store, timing, Clock::Manual(Arc::default()))?;
        store.begin_batch();
        Ok(Offline {
            settings,
            store,
            settler,
            leases: Pending::new(Arc::new(leases)),
            waiting: 0,
        })
    }

    /// Judges a request behind all before it. What is refused was refused then as well, and leaves
    /// nothing.
    pub fn take(&mut self, logged: &Logged) -> Result<(), storage::Error> {
        match &logged.request {
            Request::Command(command) => self.judge(&logged.asker, command)?,
            Request::Left(left) => {
                // So that leases granted just now are known.
                self.commit()?;
                for (id, left_secs) in left {
                    self.keep_left(*id, *left_secs);
                }
            }
            Request::Auth(change) => self.change(&logged.asker, change)?,
            Request::Nothing => {}
        }
        self.waiting += 1;
        let batch_is_full =
            self.waiting >= BATCH_MAX || self.store.batch_bytes() >= self.settings.flush_bytes;
        if batch_is_full || self.store.is_due() {
            self.commit()?;
        }
        Ok(())
    }

    fn judge(&mut self, asker: &Asker, command: &Command) -> Result<(), storage::Error> {
        self.find_space()?;
        match permit::check(self.store.view(), &self.leases, asker, command) {
            Ok(()) => {}
            Err(permit::Error::Auth(_)) => return Ok(()),
            Err(permit::Error::Storage(error)) => return Err(error),
        }
        // When it was asked for nobody knows any more.
        match judge(&mut self.store, &mut self.leases, command, 0) {
            Err(mvcc::Error::Storage(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn change(&mut self, asker: &Asker, change: &Change) -> Result<(), storage::Error> {
        self.find_space()?;
        let rows = auth::decide(&self.store.view().small, asker, change).unwrap_or_default();
        for row in &rows {
            self.store
                .set_small(row.bucket, &row.key, row.value.as_deref());
        }
        if !rows.is_empty() {
            self.store.count_command();
        }
        Ok(())
    }

    fn find_space(&self) -> Result<(), storage::Error> {
        match self.store.space().is_full() {
            true => Err(storage::Error::NoSpace),
            false => Ok(()),
        }
    }

    fn keep_left(&mut self, id: i64, left_secs: u64) {
        let Some(lease) = self.leases.leases().look(id) else {
            return;
        };
        let row = match left_secs {
            0 => LeaseRow {
                ttl_secs: lease.ttl_secs,
                seen_millis: ELSEWHERE_MILLIS,
            },
            left_secs => row_with_left(lease.ttl_secs, left_secs, ELSEWHERE_MILLIS),
        };
        self.store.keep_lease(id, row);
    }

    /// Puts on disk what was judged; into the tables, if that is due.
    fn commit(&mut self) -> Result<(), storage::Error> {
        self.store.commit()?;
        self.leases.publish(|| self.store.publish());
        self.waiting = 0;
        if self.store.is_due() {
            self.flush()?;
        }
        self.store.begin_batch();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), storage::Error> {
        let sealed = self.store.seal().expect("none is being flushed");
        done(self.settler.flush(&sealed)?)?;
        self.settler.free_retired();
        Ok(())
    }

    /// Moves all into the tables, and leaves a store whose log is yet to begin, and whose last
    /// command is `index`, of `term`, unless it has come further.
    pub fn end(mut self, index: u64, term: u64) -> Result<(), storage::Error> {
        self.commit()?;
        self.flush()?;
        while done(self.settler.sweep()?)? == Outcome::More {}
        let Offline {
            settings,
            store,
            settler,
            ..
        } = self;
        drop((store, settler));
        store::forget_log(&settings, |meta| {
            meta.applied_index = meta.applied_index.max(index);
            meta.term = term;
        })
    }
}

/// There is nobody to wait until there is room.
fn done(outcome: Outcome) -> Result<Outcome, storage::Error> {
    match outcome {
        Outcome::NoSpace => Err(storage::Error::NoSpace),
        done => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::auth::Hash;
    use crate::engine::alarm::{Alarm, By, Kind};
    use crate::lease::expiry::deadline_at_start;
    use crate::mvcc::request::{Compare, DeleteRange, Op, Operand, Put, Relation, Txn};
    use crate::mvcc::write_txn::NEWEST;
    use crate::proto::authpb::Permission;
    use crate::storage::check;
    use crate::storage::disk::Disk;
    use crate::storage::disk::real::RealDisk;
    use crate::storage::key_range::{End, KeyRange};
    use crate::storage::small::Bucket;
    use crate::storage::store::{Stopped, read_stopped};

    fn disks(folder: &TempDir) -> [Arc<dyn Disk>; 2] {
        ["data", "log"].map(|name| {
            let disk = RealDisk::open(&folder.path().join(name));
            Arc::new(disk.expect("a folder can be opened")) as Arc<dyn Disk>
        })
    }

    fn open(folder: &TempDir) -> Offline {
        let [data, log] = disks(folder);
        let settings = Settings {
            data,
            log,
            cache_bytes: 1 << 20,
            flush_bytes: 16 << 10,
            segment_bytes: 64 << 10,
            reserve_bytes: 0,
            quota_bytes: None,
        };
        Offline::open(settings, Timing::default()).expect("the store opens")
    }

    /// What there is at the end, which must be sound.
    fn end(offline: Offline, folder: &TempDir) -> Stopped {
        offline.end(10_000, 7).expect("there is room");
        let [data, log] = disks(folder);
        let report = check::check(&data, &log, |_, _| ()).expect("it is sound");
        assert_eq!((report.unsettled, report.strays), (0, 0));
        let stopped = read_stopped(&data, &log, 1 << 20).expect("it opens");
        assert_eq!((stopped.term, stopped.view.index), (7, 10_000));
        assert_eq!(log.list().expect("it is there"), Vec::<String>::new());
        stopped
    }

    fn put(key: &str, lease: i64) -> Request {
        Request::Command(Command::Put(Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from(vec![b'v'; 100]),
            lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }))
    }

    fn grant(id: i64, ttl_secs: i64) -> Request {
        Request::Command(Command::Grant { id, ttl_secs })
    }

    fn of(user: &str, revision: u64, request: Request) -> Logged {
        let user = user.to_owned();
        let asker = Asker { user, revision };
        Logged { asker, request }
    }

    fn take(offline: &mut Offline, request: Request) {
        let taken = offline.take(&of("", 0, request));
        taken.expect("it can be judged");
    }

    #[test]
    fn what_was_refused_is_refused_again() {
        let folder = TempDir::new().expect("a folder for the test can be made");
        let mut store = open(&folder);
        let alarm = |kind, raised| {
            let alarm = Alarm { member: 9, kind };
            Request::Command(match raised {
                true => Command::Raise(alarm, By::Client),
                false => Command::Clear(alarm),
            })
        };
        let compact = |revision| {
            let physical = false;
            Request::Command(Command::Compact { revision, physical })
        };
        take(&mut store, put("a", 5)); // no such lease
        take(&mut store, grant(5, 100));
        take(&mut store, put("a", 5)); // 2
        take(&mut store, compact(3)); // of the future
        take(&mut store, alarm(Kind::NoSpace, true));
        take(&mut store, put("b", 0));
        take(&mut store, grant(6, 100));
        take(&mut store, compact(2));
        take(&mut store, alarm(Kind::Corrupt, true));
        take(&mut store, Request::Command(Command::Revoke(5)));
        take(&mut store, alarm(Kind::Corrupt, false));
        take(&mut store, Request::Command(Command::Revoke(6))); // no such lease
        take(&mut store, alarm(Kind::NoSpace, false));
        take(&mut store, alarm(Kind::NoSpace, false));
        take(&mut store, put("c", 5)); // 3
        take(&mut store, Request::Command(Command::Revoke(5))); // 4
        take(&mut store, alarm(Kind::Corrupt, true));
        for _ in 0..3 {
            take(&mut store, put("d", 0));
        }
        let end = end(store, &folder);
        let view = &end.view;
        assert_eq!((view.revision, view.floor), (4, Some(2)));
        assert_eq!(view.small.rows(Bucket::Alarm).count(), 1);
        view.for_each_lease(|id, row| panic!("{id} {row:?}"))
            .expect("it can be read");
    }

    #[test]
    fn many_requests_go_through_many_batches_and_flushes() {
        let folder = TempDir::new().expect("a folder for the test can be made");
        let mut store = open(&folder);
        for id in 1..=3 {
            take(&mut store, grant(id, 100));
        }
        for number in 0..3000 {
            take(
                &mut store,
                put(&format!("key {}", number % 700), number % 4),
            );
        }
        let end = end(store, &folder);
        let view = &end.view;
        assert_eq!(view.revision, 3001);
        let attached = view.attached(3, NEWEST).expect("it can be read");
        assert_eq!(attached.len(), 175);
    }

    #[test]
    fn what_is_left_of_a_lease_is_kept() {
        let folder = TempDir::new().expect("a folder for the test can be made");
        let mut store = open(&folder);
        // As after an import.
        store.store.keep_served(ELSEWHERE_MILLIS);
        store.end(1, 1).expect("there is room");
        let mut store = open(&folder);
        for id in [1, 2, 3] {
            take(&mut store, grant(id, 1000));
        }
        take(&mut store, Request::Left(vec![(1, 400), (2, 300), (9, 1)]));
        take(&mut store, Request::Left(vec![(2, 0)]));
        let end = end(store, &folder);
        let view = &end.view;
        let mut left = Vec::new();
        let read = view.for_each_lease(|id, row| {
            let row = row.expect("it is in the tables");
            let now = ELSEWHERE_MILLIS;
            let deadline = deadline_at_start(&row, now, &Timing::default());
            left.push((id, (deadline - now) / 1000 - 1));
        });
        read.expect("it can be read");
        assert_eq!(left, [(1, 400), (2, 1000), (3, 1000)]);
    }

    /// `alice` may read and write keys from `a` up to `c`, and read `r`.
    fn with_users(folder: &TempDir) -> Offline {
        let mut store = open(folder);
        let add_user = |name: &str| Change::AddUser {
            name: name.to_owned(),
            hash: Some(Hash(Vec::new())),
            no_password: false,
        };
        let grant_role = |user: &str, role: &str| Change::GrantRole {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        for change in [
            add_user("root"),
            add_user("alice"),
            Change::AddRole("clerk".to_owned()),
            may(2, "a", "c"),
            may(0, "r", ""),
            grant_role("root", "root"),
            grant_role("alice", "clerk"),
            Change::Enable,
        ] {
            take(&mut store, Request::Auth(change));
        }
        store
    }

    /// The revision of users and roles then.
    const AUTH_REVISION: u64 = 8;

    fn may(perm_type: i32, key: &str, range_end: &str) -> Change {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        Change::GrantPermission {
            role: "clerk".to_owned(),
            permission: Some(Permission {
                perm_type,
                key,
                range_end,
            }),
        }
    }

    /// Keys and leases that are there, and the revision.
    fn kept(store: &mut Offline) -> (Vec<String>, Vec<i64>, u64) {
        store.commit().expect("there is room");
        let view = store.store.view();
        let mut keys = Vec::new();
        let all = KeyRange {
            start: Bytes::from_static(&[0]),
            end: End::Unbounded,
        };
        let walked = view.walk(&all, view.revision, |key, met| {
            if !met.version.tombstone {
                keys.push(String::from_utf8_lossy(key).into_owned());
            }
            true
        });
        walked.expect("it can be read");
        let leases = (1..10).filter(|id| store.leases.exists(*id)).collect();
        (keys, leases, view.revision)
    }

    #[test]
    fn what_needs_rights_is_judged_by_them() {
        let folder = TempDir::new().expect("a folder for the test can be made");
        let mut store = with_users(&folder);
        assert_eq!(auth::revision(&store.store.view().small), AUTH_REVISION);
        let now = AUTH_REVISION;
        let range =
            |from: &'static str, to: &'static str| KeyRange::from_wire(from.into(), to.into());
        let delete = |from, to, prev_kv| {
            let range = range(from, to);
            Request::Command(Command::DeleteRange(DeleteRange { range, prev_kv }))
        };
        let with_prev = |key: &str| {
            let Request::Command(Command::Put(put)) = put(key, 0) else {
                unreachable!("it is a put");
            };
            Put {
                prev_kv: true,
                ..put
            }
        };
        let compare = |from, to| Compare {
            range: range(from, to),
            relation: Relation::NotEqual,
            operand: Operand::Version(77),
        };
        let txn = |compare, success, failure| {
            let txn = Txn {
                compare,
                success,
                failure,
            };
            Request::Command(Command::Txn(txn))
        };
        let op = |key: &str| Op::Put(with_prev(key));
        let nested = |op: Op| {
            let success = vec![op];
            Op::Txn(Txn {
                success,
                ..Txn::default()
            })
        };
        let revoke = |id| Request::Command(Command::Revoke(id));
        let write_only = may(1, "w", "");
        for (user, revision, request, changes) in [
            ("root", now, put("z", 0), true),
            ("root", now - 1, put("z", 0), false),
            ("", 0, put("a", 0), false),
            ("nobody", now, put("a", 0), false),
            ("alice", now - 1, put("a", 0), false),
            ("alice", now, put("z", 0), false),
            ("alice", now, put("a", 0), true),
            ("alice", now, put("b", 0), true),
            ("alice", now, put("r", 0), false),
            ("alice", now, delete("a", "c\0", false), false),
            ("alice", now, delete("b", "c", true), true),
            // Neither is looked at once it is logged.
            ("", 0, grant(1, 100), true),
            ("", 0, grant(2, 100), true),
            ("root", now, put("y", 1), true),
            ("alice", now, put("a", 1), false),
            ("alice", now, put("a", 3), false),
            ("alice", now, put("a", 2), true),
            ("alice", now, revoke(1), false),
            ("", 0, revoke(2), false),
            // Who is root then is root, whatever has changed since.
            ("root", now - 1, revoke(1), true),
            ("alice", now, revoke(2), true),
            ("alice", now, revoke(2), false),
            ("alice", now, grant(4, 100), true),
            ("", 0, revoke(4), true),
            ("", 0, txn(vec![], vec![], vec![]), false),
            (
                "alice",
                now,
                txn(vec![compare("r", "")], vec![op("a")], vec![]),
                true,
            ),
            (
                "alice",
                now,
                txn(vec![compare("s", "")], vec![op("a")], vec![]),
                false,
            ),
            (
                "alice",
                now,
                txn(vec![compare("a", "c\0")], vec![op("a")], vec![]),
                false,
            ),
            (
                "alice",
                now,
                txn(vec![], vec![op("a")], vec![op("z")]),
                false,
            ),
            (
                "alice",
                now,
                txn(vec![], vec![nested(nested(op("z")))], vec![]),
                false,
            ),
            (
                "alice",
                now,
                txn(vec![], vec![nested(nested(op("a")))], vec![]),
                true,
            ),
            ("root", now, Request::Auth(write_only), true),
            ("alice", now, put("a", 0), false),
            ("alice", now + 1, put("w", 0), true),
            (
                "alice",
                now + 1,
                Request::Command(Command::Put(with_prev("w"))),
                false,
            ),
            ("alice", now + 1, delete("w", "", true), false),
            ("alice", now + 1, delete("w", "", false), true),
            ("alice", now + 1, Request::Auth(Change::Disable), false),
            ("root", 1, Request::Auth(Change::Disable), true),
            ("", 0, put("z", 0), true),
        ] {
            let story = format!("{user} {revision} {request:?}");
            let small = |store: &Offline| Arc::clone(&store.store.view().small);
            let before = (kept(&mut store), small(&store));
            let taken = store.take(&of(user, revision, request));
            taken.expect("it can be judged");
            let after = (kept(&mut store), small(&store));
            assert_eq!(before != after, changes, "{story}");
        }
        let end = end(store, &folder);
        assert_eq!(auth::revision(&end.view.small), now + 2);
    }

    /// A row of users or roles takes room in the log each time it changes.
    #[test]
    fn large_roles_do_not_pile_up() {
        let folder = TempDir::new().expect("a folder for the test can be made");
        let mut store = with_users(&folder);
        for number in 0..200 {
            let change = may(0, &format!("{number:0200}"), "");
            let taken = store.take(&of("root", 1, Request::Auth(change)));
            taken.expect("there is room");
            assert!(store.store.batch_bytes() < 2 * (16 << 10) + 200 * 220);
        }
        end(store, &folder);
    }
}
