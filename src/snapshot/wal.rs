//! etcd's log: whose it is, and what it holds beyond the database.
//!
//! A segment is frames of eight bytes and a record, a protobuf message of type, checksum and data.
//! The checksum runs on over all records of all segments. Only the last segment may end within a
//! record: what was being written when the machine stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::storage::varint;

const METADATA: u64 = 1;
const ENTRY: u64 = 2;
const CRC: u64 = 4;
const SNAPSHOT: u64 = 5;

/// Records that etcd writes are far smaller.
const RECORD_BYTES_MAX: u64 = 1 << 30;

/// Fields of a request that change nothing of ours: its header and id, the cluster's version, and
/// what members say of themselves.
const PASSED_OVER: [u64; 5] = [1, 100, 1300, 1301, 1302];

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

/// What a log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The member that wrote it.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// Entries behind the database's last that change something.
    pub newer: u64,
}

/// Reads the log in `folder`, for a database that holds the entries up to `applied`.
pub fn read(folder: &Path, applied: u64) -> Result<Summary, Error> {
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
    let mut log = Log::default();
    for (place, name) in names.iter().enumerate() {
        let last = place + 1 == names.len();
        log.read_segment(&folder.join(name), last, applied)?;
    }
    let (member_id, cluster_id) = log.ids.ok_or(Error::Missing(folder.to_owned()))?;
    let newer = log.newer.values().filter(|changes| **changes).count();
    Ok(Summary {
        member_id,
        cluster_id,
        newer: newer as u64,
    })
}

/// Reads bytes as a log of one segment: for the fuzzer.
#[doc(hidden)]
pub fn read_bytes(bytes: &[u8]) -> Result<(), Error> {
    let path = Path::new("bytes");
    for last in [false, true] {
        Log::default().read_frames(bytes, bytes.len() as u64, path, last, 0)?;
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

#[derive(Debug, Default)]
struct Log {
    ids: Option<(u64, u64)>,
    crc: u32,
    any: bool,
    /// The next record is the first of its segment.
    begins: bool,
    /// Entries behind the database's last, and whether they change something.
    newer: BTreeMap<u64, bool>,
}

impl Log {
    fn read_segment(&mut self, path: &Path, last: bool, applied: u64) -> Result<(), Error> {
        let failed = |cause| Error::Io {
            file: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let file = BufReader::with_capacity(1 << 20, file);
        self.read_frames(file, size, path, last, applied)
    }

    fn read_frames(
        &mut self,
        mut file: impl Read,
        size: u64,
        path: &Path,
        last: bool,
        applied: u64,
    ) -> Result<(), Error> {
        let failed = |cause| Error::Io {
            file: path.to_owned(),
            cause,
        };
        self.begins = true;
        let (mut at, mut frame, mut bytes) = (0, [0; 8], Vec::new());
        while size - at >= 8 {
            file.read_exact(&mut frame).map_err(failed)?;
            let frame = u64::from_le_bytes(frame);
            if frame == 0 {
                return Ok(());
            }
            let length = frame & ((1 << 56) - 1);
            let padding = if frame >> 63 == 1 { frame >> 56 & 7 } else { 0 };
            let damaged = |what| Error::Damaged {
                file: path.to_owned(),
                at,
                what,
            };
            if length > RECORD_BYTES_MAX || length + padding > size - at - 8 {
                return match last {
                    true => Ok(()),
                    false => Err(damaged("a record reaches beyond the end")),
                };
            }
            bytes.clear();
            let whole = (&mut file).take(length + padding).read_to_end(&mut bytes);
            whole.map_err(failed)?;
            let record = &bytes[..length as usize];
            let before = self.crc;
            if let Err(what) = self.take(record, applied) {
                self.crc = before;
                return match last && is_torn(&bytes, at + 8) {
                    true => Ok(()),
                    false => Err(damaged(what)),
                };
            }
            at += 8 + length + padding;
        }
        Ok(())
    }

    fn take(&mut self, record: &[u8], applied: u64) -> Result<(), &'static str> {
        const WHAT: &str = "a record that is none";
        let (mut kind, mut crc, mut data) = (0, 0, &[][..]);
        for field in Fields(record) {
            match field.ok_or(WHAT)? {
                (1, Field::Number(number)) => kind = number,
                (2, Field::Number(number)) => crc = number as u32,
                (3, Field::Bytes(bytes)) => data = bytes,
                _ => return Err(WHAT),
            }
        }
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
            return Ok(());
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
            }
            ENTRY => {
                let (mut kind, mut index, mut request) = (0, 0, &[][..]);
                for field in Fields(data) {
                    match field.ok_or(WHAT)? {
                        (1, Field::Number(number)) => kind = number,
                        (3, Field::Number(number)) => index = number,
                        (4, Field::Bytes(bytes)) => request = bytes,
                        _ => {}
                    }
                }
                // An entry takes the place of one of the same index, and of all behind that.
                self.newer.split_off(&index);
                if index > applied {
                    self.newer.insert(index, kind == 0 && changes(request));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a request is one that a store of ours would have to take.
fn changes(request: &[u8]) -> bool {
    Fields(request).any(|field| field.is_none_or(|(number, _)| !PASSED_OVER.contains(&number)))
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

/// The fields of a protobuf message; `None` for what is no field, and nothing behind it.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut take = || {
            let tag = varint::take(&mut self.0)?;
            let field = match tag & 7 {
                0 => Field::Number(varint::take(&mut self.0)?),
                2 => Field::Bytes(varint::take_bytes(&mut self.0)?),
                _ => return None,
            };
            Some((tag >> 3, field))
        };
        let field = take();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn newer(folder: &Path, applied: u64) -> Result<u64, Error> {
        read(folder, applied).map(|summary| {
            assert_eq!((summary.member_id, summary.cluster_id), (7, 9));
            summary.newer
        })
    }

    #[test]
    fn entries_behind_the_database_are_counted() {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let folder = folder.path();
        assert!(matches!(read(folder, 0), Err(Error::Missing(_))));
        let mut first = Segment::after(0);
        first.entry(1, &put());
        first.entry(2, &put());
        // The cluster's version, which we take from nobody.
        first.entry(3, &message(&[], Some((1300, b"3.7.0"))));
        first.entry(4, &[]);
        first.write(folder, 0);
        let mut second = Segment::after(first.crc);
        second.entry(5, &put());
        second.write(folder, 1);
        std::fs::write(folder.join("2.tmp"), b"to come").expect("there is room");
        assert_eq!(newer(folder, 0).unwrap(), 3);
        assert_eq!(newer(folder, 2).unwrap(), 1);
        assert_eq!(newer(folder, 5).unwrap(), 0);
        // In the place of the fourth, and the fifth is gone with it.
        second.entry(4, &put());
        second.write(folder, 1);
        assert_eq!(newer(folder, 4).unwrap(), 0);
        assert_eq!(newer(folder, 3).unwrap(), 1);
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
