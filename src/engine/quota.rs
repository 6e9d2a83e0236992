//! The quota: how much there may be, and the alarm when a request would pass it.
//!
//! It is held against the bytes of rows that are really in use, before a request is queued. The
//! first request that would pass it raises the alarm of our own member, which is on disk before the
//! refusal is answered; from then on the writer refuses what adds data (see [`super::alarm`]). The
//! alarm is cleared by a client, or by the writer itself once the request that was refused would be
//! taken.

use tracing::warn;

use super::alarm::{self, Alarm, By, Kind};
use super::command::Command;
use super::{Answer, Engine};
use crate::mvcc::Error;
use crate::storage::store::Store;
use crate::storage::view::View;

/// What an empty store has as its size: that of an empty etcd, five pages.
pub const EMPTY_BYTES: u64 = 20_480;

/// Bytes that a database of ours takes when it is empty.
const EMPTY_FILE_BYTES: u64 = 72 << 10;

/// Bytes of all rows that are really in use, and those of an empty store.
pub fn used_bytes(view: &View) -> u64 {
    EMPTY_BYTES + view.data_bytes()
}

/// What the database takes on the disk, as an etcd would that takes as much beyond an empty one; what
/// is in use at least, since some of that may be in the log alone.
pub fn file_bytes(view: &View) -> u64 {
    let beyond_empty = view.settled().file_bytes.saturating_sub(EMPTY_FILE_BYTES);
    used_bytes(view).max(EMPTY_BYTES + beyond_empty)
}

/// Whether what costs so many bytes may be added. What costs nothing always may.
fn admits(view: &View, quota_bytes: Option<u64>, cost: u64) -> bool {
    match quota_bytes {
        Some(quota) if cost > 0 => used_bytes(view).saturating_add(cost) < quota,
        _ => true,
    }
}

/// Whether nothing may be added, whatever it costs. A request is held against the quota before it waits
/// for the writer; this bounds what all that wait there at once can pass it by, to one of them.
pub fn is_used_up(store: &Store) -> bool {
    !admits(store.view(), store.quota_bytes(), 1)
}

fn own_alarm(member: u64) -> Alarm {
    Alarm {
        member,
        kind: Kind::NoSpace,
    }
}

/// The cost of the request for whose sake the server has raised its alarm, as long as it is raised.
fn refused_cost(store: &Store) -> Option<u64> {
    let alarm = own_alarm(store.identity().member_id);
    match alarm::raised_by(&store.view().small, alarm)? {
        By::Server { cost } => Some(cost),
        By::Client => None,
    }
}

/// Whether the alarm that the server has raised can be cleared.
pub fn is_over(store: &Store) -> bool {
    refused_cost(store).is_some_and(|cost| admits(store.view(), store.quota_bytes(), cost))
}

/// Whether room is wanted that compaction has made and the sweep cannot have yet: it goes no further
/// than what is flushed.
pub fn wants_a_flush(store: &Store) -> bool {
    let view = store.view();
    view.floor > view.settled().meta.floor && refused_cost(store).is_some()
}

/// Clears the alarm that the server has raised, as part of the batch, if that can be; whether it was.
pub fn clear(store: &mut Store) -> bool {
    is_over(store) && alarm::clear(store, own_alarm(store.identity().member_id))
}

impl Engine {
    /// Refuses what would pass the quota, and raises the alarm then.
    pub async fn check_quota(&self, cost: u64) -> Result<(), Error> {
        let view = self.view();
        if admits(&view, self.quota_bytes, cost) {
            return Ok(());
        }
        drop(view);
        self.raise_own(cost).await;
        // As etcd: whatever has become of the alarm.
        Err(Error::NoSpace)
    }

    /// One at a time, so that of thousands that are refused at once one asks the writer.
    async fn raise_own(&self, cost: u64) {
        let alarm = own_alarm(self.identity.member_id);
        let is_raised = || alarm::raised_by(&self.view().small, alarm).is_some();
        if is_raised() {
            return;
        }
        let _one = self.raising.lock().await;
        if is_raised() {
            return;
        }
        let raise = Command::Raise(alarm, By::Server { cost });
        if let Ok(Answer::Raised { is_new: true, .. }) = self.ask(raise, 0).await {
            let (used_bytes, quota_bytes) = (used_bytes(&self.view()), self.quota_bytes);
            warn!(
                used_bytes,
                quota_bytes, cost, "the quota is exceeded: raised the alarm NOSPACE"
            );
        }
    }
}
