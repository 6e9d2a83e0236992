//! Protobuf's variable-length integers, for records and rows.
//!
//! Reading accepts the shortest form only, so that equal values have equal bytes.

use bytes::BufMut;

/// Bytes that `number` takes: 1 to 10.
pub fn len(number: u64) -> usize {
    let bits = 64 - (number | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Writes `number`.
pub fn put(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// Writes `bytes` behind their length.
pub fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Takes a number off the front; `None` if none is there, or it is not in its shortest form.
pub fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (place, byte) in rest.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if place == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * place);
        if byte & 0x80 == 0 {
            if *byte == 0 && place > 0 {
                return None;
            }
            *rest = &rest[place + 1..];
            return Some(number);
        }
    }
    None
}

/// Takes bytes and the length before them off the front.
pub fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut tail = *rest;
    let length = usize::try_from(take(&mut tail)?).ok()?;
    let (bytes, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_come_back_in_the_length_foretold() {
        for number in [0, 1, 127, 128, 16383, 16384, u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            assert_eq!(bytes.len(), len(number));
            let mut rest = &bytes[..];
            assert_eq!(take(&mut rest), Some(number));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn long_forms_and_cut_ones_are_refused() {
        for bytes in [&b"\x80\x00"[..], b"\x80", b"", &[0xff; 11]] {
            assert_eq!(take(&mut &bytes[..]), None, "{bytes:?}");
        }
        assert_eq!(take_bytes(&mut &b"\x05abc"[..]), None);
    }
}
