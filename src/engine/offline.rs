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
use crate::clock::Clock;
use crate::lease::expiry::{ELSEWHERE_MILLIS, row_with_left};
use crate::lease::pending::Pending;
use crate::lease::{Leases, Timing};
use crate::mvcc;
use crate::mvcc::write_txn::NEWEST;
use crate::snapshot::rows;
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

/// Who asked, and when that was found to be true.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asker {
    /// The user; empty for nobody.
    pub user: String,
    /// The revision of users and roles then; 0 for nobody.
    pub revision: u64,
}

/// What was asked for.
#[derive(Debug)]
pub enum Request {
    /// What clients of ours can ask for as well.
    Command(Command),
    /// That so many seconds are left of leases; 0 is all of their TTL.
    Left(Vec<(i64, u64)>),
    /// A change of users or roles, or of whether authentication is on.
    Auth,
    /// What changes nothing that is kept here.
    Nothing,
}

/// Why a request cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It changes users or roles.
    #[error("they change users or roles")]
    ChangesAuth,
    /// Whether it was refused depends on rights.
    #[error("whether they were refused depends on users and roles")]
    NeedsRights,
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
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

    /// Judges a request behind all before it.
    pub fn take(&mut self, logged: &Logged) -> Result<(), Error> {
        match &logged.request {
            Request::Command(command) => {
                if self.is_permitted(&logged.asker, command)? {
                    self.judge(command)?;
                }
            }
            Request::Left(left) => {
                // So that leases granted just now are known.
                self.commit()?;
                for (id, left_secs) in left {
                    self.keep_left(*id, *left_secs);
                }
            }
            Request::Auth => return Err(Error::ChangesAuth),
            Request::Nothing => {}
        }
        self.waiting += 1;
        if self.waiting >= BATCH_MAX || self.store.is_due() {
            self.commit()?;
        }
        Ok(())
    }

    fn judge(&mut self, command: &Command) -> Result<(), Error> {
        if self.store.space().is_full() {
            return Err(storage::Error::NoSpace.into());
        }
        // When it was asked for nobody knows any more.
        match judge(&mut self.store, &mut self.leases, command, 0) {
            Err(mvcc::Error::Storage(error)) => Err(error.into()),
            // It was refused then as well.
            _ => Ok(()),
        }
    }

    /// Whether rights let it pass, with authentication on: as etcd, whose grants and compactions are
    /// not looked at once they are logged.
    fn is_permitted(&self, asker: &Asker, command: &Command) -> Result<bool, Error> {
        let view = self.store.view();
        if !rows::auth_is_on(&view.small) {
            return Ok(true);
        }
        let needs_rights = match command {
            Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) => true,
            // The right to write each of its keys.
            Command::Revoke(id) => !view.attached(*id, NEWEST)?.is_empty(),
            _ => false,
        };
        if !needs_rights {
            return Ok(true);
        }
        if asker.revision < rows::auth_revision(&view.small) {
            return Ok(false);
        }
        match rows::is_root(&view.small, &asker.user) {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => Err(Error::NeedsRights),
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
    use prost::Message;
    use tempfile::TempDir;

    use super::*;
    use crate::engine::alarm::{Alarm, By, Kind};
    use crate::lease::expiry::deadline_at_start;
    use crate::mvcc::request::Put;
    use crate::proto::authpb::User;
    use crate::storage::check;
    use crate::storage::disk::Disk;
    use crate::storage::disk::real::RealDisk;
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

    #[test]
    fn rights_are_judged_as_far_as_that_is_certain() {
        let folder = TempDir::new().expect("a folder for the test can be made");
        let mut store = open(&folder);
        take(&mut store, grant(1, 100));
        take(&mut store, put("a", 1)); // 2
        for (name, roles) in [("root", vec!["root".to_owned()]), ("alice", vec![])] {
            let user = User {
                name: name.into(),
                roles,
                ..Default::default()
            };
            let row = user.encode_to_vec();
            let small = &mut store.store;
            small.set_small(Bucket::AuthUsers, name.as_bytes(), Some(&row));
            small.set_small(Bucket::Auth, b"authEnabled", Some(&[1]));
            small.set_small(Bucket::Auth, b"authRevision", Some(&4u64.to_be_bytes()));
        }
        let revoke = |id| Request::Command(Command::Revoke(id));
        for (user, revision, request, judged) in [
            ("root", 4, put("b", 0), true), // 3
            ("root", 3, put("b", 0), true),
            ("", 0, put("b", 0), true),
            ("bob", 4, put("b", 0), true),
            ("alice", 3, put("b", 0), true),
            ("alice", 4, put("b", 0), false),
            ("alice", 4, revoke(1), false),
            // Nobody's right is asked for.
            ("", 0, grant(2, 100), true),
            ("", 0, revoke(2), true),
            ("", 0, Request::Nothing, true),
            ("root", 4, Request::Auth, false),
        ] {
            let story = format!("{user} {revision} {request:?}");
            let taken = store.take(&of(user, revision, request));
            assert_eq!(taken.is_ok(), judged, "{story}");
        }
        let end = end(store, &folder);
        let view = &end.view;
        assert_eq!(view.revision, 3);
    }
}
