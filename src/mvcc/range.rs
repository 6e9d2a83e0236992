//! Reading keys at a revision.
//!
//! ```text
//! select   walk the index, filter, sort, cut: which versions, and how many bytes they are
//! fetch    read the records of what is left
//! ```
//! The two are apart so that a large answer can wait for memory between them.
//! The steps and their order are etcd's (`more` and `count` follow from them): scripts `range_*`.

use bytes::Bytes;

use super::Error;
use super::counts::Counts;
use super::request::{Order, Range, Ranged, Target};
use crate::storage::record::KeyValue;
use crate::storage::view::{Met, View};

/// Pairs that are fetched in the order of the answer; of more, the records' pages would be met
/// again and again.
const IN_KEY_ORDER_MAX: usize = 256;

/// How far a selection may go.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Keys it may look at; past them it answers [`Selected::TooLong`].
    pub keys_max: usize,
    /// Whether the answer needs the count of the whole range.
    pub count: bool,
}

impl Effort {
    /// Whatever it takes.
    pub const ALL: Effort = Effort {
        keys_max: usize::MAX,
        count: true,
    };
}

/// What a selection came to.
#[derive(Debug)]
pub enum Selected {
    /// All is chosen.
    Done(Selection),
    /// More keys than the effort allowed.
    TooLong,
}

/// Chosen versions, in the order of the answer.
#[derive(Debug)]
pub struct Selection {
    picked: Vec<Picked>,
    /// Whether the limit cut any off.
    pub more: bool,
    /// How many keys the range has; those looked at, if the effort left counting out.
    pub count: u64,
    keys_only: Option<KeysOnly>,
}

#[derive(Debug)]
struct Picked {
    key: Bytes,
    met: Met,
}

/// Without its values a pair lacks its lease too, unless it was read whole to be sorted (as
/// etcd 3.7, which answers from its index: script `range_keys_only`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeysOnly {
    WithLease,
    WithoutLease,
}

/// At which revision a read is that asks for `revision`, where `newest` is the newest.
pub fn resolve(view: &View, revision: i64, newest: u64) -> Result<u64, Error> {
    let Ok(asked @ 1..) = u64::try_from(revision) else {
        return Ok(newest);
    };
    if asked > newest {
        return Err(Error::FutureRevision);
    }
    if Some(asked) < view.floor {
        return Err(Error::Compacted);
    }
    Ok(asked)
}

/// Chooses what `request` asks for as of revision `at`.
pub fn select(
    view: &View,
    request: &Range,
    at: u64,
    effort: Effort,
    counts: &Counts,
) -> Result<Selected, Error> {
    // Within a txn the newest state is read, at a revision still to come: nothing to remember.
    let settled_time = at <= view.revision;
    let known = if settled_time && !request.range.is_single() {
        counts.find(&request.range, at)
    } else {
        None
    };
    if request.count_only {
        let (mut count, mut patience) = (0, effort.keys_max);
        if known.is_none() {
            view.walk(&request.range, at, |_, met| {
                count += u64::from(!met.version.tombstone);
                patience -= 1;
                patience > 0
            })?;
        }
        if patience == 0 {
            return Ok(Selected::TooLong);
        }
        return Ok(Selected::Done(Selection {
            picked: Vec::new(),
            more: false,
            count: known.unwrap_or(count),
            keys_only: None,
        }));
    }

    let key_order = request.order == Order::None
        || (request.target == Target::Key && request.order == Order::Ascend);
    let plain = key_order && !request.filters.any();
    // One more than the limit, to know whether there is more.
    let keep = if plain && request.limit > 0 {
        request.limit.saturating_add(1)
    } else {
        usize::MAX
    };
    let count_on = effort.count && known.is_none();
    let (mut picked, mut count, mut patience) = (Vec::new(), 0, effort.keys_max);
    view.walk(&request.range, at, |key, met| {
        patience -= 1;
        if met.version.tombstone {
            return patience > 0;
        }
        count += 1;
        let version = &met.version;
        let passes = request.filters.pass(version.create, version.revision.main);
        if passes && picked.len() < keep {
            picked.push(Picked {
                key: Bytes::copy_from_slice(key),
                met,
            });
        }
        patience > 0 && (count_on || picked.len() < keep)
    })?;
    if patience == 0 {
        return Ok(Selected::TooLong);
    }
    let count = known.unwrap_or(count);

    sort(view, request, &mut picked)?;
    let more = request.limit > 0 && picked.len() > request.limit;
    if more {
        picked.truncate(request.limit);
        if plain
            && request.target == Target::Key
            && settled_time
            && effort.count
            && let Some(last) = picked.last()
        {
            let rest = count - picked.len() as u64;
            counts.remember(&request.range, &last.key, at, rest);
        }
    }
    let keys_only = request.keys_only.then_some(match request.target {
        Target::Value => KeysOnly::WithLease,
        _ => KeysOnly::WithoutLease,
    });
    Ok(Selected::Done(Selection {
        picked,
        more,
        count,
        keys_only,
    }))
}

