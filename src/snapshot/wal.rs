//! etcd's log: whose it is, and the entries that a database lacks.
//!
//! ```text
//! segment   frame of eight bytes, record, padding; frame, record, …
//! record    a protobuf message: kind, checksum, data     metadata, entry, state, checksum, snapshot
//! ```
//! The checksum runs on over all records of all segments. Only the last segment may end within a
//! record: what was being written when the machine stopped. Where others lie behind such a record, or
//! behind zeros, it is damage, or a power failure that kept what was written last: etcd cuts them off,
//! and whether they were answered nobody can tell.
//!
//! The log is read twice: once to find out which entries count, since an entry takes the place of
//! one of its index and of all behind that; and once to hand those out. Of an entry that the
//! database lacks 16 bytes are held in between, less than it takes in the file.
//!
//! How far entries were committed is not asked: the one member of a cluster commits all that its
//! log holds when it starts again, and answers entries before its log says that it has.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::fields::{Field, Fields};
use super::load::{self, Member};

const METADATA: u64 = 1;
const ENTRY: u64 = 2;
const CRC: u64 = 4;
const SNAPSHOT: u64 = 5;

/// Before each record; and records are padded to a multiple of as much.
const FRAME_BYTES: usize = 8;

/// Records that etcd writes are far smaller.
const RECORD_BYTES_MAX: u64 = 1 << 30;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is damaged.
    #[error("{}, byte {at}: {what}", file.display())]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where the frame begins.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It has no segment, or none that says whose it is.
    #[error("{} holds no log of etcd", .0.display())]
    Missing(PathBuf),
    /// The disk failed.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The segment.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// A log, and which of its entries a database lacks.
#[derive(Debug)]
pub struct Log {
    /// The member that wrote it.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    segments: Vec<PathBuf>,
    /// Where the entries lie that the database lacks.
    places: Vec<Place>,
}

/// Where a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: u32,
    at: u64,
}

/// One entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its number.
    pub index: u64,
    /// In which term it was written.
    pub term: u64,
    /// What it holds.
    pub content: Content<'a>,
    place: Place,
    file: &'a Path,
}

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A request; empty where a leader has begun its term.
    Request(&'a [u8]),
    /// A change of who is a member: see [`member_change`].
    Members(&'a [u8]),
}

impl Entry<'_> {
    /// What is wrong with it, and where it lies.
    pub fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            file: self.file.to_owned(),
            at: self.place.at,
            what,
        }
    }
}

impl Log {
    /// Reads the log in `folder`, for a database that holds the entries up to `applied`.
    pub fn open(folder: &Path, applied: u64) -> Result<Log, Error> {
        let failed = |cause| Error::Io {
            file: folder.to_owned(),
            cause,
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.into_string().ok().filter(|name| is_segment(name)));
        }
        names.sort_unstable();
        let segments = names.iter().map(|name| folder.join(name)).collect();
        let mut log = Log {
            member_id: 0,
            cluster_id: 0,
            segments,
            places: Vec::new(),
        };
        let mut places = Places::new(applied);
        let ids = log.walk(0, |entry| places.take(&entry))?;
        (log.member_id, log.cluster_id) = ids.ok_or(Error::Missing(folder.to_owned()))?;
        log.places = places.found;
        Ok(log)
    }

    /// How many entries the database lacks.
    pub fn newer(&self) -> u64 {
        self.places.len() as u64
    }

    /// Visits the entries that the database lacks, in order.
    pub fn entries<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = self.places.iter().map(|place| place.segment).min();
        let Some(first) = first else {
            return Ok(());
        };
        let mut next = 0;
        self.walk(first as usize, |entry| {
            if self.places.get(next) == Some(&entry.place) {
                next += 1;
                visit(&entry)?;
            }
            Ok::<_, E>(())
        })?;
        if next < self.places.len() {
            let error = Error::Io {
                file: self.segments[first as usize].clone(),
                cause: io::Error::other("it was changed while it was read"),
            };
            return Err(error.into());
        }
        Ok(())
    }

    /// Visits all entries of the segments from the `first` on, whether they count or not; answers
    /// whose log it is.
    fn walk<E: From<Error>>(
        &self,
        first: usize,
        mut visit: impl FnMut(Entry<'_>) -> Result<(), E>,
    ) -> Result<Option<(u64, u64)>, E> {
        let mut walk = Walk::default();
        for (number, path) in self.segments.iter().enumerate().skip(first) {
            let failed = |cause| Error::Io {
                file: path.clone(),
                cause,
            };
            let file = File::open(path).map_err(failed)?;
            let segment = Segment {
                size: file.metadata().map_err(failed)?.len(),
                path,
                number: number as u32,
                is_last: number + 1 == self.segments.len(),
            };
            let file = BufReader::with_capacity(1 << 20, file);
            walk.read(file, &segment, &mut visit)?;
        }
        Ok(walk.ids)
    }
}

