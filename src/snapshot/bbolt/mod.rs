//! bbolt's file: what etcd keeps its state in.
//!
//! ```text
//! page 0, 1   meta: where the root is, how many pages there are; the newer one counts
//! page 2 …    branch and leaf pages of the buckets, in any order
//! ```
//! A bucket is a B+tree of keys and values; the root is a bucket of buckets. All numbers are
//! little-endian. A small bucket lies within its row of the root ("inline"). Pages that are
//! larger than one take the pages behind them.
//!
//! [`writer`] makes such a file front to back; [`reader`] reads one that nobody vouches for.

pub mod reader;
pub mod writer;

#[cfg(test)]
mod tests;

/// How every page begins: id, flags, count, overflow.
const HEADER_BYTES: usize = 16;

/// One element of a branch or a leaf page.
const ELEMENT_BYTES: usize = 16;

/// What a row of the root holds: root page, sequence; an inline bucket's page follows.
const BUCKET_HEADER_BYTES: usize = 16;

/// A meta page up to and with its checksum, without the page's header.
const META_BYTES: usize = 64;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;

/// In an element of a leaf: the value is a bucket.
const BUCKET: u32 = 1;

/// In a meta page: free pages are not listed.
const NO_FREELIST: u64 = u64::MAX;

/// The longest key.
pub const KEY_BYTES_MAX: usize = 32_768;

/// FNV-1a, 64 bits: the checksum of a meta page.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Sets the checksums of the meta pages right where they are looked for, for pages of 512 and of
/// 4096 bytes: for the fuzzer.
#[doc(hidden)]
pub fn sign(file: &mut [u8]) {
    for page in [0, 512, 4096] {
        if let Some(meta) = file.get_mut(page + HEADER_BYTES..page + HEADER_BYTES + META_BYTES) {
            let sum = checksum(&meta[..META_BYTES - 8]);
            meta[META_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        }
    }
}
