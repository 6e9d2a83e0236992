//! Whether a whole batch lies behind one that is not: the question that tells damage from a tear.
//!
//! A batch may lie at any place behind the bad one, whose length cannot be trusted. To compute a
//! CRC at each place would take days for a large tail of unlucky, or hostile, bytes. So only those
//! places count whose number could come next, and the CRC of what lies between two places is had
//! from the CRCs of all that lies before each of them, in a few steps whatever its length.

use super::{ALIGN, FRAME_BYTES, Frame};

/// The polynomial of CRC-32C, its bits in the order of the bytes.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// How far apart the places are whose CRCs are kept.
const STEP_BYTES: usize = 64;

/// Finds a whole batch in `tail`, at whose front a bad one lies. `last` is the number of the batch
/// before that one, if it is known; without, it is not far above `applied`.
pub fn find(tail: &[u8], seed: u32, last: Option<u64>, applied: u64) -> Option<usize> {
    let least = last.map_or(1, |last| last.saturating_add(2));
    let next = last.unwrap_or(applied).saturating_add(1);
    let mut before = None;
    (ALIGN..tail.len()).step_by(ALIGN).find(|at| {
        let Some(frame) = Frame::decode(&tail[*at..], seed) else {
            return false;
        };
        let start = at + FRAME_BYTES;
        let end = start + frame.rows_len;
        // Those in between take so many bytes at least.
        let most = next.saturating_add((at / FRAME_BYTES) as u64);
        if !(least..=most).contains(&frame.number) || end > tail.len() {
            return false;
        }
        let before: &mut Before = before.get_or_insert_with(|| Before::new(tail));
        // A CRC runs over `a` and then `b` as shift(crc(a), length of b) ^ crc(b).
        let shifted = before.shift(frame.crc_before_rows ^ before.crc(start), frame.rows_len);
        shifted ^ before.crc(end) == frame.crc
    })
}

/// The CRCs of all that lies before places of a tail.
struct Before<'a> {
    tail: &'a [u8],
    /// Of the bytes before every [`STEP_BYTES`]-th.
    crcs: Vec<u32>,
    /// What a CRC is multiplied by when 2^n bytes follow.
    powers: [u32; 32],
}

impl<'a> Before<'a> {
    fn new(tail: &'a [u8]) -> Before<'a> {
        let mut crcs = vec![0];
        for step in tail.chunks_exact(STEP_BYTES) {
            crcs.push(crc32c::crc32c_append(crcs[crcs.len() - 1], step));
        }
        // One byte is x^8.
        let mut powers = [1 << 23; 32];
        for n in 1..powers.len() {
            powers[n] = multiply(powers[n - 1], powers[n - 1]);
        }
        Before { tail, crcs, powers }
    }

    fn crc(&self, place: usize) -> u32 {
        let step = place / STEP_BYTES;
        crc32c::crc32c_append(self.crcs[step], &self.tail[step * STEP_BYTES..place])
    }

    fn shift(&self, crc: u32, length: usize) -> u32 {
        let set = (0..self.powers.len()).filter(|n| length >> n & 1 == 1);
        set.fold(crc, |crc, n| multiply(self.powers[n], crc))
    }
}

/// The product of two polynomials over GF(2), modulo that of the CRC.
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for n in (0..32).rev() {
        if a >> n & 1 == 1 {
            product ^= b;
        }
        b = (b >> 1) ^ (POLYNOMIAL * (b & 1));
    }
    product
}