/// Reads bytes as a log of one segment, and hands out its entries: for the fuzzer.
#[doc(hidden)]
pub fn read_bytes(bytes: &[u8], mut visit: impl FnMut(Content<'_>)) -> Result<(), Error> {
    for is_last in [false, true] {
        let segment = Segment {
            size: bytes.len() as u64,
            path: Path::new("bytes"),
            number: 0,
            is_last,
        };
        let mut places = Places::new(0);
        Walk::default().read(bytes, &segment, &mut |entry| {
            visit(entry.content);
            places.take(&entry)
        })?;
    }
    Ok(())
}

/// `<16 hex digits>-<16 hex digits>.wal`
fn is_segment(name: &str) -> bool {
    let hex = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_suffix(".wal")
        .and_then(|name| name.split_once('-'))
        .is_some_and(|(number, index)| hex(number) && hex(index))
}

/// Finds the entries that count behind the last that was applied.
#[derive(Debug)]
struct Places {
    applied: u64,
    last: Option<u64>,
    found: Vec<Place>,
}

impl Places {
    fn new(applied: u64) -> Places {
        Places {
            applied,
            last: None,
            found: Vec::new(),
        }
    }

    fn take(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        // Segments may be gone whose entries the database holds.
        let most = self.last.unwrap_or(self.applied).saturating_add(1);
        if entry.index > most {
            return Err(entry.damaged("entries before it are missing"));
        }
        self.last = Some(entry.index);
        let behind = entry.index.saturating_sub(self.applied);
        self.found.truncate(behind.saturating_sub(1) as usize);
        if behind > 0 {
            self.found.push(entry.place);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Segment<'a> {
    path: &'a Path,
    number: u32,
    size: u64,
    is_last: bool,
}

/// A walk over records, as far as it has come.
#[derive(Debug, Default)]
struct Walk {
    ids: Option<(u64, u64)>,
    crc: u32,
    any: bool,
    /// The next record is the first of its segment.
    begins: bool,
}

/// What a record tells beyond the walk itself: index, term, content.
type Told<'a> = Option<(u64, u64, Content<'a>)>;

impl Walk {
    fn read<E: From<Error>>(
        &mut self,
        mut file: impl Read,
        segment: &Segment<'_>,
        visit: &mut impl FnMut(Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = segment.path;
        let failed = |cause| Error::Io {
            file: path.to_owned(),
            cause,
        };
        self.begins = true;
        let (mut at, mut frame, mut bytes) = (0, [0; FRAME_BYTES], Vec::new());
        while segment.size - at >= FRAME_BYTES as u64 {
            file.read_exact(&mut frame).map_err(failed)?;
            let frame = u64::from_le_bytes(frame);
            let (length, padding) = lengths(frame);
            let damaged = |what| Error::Damaged {
                file: path.to_owned(),
                at,
                what,
            };
            if frame == 0 {
                return match segment.is_last && is_followed(file, None).map_err(failed)? {
                    true => Err(damaged("zeros lie before a record").into()),
                    false => Ok(()),
                };
            }
            if (length + padding) % FRAME_BYTES as u64 > 0 {
                return Err(damaged("a record does not end where one can begin").into());
            }
            if length > RECORD_BYTES_MAX || length + padding > segment.size - at - 8 {
                return match segment.is_last && !is_followed(file, None).map_err(failed)? {
                    true => Ok(()),
                    false => Err(damaged("a record reaches beyond the end").into()),
                };
            }
            bytes.clear();
            let whole = (&mut file).take(length + padding).read_to_end(&mut bytes);
            whole.map_err(failed)?;
            let before = self.crc;
            match self.take(&bytes[..length as usize]) {
                Ok(None) => {}
                Ok(Some((index, term, content))) => visit(Entry {
                    index,
                    term,
                    content,
                    place: Place {
                        segment: segment.number,
                        at,
                    },
                    file: path,
                })?,
                Err(what) => {
                    self.crc = before;
                    let crc = Record::read(&bytes[..length as usize]).map(|record| record.crc);
                    let is_torn = segment.is_last
                        && is_torn(&bytes, at + 8)
                        && !is_followed(file, crc).map_err(failed)?;
                    return match is_torn {
                        true => Ok(()),
                        false => Err(damaged(what).into()),
                    };
                }
            }
            at += 8 + length + padding;
        }
        Ok(())
    }

    fn take<'a>(&mut self, record: &'a [u8]) -> Result<Told<'a>, &'static str> {
        const WHAT: &str = "a record that is none";
        let Record { kind, crc, data } = Record::read(record).ok_or(WHAT)?;
        let first = !std::mem::replace(&mut self.any, true);
        if std::mem::take(&mut self.begins) && kind != CRC || !(METADATA..=SNAPSHOT).contains(&kind)
        {
            return Err("a record of a kind that should not be here");
        }
        if kind == CRC {
            if !first && crc != self.crc {
                return Err("the checksum of the records before is another");
            }
            self.crc = crc;
            return Ok(None);
        }
        let running = crc32c::crc32c_append(self.crc, data);
        if running != crc {
            return Err("the checksum is wrong");
        }
        self.crc = running;
        match kind {
            METADATA => {
                let (mut member, mut cluster) = (0, 0);
                for field in Fields(data) {
                    match field.ok_or(WHAT)? {
                        (1, Field::Number(number)) => member = number,
                        (2, Field::Number(number)) => cluster = number,
                        _ => {}
                    }
                }
                if self.ids.is_some_and(|ids| ids != (member, cluster)) {
                    return Err("it is of another member than the segment before");
                }
                self.ids = Some((member, cluster));
                Ok(None)
            }
            ENTRY => entry(data).map(Some),
            _ => Ok(None),
        }
    }
}

/// Index, term and content of an entry.
fn entry(data: &[u8]) -> Result<(u64, u64, Content<'_>), &'static str> {
    let (mut kind, mut term, mut index, mut bytes) = (0, 0, 0, &[][..]);
    for field in Fields(data) {
        match field.ok_or("an entry that is none")? {
            (1, Field::Number(number)) => kind = number,
            (2, Field::Number(number)) => term = number,
            (3, Field::Number(number)) => index = number,
            (4, Field::Bytes(data)) => bytes = data,
            _ => {}
        }
    }
    let content = match kind {
        0 => Content::Request(bytes),
        1 => Content::Members(bytes),
        _ => return Err("an entry of a kind that etcd does not write"),
    };
    Ok((index, term, content))
}

/// What an entry says of who is a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// One is, with or without a vote, or is told anew.
    Is(Member),
    /// One is no more.
    Gone(u64),
}

/// Reads the data of a change of who is a member.
pub fn member_change(data: &[u8]) -> Result<MemberChange, &'static str> {
    const WHAT: &str = "a change of members that is none";
    /// Of a kind of change: a member goes. (0 and 3 are a new one, 2 one that is told anew.)
    const REMOVE: u64 = 1;
    let (mut kind, mut id, mut context) = (0, 0, &[][..]);
    for field in Fields(data) {
        match field.ok_or(WHAT)? {
            (2, Field::Number(number)) => kind = number,
            (3, Field::Number(number)) => id = number,
            (4, Field::Bytes(bytes)) => context = bytes,
            _ => {}
        }
    }
    match kind {
        REMOVE => Ok(MemberChange::Gone(id)),
        0 | 2 | 3 => {
            let member = load::member(context).map_err(|_| WHAT)?;
            let same = member.id == id;
            same.then_some(MemberChange::Is(member)).ok_or(WHAT)
        }
        _ => Err(WHAT),
    }
}

/// A record as it lies in its frame.
#[derive(Debug, Clone, Copy)]
struct Record<'a> {
    kind: u64,
    crc: u32,
    data: &'a [u8],
}