/// Reads what `request` asks for, all of it.
pub fn read(
    view: &View,
    request: &Range,
    at: u64,
    newest: u64,
    counts: &Counts,
) -> Result<Ranged, Error> {
    match select(view, request, at, Effort::ALL, counts)? {
        Selected::Done(selection) => selection.fetch(view, newest),
        Selected::TooLong => unreachable!("no range is longer than all effort"),
    }
}

/// Sorts stably, so that ties stay in key order, in both directions.
fn sort(view: &View, request: &Range, picked: &mut [Picked]) -> Result<(), Error> {
    let descending = request.order == Order::Descend;
    fn by<T, K: Ord>(items: &mut [T], descending: bool, key: impl Fn(&T) -> K) {
        items.sort_by(|a, b| {
            let ascending = key(a).cmp(&key(b));
            if descending {
                ascending.reverse()
            } else {
                ascending
            }
        });
    }
    match request.target {
        Target::Key if descending => picked.reverse(),
        Target::Key => {}
        Target::Version => by(picked, descending, |p| p.met.version.version),
        Target::Create => by(picked, descending, |p| p.met.version.create),
        Target::Mod => by(picked, descending, |p| p.met.version.revision.main),
        Target::Value => {
            let mut keyed = Vec::with_capacity(picked.len());
            for pick in picked.iter() {
                let value = KeyValue::of(&view.record(&pick.met)?)?.value;
                keyed.push((value, pick.key.clone(), pick.met.clone()));
            }
            by(&mut keyed, descending, |(value, ..)| value.clone());
            for (pick, (_, key, met)) in picked.iter_mut().zip(keyed) {
                *pick = Picked { key, met };
            }
        }
    }
    Ok(())
}

impl Selection {
    /// Bytes of keys and values that the answer will hold.
    pub fn bytes(&self) -> usize {
        let value_len = |pick: &Picked| match self.keys_only {
            Some(_) => 0,
            None => pick.met.version.value_len as usize,
        };
        self.picked
            .iter()
            .map(|pick| pick.key.len() + value_len(pick))
            .sum()
    }

    /// Reads the chosen versions; `newest` is the revision that the answer names.
    pub fn fetch(&self, view: &View, newest: u64) -> Result<Ranged, Error> {
        let kvs = match self.keys_only {
            Some(keys_only) => {
                let picked = self.picked.iter();
                picked.map(|pick| pick.without_value(keys_only)).collect()
            }
            None if self.picked.len() > IN_KEY_ORDER_MAX => self.fetch_in_order_of_time(view)?,
            None => {
                let mut kvs = Vec::with_capacity(self.picked.len());
                for pick in &self.picked {
                    kvs.push(KeyValue::of(&view.record(&pick.met)?)?);
                }
                kvs
            }
        };
        Ok(Ranged {
            revision: newest,
            kvs,
            more: self.more,
            count: self.count,
        })
    }

    /// Records lie in order of time: so each of their pages is met once.
    fn fetch_in_order_of_time(&self, view: &View) -> Result<Vec<KeyValue>, Error> {
        let mut order: Vec<usize> = (0..self.picked.len()).collect();
        order.sort_unstable_by_key(|place| self.picked[*place].met.version.revision);
        let mut kvs = vec![KeyValue::default(); self.picked.len()];
        for place in order {
            kvs[place] = KeyValue::of(&view.record(&self.picked[place].met)?)?;
        }
        Ok(kvs)
    }
}

impl Picked {
    fn without_value(&self, keys_only: KeysOnly) -> KeyValue {
        let version = &self.met.version;
        KeyValue {
            key: self.key.clone(),
            create: version.create,
            modified: version.revision.main,
            version: version.version,
            value: Bytes::new(),
            lease: match keys_only {
                KeysOnly::WithLease => version.lease,
                KeysOnly::WithoutLease => 0,
            },
        }
    }
}
