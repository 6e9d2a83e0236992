//! Revisions: the store's time, counted in txns.

use std::fmt;

/// A moment in history: which txn (`main`), and which change within it (`sub`).
///
/// The first txn of a store has `main` 2: revision 1 is the empty store, as in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The txn's place in history.
    pub main: u64,
    /// The change's place in its txn, from 0.
    pub sub: u32,
}

impl Revision {
    /// The last revision that `main` could hold: what a read at `main` seeks from.
    pub const fn last_of(main: u64) -> Revision {
        Revision {
            main,
            sub: u32::MAX,
        }
    }

    /// The last revision that can be older than this one; `None` if there is none.
    pub fn before(self) -> Option<Revision> {
        match self.sub.checked_sub(1) {
            Some(sub) => Some(Revision { sub, ..self }),
            None => self.main.checked_sub(1).map(Revision::last_of),
        }
    }

    /// The first revision that can be newer than this one; `None` if there is none.
    pub fn next(self) -> Option<Revision> {
        match self.sub.checked_add(1) {
            Some(sub) => Some(Revision { sub, ..self }),
            None => Some(Revision {
                main: self.main.checked_add(1)?,
                sub: 0,
            }),
        }
    }

    /// Big-endian with every bit turned, so that the order of bytes is newest first.
    pub fn encode_descending(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&(!self.main).to_be_bytes());
        bytes[8..].copy_from_slice(&(!self.sub).to_be_bytes());
        bytes
    }

    /// The revision that [`Revision::encode_descending`] wrote.
    pub fn decode_descending(bytes: &[u8; 12]) -> Revision {
        let (main, sub) = bytes.split_at(8);
        Revision {
            main: !u64::from_be_bytes(main.try_into().expect("8 of 12 bytes")),
            sub: !u32::from_be_bytes(sub.try_into().expect("4 of 12 bytes")),
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_descending_bytes_is_newest_first() {
        let ascending = [(0, 0), (1, 0), (1, 1), (1, u32::MAX), (2, 0), (u64::MAX, 7)]
            .map(|(main, sub)| Revision { main, sub });
        for pair in ascending.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].encode_descending() > pair[1].encode_descending());
        }
        for revision in ascending {
            let bytes = revision.encode_descending();
            assert_eq!(Revision::decode_descending(&bytes), revision);
        }
    }
}
