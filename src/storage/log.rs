//! The log: what was decided and may not yet be in the tables.
//!
//! Segments of fixed size, allocated whole before they are used, named by their number. The unit
//! is the *batch*: all that shared one sync. Batch n+1 is written only after batch n is synced, so
//! of all batches only the last can be torn.
//! ```text
//! segment   magic 8 | format u32 | crc u32 | number u64 | salt 8          the header, 32 bytes
//! batch     len u32 | crc u32 | batch number u64 | index u64 | rows, len bytes | zeros to 8
//! ```
//! Numbers are little-endian. Each CRC-32C covers all of its unit but itself. A batch's begins with
//! its segment's number and salt, and so refuses what a reused block of the disk still holds of
//! another segment, and what a client made to look like a batch.
//! A batch never spans segments: one that does not fit the rest of a segment begins the next,
//! which is made larger if it must be.
//!
//! Reading, a bad batch with a good one of a later number behind it is damage, and an error, and so
//! is one with a later segment behind it. Any other is a torn tail, was never answered, and is cut
//! off.

mod later;
mod source;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use self::source::{File, Pieces, Source};
use super::Damaged;
use super::disk::{Disk, DiskFile, is_full};

const MAGIC: &[u8; 8] = b"METALOG\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24;
const ALIGN: usize = 8;
const SUFFIX: &str = ".log";

/// Capacity of the write buffer that is kept from batch to batch.
const KEPT_BYTES: usize = 4 << 20;

/// Most bytes of rows in one batch: only a delete of many millions of keys comes near.
pub const BATCH_BYTES_MAX: usize = 2 << 30;

/// How the log is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Size of a segment, in bytes.
    pub segment_bytes: u64,
}

/// One batch, as it was appended.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// One more than that of the batch before.
    pub number: u64,
    /// The last command of the batch.
    pub index: u64,
    /// Its rows.
    pub rows: &'a [u8],
}

/// Why the log could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No room for a segment. The log is as it was.
    #[error("the disk is full")]
    NoSpace,
    /// More than [`BATCH_BYTES_MAX`] in one batch. The log is as it was.
    #[error("the batch is too large")]
    TooLarge,
    /// The log holds what was never written.
    #[error("the log is damaged: {file} at byte {offset}: {what}")]
    Damaged {
        /// The segment's file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: &'static str,
    },
    /// A newer program wrote it.
    #[error("{file} is in format {found} of the log, and this program knows only up to {FORMAT}")]
    Newer {
        /// The segment's file.
        file: String,
        /// Its format.
        found: u32,
    },
    /// A batch is whole, and yet no store would have written it.
    #[error(transparent)]
    Rows(#[from] Damaged),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What reading found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// The number of the last whole batch; that of `applied` if there is none.
    pub last_batch: u64,
    /// Bytes behind it that are not zero.
    pub torn_bytes: u64,
}

/// The log, as its one writer has it.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    settings: Settings,
    segments: Segments,
    current: Segment,
    last_batch: u64,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    seed: u32,
    file: Arc<dyn DiskFile>,
    size: u64,
    end: u64,
}

/// The segments that are full, or were before the start; shared with who cuts them.
#[derive(Debug, Clone)]
pub struct Segments {
    disk: Arc<dyn Disk>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    past: Vec<Past>,
    current_bytes: u64,
}

#[derive(Debug)]
struct Past {
    number: u64,
    bytes: u64,
    last_batch: u64,
}

/// Whether `name` is that of a segment.
pub fn is_segment(name: &str) -> bool {
    number_of(name).is_some()
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 16)
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

fn file_name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

