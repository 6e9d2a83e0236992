//! What the engine does about leases for its callers.

use std::sync::Arc;

use super::command::{Answer, Command, Expire, Granted};
use super::{AnswerRoom, Engine, LARGE_ANSWER_BYTES, large_units};
use crate::lease::{Renewal, Standing};
use crate::mvcc::Error;
use crate::storage::view::View;

/// Bytes that an id takes in an answer, at most.
const ID_BYTES: usize = 16;

/// Memory that a key of a lease takes in an answer beside its own bytes, at most.
const KEY_BYTES: usize = 64;

/// A list above this is made on a thread for reads.
const SHORT_LIST_BYTES: usize = 64 << 10;

/// Answer to a keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptAlive {
    /// For how long the lease runs from now on, in seconds; 0 if there is none.
    pub ttl_secs: u64,
    /// The newest revision before.
    pub revision: u64,
}

/// Answer to the question how long a lease has to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeToLive {
    /// How the lease stands; `None` if it is not there.
    pub standing: Option<Standing>,
    /// Its keys, if asked for.
    pub keys: Vec<Vec<u8>>,
    /// The newest revision.
    pub revision: u64,
}

impl Engine {
    /// Grants a lease; 0 leaves the choice of its id to the writer.
    pub async fn grant(&self, id: i64, ttl_secs: i64) -> Result<Granted, Error> {
        match self.ask(Command::Grant { id, ttl_secs }, 0).await? {
            Answer::Granted(granted) => Ok(granted),
            _ => unreachable!("a grant is answered as a grant"),
        }
    }

    /// Removes a lease and its keys; answers the newest revision then.
    pub async fn revoke(&self, id: i64) -> Result<u64, Error> {
        match self.ask(Command::Revoke(id), 0).await? {
            Answer::Revoked(revision) => Ok(revision),
            _ => unreachable!("a revoke is answered as a revoke"),
        }
    }

    /// Lets a lease run anew, at no cost to the disk. One that has run out and is not removed yet
    /// is removed first: the answer says so, and comes when it is true.
    pub async fn keep_alive(&self, id: i64) -> Result<KeptAlive, Error> {
        if self.queue.room.is_closed() {
            return Err(Error::Stopped);
        }
        let revision = self.view().revision;
        let ttl_secs = match self.leases.renew(id) {
            Renewal::Renewed(ttl_secs) => ttl_secs,
            Renewal::Unknown => 0,
            Renewal::Due => {
                let expire = || self.ask(Command::Expire(Expire::One(id)), 0);
                expire().await?;
                // It goes in parts if it has very many keys.
                while self.leases.is_due(id) {
                    expire().await?;
                }
                0
            }
        };
        Ok(KeptAlive { ttl_secs, revision })
    }

    /// How long a lease has to live, and with `with_keys` what keys it has. The room is to be held
    /// until the answer is sent.
    pub async fn time_to_live(
        self: &Arc<Self>,
        id: i64,
        with_keys: bool,
    ) -> Result<(TimeToLive, AnswerRoom), Error> {
        let (mut attached, mut room) = (None, None);
        if with_keys && self.leases.look(id).is_some() {
            let (keys, held) = self.attached(id).await?;
            (attached, room) = (Some(keys), held);
        }
        // Behind the keys: of a lease that is gone meanwhile nothing is told, and that at a
        // revision at which its keys are gone too.
        let standing = self.leases.look(id);
        let attached = attached.filter(|_| standing.is_some());
        let Attached { keys, revision } = attached.unwrap_or_else(|| Attached {
            keys: Vec::new(),
            revision: self.view().revision,
        });
        let answer = TimeToLive {
            standing,
            keys,
            revision,
        };
        Ok((answer, room))
    }

    /// The keys of a lease, and room for them if they are many.
    async fn attached(self: &Arc<Self>, id: i64) -> Result<(Attached, AnswerRoom), Error> {
        let read = move |view: &_, _: &_| attached(view, id);
        let attached = self.read_apart(read).await?;
        let bytes = attached.bytes();
        if bytes <= LARGE_ANSWER_BYTES {
            return Ok((attached, None));
        }
        let units = large_units(bytes);
        if let Ok(room) = Arc::clone(&self.large_answers).try_acquire_many_owned(units) {
            return Ok((attached, Some(Arc::new(room))));
        }
        // Nothing is held while others send their answers.
        drop(attached);
        let room = self.large_room(units).await?;
        Ok((self.read_apart(read).await?, Some(room)))
    }

    /// All ids, soonest to end first, and the newest revision. The room is to be held until the
    /// answer is sent.
    pub async fn leases(self: &Arc<Self>) -> Result<(Vec<i64>, u64, AnswerRoom), Error> {
        let bytes = self.leases.len() * ID_BYTES;
        let room = if bytes > LARGE_ANSWER_BYTES {
            Some(self.large_room(large_units(bytes)).await?)
        } else {
            None
        };
        let ids = if bytes > SHORT_LIST_BYTES {
            let leases = Arc::clone(&self.leases);
            self.read_apart(move |_, _| Ok(leases.in_order())).await?
        } else {
            self.leases.in_order()
        };
        Ok((ids, self.view().revision, room))
    }

    /// For whoever moves the clock by hand: removes all that has run out by now.
    pub async fn expire_due(&self) -> Result<(), Error> {
        let is_due = || {
            let first = self.leases.first_deadline();
            first.is_some_and(|first| first <= self.leases.now_millis())
        };
        while is_due() {
            self.ask(Command::Expire(Expire::Next), 0).await?;
        }
        Ok(())
    }
}

/// Keys of a lease, and the revision that they were read at.
#[derive(Debug)]
struct Attached {
    keys: Vec<Vec<u8>>,
    revision: u64,
}

impl Attached {
    fn bytes(&self) -> usize {
        self.keys.iter().map(|key| key.len() + KEY_BYTES).sum()
    }
}

fn attached(view: &View, id: i64) -> Result<Attached, Error> {
    Ok(Attached {
        keys: view.attached(id, view.revision)?,
        revision: view.revision,
    })
}
