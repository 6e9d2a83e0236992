//! The bytes of a segment, read a piece at a time: a segment is larger than what a start should take
//! of memory, and mostly empty.

use std::io;

use super::DiskFile;

/// Bytes of one piece; more if more are asked for at once.
pub const PIECE_BYTES: usize = 1 << 20;

/// Bytes of a known number, of which any can be read.
pub trait Source {
    /// How many there are.
    fn len(&self) -> usize;

    /// Fills `buf` from `at` on; all of it is there.
    fn read_at(&self, buf: &mut [u8], at: usize) -> io::Result<()>;
}

impl<T: AsRef<[u8]>> Source for T {
    fn len(&self) -> usize {
        self.as_ref().len()
    }

    fn read_at(&self, buf: &mut [u8], at: usize) -> io::Result<()> {
        buf.copy_from_slice(&self.as_ref()[at..at + buf.len()]);
        Ok(())
    }
}

/// A file, as long as it was at first.
pub struct File<'a> {
    file: &'a dyn DiskFile,
    len: usize,
}

impl<'a> File<'a> {
    /// All of `file`.
    pub fn new(file: &'a dyn DiskFile) -> io::Result<File<'a>> {
        let len = usize::try_from(file.size()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
        Ok(File { file, len })
    }
}

impl Source for File<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], at: usize) -> io::Result<()> {
        self.file.read_at(buf, at as u64)
    }
}

/// A source and the piece of it that was read last.
pub struct Pieces<'a, S> {
    source: &'a S,
    piece: Vec<u8>,
    /// Where the piece begins.
    begin: usize,
}

impl<'a, S: Source> Pieces<'a, S> {
    /// Nothing is read.
    pub fn new(source: &'a S) -> Pieces<'a, S> {
        Pieces {
            source,
            piece: Vec::new(),
            begin: 0,
        }
    }

    /// `length` bytes from `at` on; `None` if they are not there.
    pub fn at(&mut self, at: usize, length: usize) -> io::Result<Option<&[u8]>> {
        let there = self.source.len().saturating_sub(at);
        if length > there {
            return Ok(None);
        }
        let is_read = at >= self.begin && at + length <= self.begin + self.piece.len();
        if !is_read {
            self.piece.resize(length.max(PIECE_BYTES).min(there), 0);
            self.source.read_at(&mut self.piece, at)?;
            self.begin = at;
        }
        let from = at - self.begin;
        Ok(Some(&self.piece[from..from + length]))
    }

    /// Where the bytes from `from` on end if zeros do not count; `from` if there is nothing else.
    pub fn used(&mut self, from: usize) -> io::Result<usize> {
        let (mut at, mut used) = (from, from);
        let zeros = vec![0; PIECE_BYTES.min(self.source.len().saturating_sub(from))];
        while at < self.source.len() {
            let length = PIECE_BYTES.min(self.source.len() - at);
            let piece = self.at(at, length)?.expect("the source is so long");
            // Almost all are zeros, and this is how to see it fast.
            if *piece != zeros[..length]
                && let Some(last) = piece.iter().rposition(|byte| *byte != 0)
            {
                used = at + last + 1;
            }
            at += length;
        }
        Ok(used)
    }
}
