//! Which keys a request means.

use std::ops::Bound;

use bytes::Bytes;

/// Keys in byte order: one key, or all from a key up to a bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key.
    pub start: Bytes,
    /// Where the range ends.
    pub end: End,
}

/// The bounds of a key range, as ordered maps take them.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Where a key range ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum End {
    /// With its first key: a single key.
    Single,
    /// Before this key. At or below the start, the range is empty.
    Before(Bytes),
    /// Nowhere.
    Unbounded,
}

impl KeyRange {
    /// Just `key`.
    pub fn single(key: Bytes) -> KeyRange {
        KeyRange {
            start: key,
            end: End::Single,
        }
    }

    /// Whether it can hold one key only.
    pub fn is_single(&self) -> bool {
        self.end == End::Single
    }

    /// Bytes of both of its ends.
    pub fn bytes(&self) -> usize {
        let end = match &self.end {
            End::Before(end) => end.len(),
            End::Single | End::Unbounded => 0,
        };
        self.start.len() + end
    }

    /// As the wire says it: no `range_end` is one key, a single zero byte is no bound.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match &range_end[..] {
            [] => End::Single,
            [0] => End::Unbounded,
            _ => End::Before(range_end),
        };
        KeyRange { start: key, end }
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => key == self.start,
            End::Before(end) => key >= &self.start[..] && key < &end[..],
            End::Unbounded => key >= &self.start[..],
        }
    }

    /// The bounds for an ordered map; `None` for an empty range, which such maps refuse.
    pub fn bounds(&self) -> Option<Bounds<'_>> {
        let start = &self.start[..];
        match &self.end {
            End::Single => Some((Bound::Included(start), Bound::Included(start))),
            End::Before(end) if start >= &end[..] => None,
            End::Before(end) => Some((Bound::Included(start), Bound::Excluded(end))),
            End::Unbounded => Some((Bound::Included(start), Bound::Unbounded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange::from_wire(Bytes::from_static(key), Bytes::from_static(end))
    }

    #[test]
    fn the_wire_s_forms() {
        assert_eq!(range(b"a", b"").end, End::Single);
        assert_eq!(range(b"a", b"\0").end, End::Unbounded);
        assert!(
            matches!(range(b"a", b"\0\0").end, End::Before(_)),
            "two zero bytes are an ordinary bound"
        );
        assert!(range(b"b", b"a").bounds().is_none());
        assert!(range(b"a", b"a").bounds().is_none());
    }

    #[test]
    fn containing_agrees_with_the_bounds() {
        use std::ops::RangeBounds;
        let keys: [&[u8]; 6] = [b"\0", b"a", b"a\0", b"aa", b"b", b"\xff"];
        for start in [&b"\0"[..], b"a", b"b"] {
            for end in [&b""[..], b"\0", b"\0\0", b"aa", b"b"] {
                let range = range(start, end);
                for key in keys {
                    let bounded = range
                        .bounds()
                        .is_some_and(|bounds| RangeBounds::<[u8]>::contains(&bounds, key));
                    assert_eq!(range.contains(key), bounded, "{range:?} {key:?}");
                }
            }
        }
    }
}
