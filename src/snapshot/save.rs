//! A snapshot file: etcd's database and, behind it, its SHA-256.
//!
//! Read twice from one view: once for the size, which the file says at its front, and once to be
//! written front to back. Memory is that of a few pages and one row.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::Error;
use super::bbolt::writer::{Size, Writer};
use super::contents::{self, Member};
use crate::storage::view::View;

/// Bytes behind the database.
pub const TRAILER_BYTES: usize = 32;

/// The size that the database of `view` will have. `go_on` is asked with each row.
pub fn size(view: &View, member: &Member, go_on: impl Fn() -> bool) -> Result<Size, Error> {
    write_buckets(view, member, Writer::sizing(), go_on)
}

/// Writes the database of `view`, which has that size, and its checksum.
pub fn write(
    view: &View,
    member: &Member,
    size: Size,
    out: &mut impl Write,
    go_on: impl Fn() -> bool,
) -> Result<(), Error> {
    let mut signed = Signed {
        out,
        hash: Sha256::new(),
    };
    let writer = Writer::begin(&mut signed, size)?;
    write_buckets(view, member, writer, go_on)?;
    let Signed { out, hash } = signed;
    out.write_all(&hash.finalize())?;
    Ok(out.flush()?)
}

fn write_buckets<W: Write>(
    view: &View,
    member: &Member,
    mut writer: Writer<W>,
    go_on: impl Fn() -> bool,
) -> Result<Size, Error> {
    for bucket in contents::buckets(view, member) {
        writer.bucket(bucket.name.as_bytes())?;
        contents::each_row(view, &bucket, &go_on, |key, value| {
            Ok(writer.put(key, value)?)
        })?;
    }
    Ok(writer.finish()?)
}

/// Hashes what it passes on.
struct Signed<'a, W> {
    out: &'a mut W,
    hash: Sha256,
}

impl<W: Write> Write for Signed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    /// Nothing is held back here, and what is behind is told at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