impl Log {
    /// Opens the log: hands each batch behind `applied` to `replay`, in order, cuts a torn tail
    /// off, and begins a new segment.
    pub fn open(
        disk: Arc<dyn Disk>,
        settings: Settings,
        applied: u64,
        replay: &mut dyn FnMut(Batch<'_>) -> Result<(), Error>,
    ) -> Result<Log, Error> {
        let Found {
            mut past,
            last_batch_at,
            last_end,
            summary,
            unfinished,
        } = read_all(disk.as_ref(), applied, replay)?;
        // What was never answered must not look like damage once good batches follow; nor is the
        // room needed that the last segment did not come to use. And the last batch may have been
        // read from memory alone: written by a process that was killed before it synced, or whose
        // sync failed, after which the system takes the pages for clean. So it is written again.
        if let Some(last) = past.last_mut() {
            let file = disk.open(&file_name(last.number))?;
            if last.bytes > last_end {
                file.set_len(last_end)?;
                last.bytes = last_end;
            }
            let mut batch = vec![0; (last_end - last_batch_at) as usize];
            file.read_at(&mut batch, last_batch_at)?;
            file.write_at(&batch, last_batch_at)?;
            file.sync()?;
        }
        if let Some(number) = unfinished {
            disk.remove(&file_name(number))?;
        }
        let number = past.last().map_or(1, |past| past.number + 1);
        let segments = Segments {
            disk: Arc::clone(&disk),
            inner: Arc::new(Mutex::new(Inner {
                past,
                current_bytes: 0,
            })),
        };
        let current = begin(disk.as_ref(), number, settings.segment_bytes)?;
        segments.inner().current_bytes = current.size;
        Ok(Log {
            disk,
            settings,
            segments,
            current,
            last_batch: summary.last_batch,
            frame: Vec::new(),
        })
    }

    /// Hands each batch behind `applied` to `visit`, in order, and changes nothing.
    pub fn read(
        disk: &dyn Disk,
        applied: u64,
        visit: &mut dyn FnMut(Batch<'_>) -> Result<(), Error>,
    ) -> Result<Summary, Error> {
        Ok(read_all(disk, applied, visit)?.summary)
    }

    /// Appends a batch whose last command is `index`, and syncs it; answers its number. After
    /// [`Error::NoSpace`] or [`Error::TooLarge`] the log is as before; any other error is the end.
    pub fn append(&mut self, index: u64, rows: &[u8]) -> Result<u64, Error> {
        if rows.len() > BATCH_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let number = self.last_batch + 1;
        let length = frame_len(rows.len()) as u64;
        if self.current.size - self.current.end < length {
            self.roll(length)?;
        }
        encode_frame(&mut self.frame, self.current.seed, number, index, rows);
        self.current.file.write_at(&self.frame, self.current.end)?;
        self.current.file.sync()?;
        self.current.end += length;
        self.last_batch = number;
        self.frame.clear();
        self.frame.shrink_to(KEPT_BYTES);
        Ok(number)
    }

    /// Begins a segment with room for `length` bytes.
    fn roll(&mut self, length: u64) -> Result<(), Error> {
        let number = self.current.number + 1;
        let size = self
            .settings
            .segment_bytes
            .max(HEADER_BYTES as u64 + length);
        let next = begin(self.disk.as_ref(), number, size)?;
        let full = std::mem::replace(&mut self.current, next);
        let mut inner = self.segments.inner();
        inner.past.push(Past {
            number: full.number,
            bytes: full.size,
            last_batch: self.last_batch,
        });
        inner.current_bytes = size;
        Ok(())
    }

    /// A handle for the thread that cuts the log.
    pub fn segments(&self) -> Segments {
        self.segments.clone()
    }

    /// The number of the last batch.
    pub fn last_batch(&self) -> u64 {
        self.last_batch
    }
}

impl Segments {
    /// Removes the segments that hold no batch behind `applied`; the current one stays.
    pub fn cut(&self, applied: u64) -> Result<(), Error> {
        let cut = {
            let mut inner = self.inner();
            let keep = inner
                .past
                .partition_point(|past| past.last_batch <= applied);
            inner.past.drain(..keep).collect::<Vec<_>>()
        };
        for past in &cut {
            self.disk.remove(&file_name(past.number))?;
        }
        if !cut.is_empty() {
            self.disk.sync_dir()?;
        }
        Ok(())
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        let inner = self.inner();
        inner.past.iter().map(|past| past.bytes).sum::<u64>() + inner.current_bytes
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a segment, whole and durable, before the first batch goes into it.
fn begin(disk: &dyn Disk, number: u64, size: u64) -> Result<Segment, Error> {
    let name = file_name(number);
    let size = size.max(HEADER_BYTES as u64);
    // The only chance in the store: it is not to be foreseen by who writes values.
    let salt = RandomState::new().build_hasher().finish();
    let file = match disk.create(&name, size) {
        Ok(file) => file,
        Err(error) if is_full(&error) => return Err(Error::NoSpace),
        Err(error) => return Err(error.into()),
    };
    match file.write_at(&encode_header(number, salt), 0) {
        Ok(()) => {}
        // Some file systems allocate, and yet have no room in the end.
        Err(error) if is_full(&error) => {
            disk.remove(&name)?;
            return Err(Error::NoSpace);
        }
        Err(error) => return Err(error.into()),
    }
    file.sync()?;
    disk.sync_dir()?;
    Ok(Segment {
        number,
        seed: seed(number, salt),
        file,
        size,
        end: HEADER_BYTES as u64,
    })
}

fn encode_header(number: u64, salt: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&number.to_le_bytes());
    header[24..].copy_from_slice(&salt.to_le_bytes());
    let crc = header_crc(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

fn header_crc(header: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// What the CRC of every batch of a segment begins with.
fn seed(number: u64, salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &salt.to_le_bytes())
}

fn frame_len(rows: usize) -> usize {
    (FRAME_BYTES + rows).next_multiple_of(ALIGN)
}

fn encode_frame(out: &mut Vec<u8>, seed: u32, number: u64, index: u64, rows: &[u8]) {
    let length = u32::try_from(rows.len()).expect("a batch is smaller than 4 GiB");
    out.clear();
    out.reserve(frame_len(rows.len()));
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(rows);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &out[..4]), &out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out.resize(frame_len(rows.len()), 0);
}

/// The front of a batch, with its CRC computed up to where the rows begin.
#[derive(Debug, Clone, Copy)]
struct Frame {
    rows_len: usize,
    crc: u32,
    number: u64,
    index: u64,
    crc_before_rows: u32,
}

impl Frame {
    fn decode(bytes: &[u8], seed: u32) -> Option<Frame> {
        let header = bytes.first_chunk::<FRAME_BYTES>()?;
        let crc = crc32c::crc32c_append(seed, &header[..4]);
        Some(Frame {
            rows_len: u32::from_le_bytes(header[..4].try_into().ok()?) as usize,
            crc: u32::from_le_bytes(header[4..8].try_into().ok()?),
            number: u64::from_le_bytes(header[8..16].try_into().ok()?),
            index: u64::from_le_bytes(header[16..].try_into().ok()?),
            crc_before_rows: crc32c::crc32c_append(crc, &header[8..]),
        })
    }
}

/// The batch at the front of `bytes`, and the bytes it takes; `None` if none is whole there.
fn decode_frame(bytes: &[u8], seed: u32) -> Option<(Batch<'_>, usize)> {
    let frame = Frame::decode(bytes, seed)?;
    let rows = bytes[FRAME_BYTES..].get(..frame.rows_len)?;
    // A number of 0 is never given: zeros are no batch.
    if frame.number == 0 || crc32c::crc32c_append(frame.crc_before_rows, rows) != frame.crc {
        return None;
    }
    let batch = Batch {
        number: frame.number,
        index: frame.index,
        rows,
    };
    Some((batch, frame_len(frame.rows_len)))
}

/// What a segment's first bytes say.
enum Header {
    Ours { seed: u32 },
    Newer(u32),
    Bad,
}

fn decode_header(bytes: &[u8], number: u64) -> Header {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Header::Bad;
    };
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    if header[..8] != *MAGIC || word(12) != header_crc(header) || long(16) != number {
        return Header::Bad;
    }
    match word(8) {
        FORMAT => Header::Ours {
            seed: seed(number, long(24)),
        },
        format if format > FORMAT => Header::Newer(format),
        _ => Header::Bad,
    }
}

/// What the CRCs of a segment's batches begin with, if `bytes` begin with the header of segment
/// `number`.
pub fn segment_seed(bytes: &[u8], number: u64) -> Option<u32> {
    match decode_header(bytes, number) {
        Header::Ours { seed } => Some(seed),
        Header::Newer(_) | Header::Bad => None,
    }
}

/// The whole batches at the front of a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Where they end.
    pub end: usize,
    /// Bytes behind that, without the zeros at the end of the segment.
    pub torn_bytes: usize,
    /// Where a whole batch of a later number lies behind that: the one at `end` is damaged.
    pub later: Option<usize>,
}

/// Reads the batches of a segment, header included, and hands them to `visit`. `seed` is what their
/// CRCs begin with, `last` the number of the batch before them, if that is known, and `applied` a
/// number that they are not far above. Never panics, whatever the bytes. Holds no more of them than
/// the largest batch, unless they end with a tear.
pub fn scan(
    segment: &impl Source,
    seed: u32,
    mut last: Option<u64>,
    applied: u64,
    mut visit: impl FnMut(usize, Batch<'_>) -> Result<(), Error>,
) -> Result<Scan, Error> {
    let mut pieces = Pieces::new(segment);
    let mut end = HEADER_BYTES.min(segment.len());
    loop {
        let front = pieces.at(end, FRAME_BYTES)?;
        let Some(frame) = front.and_then(|front| Frame::decode(front, seed)) else {
            break;
        };
        let whole = pieces.at(end, FRAME_BYTES.saturating_add(frame.rows_len))?;
        let Some((batch, length)) = whole.and_then(|whole| decode_frame(whole, seed)) else {
            break;
        };
        last = Some(batch.number);
        visit(end, batch)?;
        end = (end + length).min(segment.len());
    }
    let torn_bytes = pieces.used(end)? - end;
    let mut later = None;
    if torn_bytes > 0 {
        // To the very end: a later batch may end with zeros.
        let mut tail = vec![0; segment.len() - end];
        segment.read_at(&mut tail, end)?;
        later = later::find(&tail, seed, last, applied).map(|at| end + at);
    }
    Ok(Scan {
        end,
        torn_bytes,
        later,
    })
}

struct Found {
    past: Vec<Past>,
    /// Where the last batch of the last of them begins, 0 if it has none, and where it ends.
    last_batch_at: u64,
    last_end: u64,
    summary: Summary,
    /// A segment that a crash kept from being begun.
    unfinished: Option<u64>,
}

fn read_all(
    disk: &dyn Disk,
    applied: u64,
    visit: &mut dyn FnMut(Batch<'_>) -> Result<(), Error>,
) -> Result<Found, Error> {
    let names = disk.list()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let mut found = Found {
        past: Vec::new(),
        last_batch_at: 0,
        last_end: 0,
        summary: Summary::default(),
        unfinished: None,
    };
    let mut last_batch = None;
    for (place, &number) in numbers.iter().enumerate() {
        let is_last = place + 1 == numbers.len();
        let name = file_name(number);
        let damaged = |offset: usize, what: &'static str| Error::Damaged {
            file: name.clone(),
            offset: offset as u64,
            what,
        };
        let file = disk.open(&name)?;
        let segment = File::new(file.as_ref())?;
        let mut pieces = Pieces::new(&segment);
        let header = pieces.at(0, HEADER_BYTES.min(segment.len()))?;
        let seed = match decode_header(header.unwrap_or(&[]), number) {
            Header::Ours { seed } => seed,
            Header::Newer(found) => return Err(Error::Newer { file: name, found }),
            Header::Bad if is_last && pieces.used(HEADER_BYTES)? <= HEADER_BYTES => {
                found.unfinished = Some(number);
                break;
            }
            Header::Bad => return Err(damaged(0, "the header is not that of this segment")),
        };
        let mut last_batch_at = None;
        let scanned = scan(&segment, seed, last_batch, applied, |at, batch| {
            last_batch_at = Some(at as u64);
            let next = last_batch.map_or(0, |last| last + 1);
            // What the tables hold need not be there: segments are removed in no sure order.
            if batch.number != next && !(next..=applied + 1).contains(&batch.number) {
                return Err(damaged(at, "a batch before it is missing"));
            }
            last_batch = Some(batch.number);
            if batch.number > applied {
                visit(batch)
            } else {
                Ok(())
            }
        })?;
        if scanned.later.is_some() {
            let what = "a batch is damaged, and later ones are whole";
            return Err(damaged(scanned.end, what));
        }
        if scanned.torn_bytes > 0 {
            // A segment is begun when all that was written to the one before is whole or cut off.
            if !is_last {
                let what = "a batch is damaged, and a later segment is there";
                return Err(damaged(scanned.end, what));
            }
            found.summary.torn_bytes = scanned.torn_bytes as u64;
        }
        found.last_end = scanned.end as u64;
        // Of a segment without one, the header is what may be in memory alone.
        found.last_batch_at = last_batch_at.unwrap_or(0);
        found.past.push(Past {
            number,
            bytes: segment.len() as u64,
            last_batch: last_batch.unwrap_or(applied),
        });
    }
    found.summary.last_batch = last_batch.unwrap_or(applied).max(applied);
    Ok(found)
}

impl From<Error> for super::Error {
    fn from(error: Error) -> super::Error {
        match error {
            Error::NoSpace => super::Error::NoSpace,
            Error::TooLarge => super::Error::TooLarge,
            Error::Rows(damaged) => super::Error::Damaged(damaged),
            Error::Io(error) => super::Error::Io(error),
            error @ (Error::Damaged { .. } | Error::Newer { .. }) => super::Error::Log(error),
        }
    }
}