impl<'a> Record<'a> {
    fn read(bytes: &'a [u8]) -> Option<Record<'a>> {
        let mut record = Record {
            kind: 0,
            crc: 0,
            data: &[],
        };
        for field in Fields(bytes) {
            match field? {
                (1, Field::Number(number)) => record.kind = number,
                (2, Field::Number(number)) => record.crc = number as u32,
                (3, Field::Bytes(bytes)) => record.data = bytes,
                _ => return None,
            }
        }
        Some(record)
    }

    /// The record whose frame `bytes` begin with, and what is behind it.
    fn framed(bytes: &'a [u8]) -> Option<(Record<'a>, &'a [u8])> {
        let (frame, rest) = bytes.split_first_chunk()?;
        let (length, padding) = lengths(u64::from_le_bytes(*frame));
        let (record, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        let record = Record::read(record)?;
        let is_one = (METADATA..=SNAPSHOT).contains(&record.kind) && record.kind != CRC;
        is_one.then_some((record, rest.get(padding as usize..)?))
    }

    fn comes_behind(&self, crc: u32) -> bool {
        crc32c::crc32c_append(crc, self.data) == self.crc
    }
}

/// Lengths of the record and of its padding, from the frame before them.
fn lengths(frame: u64) -> (u64, u64) {
    let padding = if frame >> 63 == 1 { frame >> 56 & 7 } else { 0 };
    (frame & ((1 << 56) - 1), padding)
}

/// Whether sound records follow one that is not, whose checksum may be known: the very next, or two
/// of which the one goes with the other. They begin at multiples of eight, as the bytes do.
fn is_followed(mut rest: impl Read, crc: Option<u32>) -> io::Result<bool> {
    /// More than that is not looked through: it is no torn end.
    const LOOKED_AT_BYTES_MAX: usize = 1 << 30;
    // Most of a segment that is not full is zeros.
    let zeros = vec![0; 1 << 20];
    let mut bytes = Vec::new();
    loop {
        let read = (&mut rest)
            .take(zeros.len() as u64)
            .read_to_end(&mut bytes)?;
        if bytes == zeros {
            bytes.clear();
        } else if bytes.len() as u64 >= RECORD_BYTES_MAX {
            return Ok(true);
        }
        if read < zeros.len() {
            break;
        }
    }
    let mut looked_at = 0;
    for begin in (0..bytes.len()).step_by(FRAME_BYTES) {
        let Some((record, behind)) = Record::framed(&bytes[begin..]) else {
            continue;
        };
        looked_at += record.data.len();
        let is_next = begin == 0 && crc.is_some_and(|crc| record.comes_behind(crc));
        let next = Record::framed(behind);
        looked_at += next.map_or(0, |(next, _)| next.data.len());
        let goes_on = next.is_some_and(|(next, _)| next.comes_behind(record.crc));
        if is_next || goes_on || looked_at > LOOKED_AT_BYTES_MAX {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a sector of the record was never written. `at` is where it begins in the file.
fn is_torn(record: &[u8], at: u64) -> bool {
    const SECTOR_BYTES: usize = 512;
    let first = SECTOR_BYTES - at as usize % SECTOR_BYTES;
    let (head, rest) = record.split_at(first.min(record.len()));
    std::iter::once(head)
        .chain(rest.chunks(SECTOR_BYTES))
        .any(|sector| !sector.is_empty() && sector.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::varint;

    /// Writes records as etcd does.
    struct Segment {
        crc: u32,
        bytes: Vec<u8>,
    }

    impl Segment {
        fn after(crc: u32) -> Segment {
            let mut segment = Segment {
                crc,
                bytes: Vec::new(),
            };
            segment.push(CRC, None);
            segment.push(METADATA, Some(&message(&[(1, 7), (2, 9)], None)));
            segment
        }

        fn push(&mut self, kind: u64, data: Option<&[u8]>) {
            self.crc = crc32c::crc32c_append(self.crc, data.unwrap_or_default());
            let record = message(
                &[(1, kind), (2, self.crc.into())],
                data.map(|data| (3, data)),
            );
            let padding = (8 - record.len() % 8) % 8;
            let mut frame = record.len() as u64;
            if padding > 0 {
                frame |= (0x80 | padding as u64) << 56;
            }
            self.bytes.extend_from_slice(&frame.to_le_bytes());
            self.bytes.extend_from_slice(&record);
            self.bytes.extend_from_slice(&[0; 8][..padding]);
        }

        fn entry(&mut self, index: u64, request: &[u8]) {
            let entry = message(&[(1, 0), (2, 1), (3, index)], Some((4, request)));
            self.push(ENTRY, Some(&entry));
        }

        fn write(&self, folder: &Path, number: u64) {
            let name = format!("{number:016x}-{number:016x}.wal");
            std::fs::write(folder.join(name), &self.bytes).expect("there is room");
        }
    }

    fn message(numbers: &[(u64, u64)], bytes: Option<(u64, &[u8])>) -> Vec<u8> {
        let mut out = Vec::new();
        for (field, number) in numbers {
            varint::put(&mut out, field << 3);
            varint::put(&mut out, *number);
        }
        if let Some((field, bytes)) = bytes {
            varint::put(&mut out, field << 3 | 2);
            varint::put_bytes(&mut out, bytes);
        }
        out
    }

    fn put() -> Vec<u8> {
        message(&[(1, 5)], Some((4, b"put")))
    }

    /// Indexes and data of the entries that a database lacks.
    fn entries(folder: &Path, applied: u64) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let log = Log::open(folder, applied)?;
        assert_eq!((log.member_id, log.cluster_id), (7, 9));
        let mut found = Vec::new();
        log.entries(|entry| {
            let Content::Request(request) = entry.content else {
                panic!("{entry:?}");
            };
            found.push((entry.index, request.to_vec()));
            Ok::<_, Error>(())
        })?;
        assert_eq!(log.newer(), found.len() as u64);
        Ok(found)
    }

    fn newer(folder: &Path, applied: u64) -> Result<u64, Error> {
        entries(folder, applied).map(|found| found.len() as u64)
    }

    #[test]
    fn the_entries_that_count_are_handed_out_in_order() {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let folder = folder.path();
        assert!(matches!(Log::open(folder, 0), Err(Error::Missing(_))));
        let mut first = Segment::after(0);
        for index in 1..=4 {
            first.entry(index, &[index as u8]);
        }
        first.write(folder, 0);
        let mut second = Segment::after(first.crc);
        second.entry(5, &[5]);
        second.write(folder, 1);
        std::fs::write(folder.join("2.tmp"), b"to come").expect("there is room");
        let of = |indexes: &[u64]| -> Vec<_> {
            let entry = |index: &u64| (*index, vec![*index as u8]);
            indexes.iter().map(entry).collect()
        };
        for applied in 0..=5 {
            let indexes: Vec<_> = (applied + 1..=5).collect();
            assert_eq!(entries(folder, applied).unwrap(), of(&indexes));
        }
        // In the place of the third, and those behind it are gone with it.
        second.entry(3, &[33]);
        second.entry(4, &[44]);
        second.write(folder, 1);
        let replaced = vec![(3, vec![33]), (4, vec![44])];
        assert_eq!(entries(folder, 2).unwrap(), replaced);
        assert_eq!(entries(folder, 3).unwrap(), replaced[1..]);
        assert_eq!(entries(folder, 4).unwrap(), []);
        second.entry(6, &[6]);
        second.write(folder, 1);
        let error = Log::open(folder, 0).expect_err("the fifth is missing");
        assert!(error.to_string().contains("missing"), "{error}");
    }

    /// The first segments go once a snapshot holds what they held.
    #[test]
    fn a_log_that_begins_behind_the_database_is_refused() {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let folder = folder.path();
        let mut segment = Segment::after(0x1234);
        segment.entry(5, &put());
        segment.write(folder, 3);
        assert_eq!(newer(folder, 5).unwrap(), 0);
        assert_eq!(newer(folder, 4).unwrap(), 1);
        let error = Log::open(folder, 3).expect_err("the fourth is missing");
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn changes_of_members_are_read() {
        let context = br#"{"id":7,"peerURLs":["http://a:1"],"name":"one","isPromote":false}"#;
        let change = |kind, id| message(&[(1, 1), (2, kind), (3, id)], Some((4, context)));
        let member = Member {
            id: 7,
            name: "one".to_owned(),
            peer_urls: vec!["http://a:1".to_owned()],
        };
        for kind in [0, 2, 3] {
            let is = MemberChange::Is(member.clone());
            assert_eq!(member_change(&change(kind, 7)), Ok(is));
        }
        assert_eq!(member_change(&change(1, 9)), Ok(MemberChange::Gone(9)));
        assert!(member_change(&change(0, 8)).is_err());
        assert!(member_change(&change(4, 7)).is_err());
        assert!(member_change(b"?").is_err());
    }

    #[test]
    fn a_torn_end_is_cut_and_damage_is_not() {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let folder = folder.path();
        let mut sound = Segment::after(0);
        sound.entry(1, &put());
        let whole = sound.bytes.len();
        sound.entry(2, &[7; 3000]);
        for length in whole..sound.bytes.len() {
            let torn = Segment {
                crc: 0,
                bytes: sound.bytes[..length].to_vec(),
            };
            torn.write(folder, 0);
            assert_eq!(newer(folder, 0).unwrap(), 1, "cut to {length}");
        }
        // A sector was never written.
        let mut torn = sound.bytes.clone();
        torn[1024..1536].fill(0);
        let torn = Segment {
            crc: 0,
            bytes: torn,
        };
        torn.write(folder, 0);
        assert_eq!(newer(folder, 0).unwrap(), 1);
        for at in [9, 40, whole - 12, 1024] {
            let mut bytes = sound.bytes.clone();
            bytes[at] ^= 1;
            Segment { crc: 0, bytes }.write(folder, 0);
            let error = newer(folder, 0)
                .expect_err(&format!("bit at {at}"))
                .to_string();
            assert!(error.contains(".wal, byte "), "{error}");
        }
        // With others behind it, it is no torn end.
        let mut zeros = Segment::after(0);
        let begin = zeros.bytes.len();
        zeros.entry(1, &[0; 3000]);
        let behind = zeros.bytes.len();
        zeros.entry(2, &put());
        let last = zeros.bytes.len();
        for (flipped, length, newer_or_damage) in [
            (begin + 1000, behind, Some(0)),
            (begin + 1000, last, None),
            (begin + 6, behind, Some(0)),
            (behind + 6, last, Some(1)),
        ] {
            let mut bytes = zeros.bytes[..length].to_vec();
            bytes[flipped] ^= 1;
            Segment { crc: 0, bytes }.write(folder, 0);
            let found = newer(folder, 0).ok();
            assert_eq!(found, newer_or_damage, "byte {flipped} of {length}");
        }
        // Of the padding, and behind zeros.
        for (flipped, mask) in [(begin + 7, 1), (begin + 7, 0x80)] {
            let mut bytes = zeros.bytes.clone();
            bytes[flipped] ^= mask;
            Segment { crc: 0, bytes }.write(folder, 0);
            assert!(newer(folder, 0).is_err());
        }
        zeros.entry(3, &put());
        let mut bytes = zeros.bytes.clone();
        bytes[begin..behind].fill(0);
        bytes.resize(5 << 20, 0);
        Segment { crc: 0, bytes }.write(folder, 0);
        assert!(newer(folder, 0).is_err());
        zeros.bytes[begin + 6] ^= 1;
        zeros.write(folder, 0);
        assert!(newer(folder, 0).is_err());
        // Torn, and with a segment behind it.
        let cut = Segment {
            crc: 0,
            bytes: sound.bytes[..sound.bytes.len() - 8].to_vec(),
        };
        cut.write(folder, 0);
        Segment::after(sound.crc).write(folder, 1);
        assert!(newer(folder, 0).is_err());
    }
}
