//! Alarms: what is wrong with a member, and what is refused until that is cleared.
//!
//! An alarm is a row of etcd's bucket `alarm`, whose key is etcd's `AlarmMember` and whose value is
//! empty. One that the server has raised by itself has a value of ours: the cost of the request
//! that was refused, so that it is known when that would be taken again (see [`super::quota`]).

use std::fmt;

use tracing::{info, warn};

use super::command::Command;
use super::{Answer, Engine};
use crate::mvcc::Error;
use crate::storage::small::{Bucket, Small};
use crate::storage::store::Store;
use crate::storage::varint;

/// Most alarms that clients can raise: each is a row in memory, and etcd has no bound.
pub const ALARMS_MAX: usize = 1000;

/// Fields 1 and 2 of etcd's `AlarmMember`, numbers.
const MEMBER: u8 = 1 << 3;
const KIND: u8 = 2 << 3;

/// What is wrong. The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// There is no space: nothing is added.
    NoSpace = 1,
    /// The data are not what they should be: nothing is changed.
    Corrupt = 2,
}

/// An alarm, of a member that there need not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member's id.
    pub member: u64,
    /// What is wrong with it.
    pub kind: Kind,
}

/// Who raises an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A client; and only a client clears it.
    Client,
    /// The server, which has refused a request of this cost.
    Server {
        /// In bytes.
        cost: u64,
    },
}

impl Alarm {
    /// As etcd writes it: a number that is 0 is left out.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(13);
        if self.member != 0 {
            key.push(MEMBER);
            varint::put(&mut key, self.member);
        }
        key.extend([KIND, self.kind as u8]);
        key
    }

    /// `None` is what etcd would not write, or of a kind that we do not know.
    fn of_key(key: &[u8]) -> Option<Alarm> {
        let (member, rest) = match key.strip_prefix(&[MEMBER]) {
            Some(mut rest) => (varint::take(&mut rest).filter(|id| *id != 0)?, rest),
            None => (0, key),
        };
        let kind = match rest {
            [KIND, kind] if *kind == Kind::NoSpace as u8 => Kind::NoSpace,
            [KIND, kind] if *kind == Kind::Corrupt as u8 => Kind::Corrupt,
            _ => return None,
        };
        Some(Alarm { member, kind })
    }
}

/// For logs.
impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::NoSpace => "NOSPACE",
            Kind::Corrupt => "CORRUPT",
        };
        write!(f, "{kind} of member {:x}", self.member)
    }
}

/// All alarms that are raised.
pub fn raised(small: &Small) -> impl Iterator<Item = Alarm> {
    small
        .rows(Bucket::Alarm)
        .filter_map(|(key, _)| Alarm::of_key(key))
}

/// Who raised `alarm`, if it is raised.
pub fn raised_by(small: &Small, alarm: Alarm) -> Option<By> {
    let mut value = small.get(Bucket::Alarm, &alarm.key())?;
    Some(match varint::take(&mut value) {
        Some(cost) => By::Server { cost },
        None => By::Client,
    })
}

/// Refuses a command for the sake of an alarm, whoever it is of: as etcd, the worse one's words.
pub fn check(small: &Small, command: &Command) -> Result<(), Error> {
    match raised(small).map(|alarm| alarm.kind).max() {
        Some(Kind::Corrupt) if command.is_change() => Err(Error::Corrupt),
        Some(Kind::NoSpace) if command.adds() && command.is_change() => Err(Error::NoSpace),
        _ => Ok(()),
    }
}

/// Raises an alarm, as part of the batch; whether that was news. One that a client raises as well
/// is the client's from then on.
pub fn raise(store: &mut Store, alarm: Alarm, by: By) -> Result<bool, Error> {
    let small = &store.view().small;
    let before = raised_by(small, alarm);
    match (before, by) {
        (Some(By::Client), _) | (Some(By::Server { .. }), By::Server { .. }) => return Ok(false),
        (None, By::Client) if raised(small).count() >= ALARMS_MAX => {
            return Err(Error::TooManyAlarms);
        }
        _ => {}
    }
    let mut value = Vec::new();
    if let By::Server { cost } = by {
        varint::put(&mut value, cost);
    }
    store.set_small(Bucket::Alarm, &alarm.key(), Some(&value));
    store.count_command();
    Ok(before.is_none())
}

/// Clears an alarm, as part of the batch; whether it was there.
pub fn clear(store: &mut Store, alarm: Alarm) -> bool {
    let there = raised_by(&store.view().small, alarm).is_some();
    if there {
        store.set_small(Bucket::Alarm, &alarm.key(), None);
        store.count_command();
    }
    there
}

impl Engine {
    /// Raises an alarm; answers the newest revision.
    pub async fn raise(&self, alarm: Alarm) -> Result<u64, Error> {
        match self.ask(Command::Raise(alarm, By::Client), 0).await? {
            Answer::Raised { is_new, revision } => {
                if is_new {
                    warn!(%alarm, "alarm raised");
                }
                Ok(revision)
            }
            _ => unreachable!("a raise is answered as a raise"),
        }
    }

    /// Clears an alarm; whether it was there, and the newest revision.
    pub async fn clear(&self, alarm: Alarm) -> Result<(bool, u64), Error> {
        match self.ask(Command::Clear(alarm), 0).await? {
            Answer::Cleared {
                was_there,
                revision,
            } => {
                if was_there {
                    info!(%alarm, "alarm disarmed");
                }
                Ok((was_there, revision))
            }
            _ => unreachable!("a clear is answered as a clear"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_as_etcd_writes_it() {
        for (member, kind, key) in [
            (0, Kind::NoSpace, &[0x10, 1][..]),
            (7, Kind::Corrupt, &[8, 7, 0x10, 2]),
            (300, Kind::NoSpace, &[8, 0xac, 2, 0x10, 1]),
        ] {
            let alarm = Alarm { member, kind };
            assert_eq!(alarm.key(), key);
            assert_eq!(Alarm::of_key(key), Some(alarm));
        }
        let alarm = Alarm {
            member: u64::MAX,
            kind: Kind::Corrupt,
        };
        assert_eq!(Alarm::of_key(&alarm.key()), Some(alarm));
        for key in [
            &[][..],
            &[8],
            &[8, 7],
            &[8, 0, 0x10, 1],
            &[0x10, 0],
            &[0x10, 3],
            &[0x10, 1, 0],
            &[0x10, 1, 8, 7],
            &[8, 0x87, 0, 0x10, 1],
        ] {
            assert_eq!(Alarm::of_key(key), None, "{key:?}");
        }
    }
}
