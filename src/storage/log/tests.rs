//! Tests of the log: round trips, tears, damage, full disks, and a stop at each sync.

use proptest::prelude::*;

use super::source::PIECE_BYTES;
use super::*;
use crate::storage::disk::sim::{SimDisk, SplitMix};

const SEGMENT_BYTES: u64 = 4096;

type Batches = Vec<(u64, u64, Vec<u8>)>;

fn open(disk: &SimDisk, applied: u64) -> Result<(Log, Batches), Error> {
    let mut batches = Batches::new();
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
    };
    let log = Log::open(disk.folder("log"), settings, applied, &mut |batch| {
        batches.push((batch.number, batch.index, batch.rows.to_vec()));
        Ok(())
    })?;
    Ok((log, batches))
}

fn read(disk: &SimDisk, applied: u64) -> Result<(Summary, Batches), Error> {
    let mut batches = Batches::new();
    let summary = Log::read(disk.folder("log").as_ref(), applied, &mut |batch| {
        batches.push((batch.number, batch.index, batch.rows.to_vec()));
        Ok(())
    })?;
    Ok((summary, batches))
}

/// The rows of batch `number`: of many lengths, and some a multiple of the alignment.
fn rows(number: u64) -> Vec<u8> {
    let mut random = SplitMix(number);
    let length = random.below(700) as usize;
    (0..length).map(|_| random.draw() as u8).collect()
}

fn append(log: &mut Log, count: u64) -> Result<(), Error> {
    for _ in 0..count {
        let next = log.last_batch() + 1;
        assert_eq!(log.append(10 * next, &rows(next))?, next);
    }
    Ok(())
}

fn expected(numbers: std::ops::RangeInclusive<u64>) -> Batches {
    numbers
        .map(|number| (number, 10 * number, rows(number)))
        .collect()
}

/// A log of `count` batches, and the disk it lies on.
fn log_of(count: u64) -> (SimDisk, Log) {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk, 0).expect("an empty folder");
    append(&mut log, count).expect("there is room");
    (disk, log)
}

fn segment_names(disk: &SimDisk) -> Vec<String> {
    disk.folder("log").list().expect("the disk works")
}

fn bytes_of(disk: &SimDisk, name: &str) -> Vec<u8> {
    let file = disk.folder("log").open(name).expect("the segment is there");
    let mut bytes = vec![0; file.size().expect("the disk works") as usize];
    file.read_at(&mut bytes, 0).expect("all of it");
    bytes
}

fn write(disk: &SimDisk, name: &str, offset: u64, data: &[u8]) {
    let file = disk.folder("log").open(name).expect("the segment is there");
    file.write_at(data, offset).expect("the disk works");
    file.sync().expect("the disk works");
}

/// Where the batches of a segment lie: offset and bytes of each.
fn batches_in(bytes: &[u8], number: u64) -> Vec<(usize, usize)> {
    let Header::Ours { seed } = decode_header(bytes, number) else {
        panic!("a whole header");
    };
    let mut places = Vec::new();
    scan(&bytes, seed, None, 0, |at, batch| {
        places.push((at, frame_len(batch.rows.len())));
        Ok(())
    })
    .expect("nothing refuses");
    places
}

#[test]
fn batches_come_back_over_many_segments() {
    let (disk, log) = log_of(60);
    assert!(segment_names(&disk).len() > 4);
    drop(log);
    for applied in [0, 1, 30, 59, 60] {
        let (summary, batches) = read(&disk, applied).expect("it is whole");
        assert_eq!(batches, expected(applied + 1..=60));
        assert_eq!((summary.last_batch, summary.torn_bytes), (60, 0));
    }
    let (mut log, batches) = open(&disk, 0).expect("it is whole");
    assert_eq!(batches, expected(1..=60));
    append(&mut log, 10).expect("there is room");
    drop(log);
    assert_eq!(open(&disk, 20).expect("it is whole").1, expected(21..=70));
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let (disk, mut log) = log_of(3);
    let large = vec![7; 3 * SEGMENT_BYTES as usize];
    log.append(40, &large).expect("there is room");
    log.append(50, &rows(5)).expect("there is room");
    let (_, batches) = open(&disk, 0).expect("it is whole");
    let mut all = expected(1..=5);
    all[3].2 = large;
    assert_eq!(batches, all);
}

/// The zeros that a value ends with are not those of an unused segment.
#[test]
fn a_batch_that_ends_with_many_zeros_is_whole() {
    let (disk, mut log) = log_of(3);
    let mut zeros = vec![0; 3 * PIECE_BYTES];
    zeros[0] = 1;
    log.append(40, &zeros).expect("there is room");
    let (_, batches) = read(&disk, 3).expect("it is whole");
    assert_eq!(batches, [(4, 40, zeros)]);
}

/// Bytes, and how many were read at once at most.
struct Watched<'a>(&'a [u8], std::cell::Cell<usize>);

impl Source for Watched<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], at: usize) -> io::Result<()> {
        self.1.set(self.1.get().max(buf.len()));
        self.0.read_at(buf, at)
    }
}

/// However long a segment is, a start takes the memory of a piece, or of the largest batch.
#[test]
fn a_segment_is_read_piece_by_piece() {
    let mut bytes = encode_header(1, 5).to_vec();
    let seed = segment_seed(&bytes, 1).expect("it has a header");
    for (large, most) in [
        (0, PIECE_BYTES),
        (3 * PIECE_BYTES, 3 * PIECE_BYTES + FRAME_BYTES),
    ] {
        let lengths: Vec<_> = (0..40).map(|number| number * 4001).chain([large]).collect();
        bytes.truncate(HEADER_BYTES);
        for (number, length) in (1..).zip(&lengths) {
            let mut frame = Vec::new();
            encode_frame(&mut frame, seed, number, 1, &vec![1; *length]);
            bytes.extend_from_slice(&frame);
        }
        let end = bytes.len();
        bytes.resize(end + 4 * PIECE_BYTES, 0);
        let watched = Watched(&bytes, Default::default());
        let mut read = Vec::new();
        let scanned = scan(&watched, seed, None, 0, |_, batch| {
            assert!(batch.rows.iter().all(|byte| *byte == 1));
            read.push(batch.rows.len());
            Ok(())
        });
        let whole = Scan {
            end,
            torn_bytes: 0,
            later: None,
        };
        assert_eq!(scanned.expect("nothing refuses"), whole);
        assert_eq!(read, lengths);
        assert_eq!(watched.1.get(), most);
    }
}

/// However many bytes of the last batch reached the disk, those before it are whole.
#[test]
fn a_tail_torn_at_any_byte_gives_a_prefix() {
    let (disk, log) = log_of(20);
    drop(log);
    let name = segment_names(&disk).pop().expect("segments");
    let number = number_of(&name).expect("a segment");
    let bytes = bytes_of(&disk, &name);
    let (at, length) = *batches_in(&bytes, number).last().expect("a batch");
    let rows_end = at + FRAME_BYTES + rows(20).len();
    for kept in 0..length {
        let disk = disk.survivors(0);
        write(&disk, &name, (at + kept) as u64, &vec![0; length - kept]);
        let last = if at + kept >= rows_end { 20 } else { 19 };
        let (mut log, batches) = open(&disk, 0).expect("a torn tail is cut");
        assert_eq!(batches, expected(1..=last), "{kept} bytes of {length}");
        append(&mut log, 3).expect("there is room");
        let (_, batches) = open(&disk, 0).expect("the tear is gone");
        assert_eq!(batches, expected(1..=last + 3), "{kept} bytes of {length}");
    }
}

#[test]
fn a_flipped_byte_before_whole_batches_is_damage() {
    let (disk, log) = log_of(40);
    drop(log);
    let names = segment_names(&disk);
    for name in &names {
        let number = number_of(name).expect("a segment");
        let bytes = bytes_of(&disk, name);
        let places = batches_in(&bytes, number);
        let is_last = Some(name) == names.last();
        for (place, (at, length)) in places.iter().enumerate() {
            // The last of all may be torn, and padding is not looked at.
            if is_last && place + 1 == places.len() || *length == FRAME_BYTES {
                continue;
            }
            for offset in [0, 4, 8, 16, FRAME_BYTES] {
                let disk = disk.survivors(0);
                write(&disk, name, (at + offset) as u64, &[bytes[at + offset] ^ 4]);
                match open(&disk, 0) {
                    Err(Error::Damaged { file, offset, .. }) => {
                        assert_eq!((&file, offset), (name, *at as u64));
                    }
                    other => panic!("{name} {at} {offset}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_bad_header_before_batches_is_damage() {
    let (disk, log) = log_of(20);
    drop(log);
    for name in segment_names(&disk) {
        for offset in 0..HEADER_BYTES {
            let disk = disk.survivors(0);
            let byte = bytes_of(&disk, &name)[offset];
            write(&disk, &name, offset as u64, &[byte ^ 1]);
            match open(&disk, 0) {
                Err(Error::Damaged {
                    file, offset: 0, ..
                }) => assert_eq!(file, name),
                other => panic!("{name} {offset}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_newer_format_is_told() {
    let (disk, log) = log_of(2);
    drop(log);
    let name = segment_names(&disk).pop().expect("a segment");
    let mut header = encode_header(1, 5);
    header[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    let crc = header_crc(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    write(&disk, &name, 0, &header);
    match open(&disk, 0) {
        Err(Error::Newer { file, found }) => assert_eq!((file, found), (name, FORMAT + 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_segment_is_damage_unless_it_was_applied() {
    let (disk, log) = log_of(40);
    drop(log);
    let names = segment_names(&disk);
    let second = bytes_of(&disk, &names[1]);
    let number = number_of(&names[1]).expect("a segment");
    let first = batches_in(&bytes_of(&disk, &names[0]), number - 1).len() as u64;
    let last = first + batches_in(&second, number).len() as u64;
    disk.folder("log").remove(&names[1]).expect("it is there");
    for applied in [0, first, last - 1] {
        assert!(matches!(read(&disk, applied), Err(Error::Damaged { .. })));
    }
    // Segments are removed in no sure order.
    for applied in [last, last + 1] {
        let (_, batches) = read(&disk, applied).expect("nothing is missing");
        assert_eq!(batches, expected(applied + 1..=40));
    }
    disk.folder("log").remove(&names[0]).expect("it is there");
    assert!(matches!(read(&disk, last - 1), Err(Error::Damaged { .. })));
}

/// What a reused block holds of another segment is no batch of this one.
#[test]
fn a_batch_of_another_segment_is_never_accepted() {
    let (disk, log) = log_of(40);
    drop(log);
    let names = segment_names(&disk);
    let number = |name: &String| number_of(name).expect("a segment");
    let (from, to) = (&names[1], &names[2]);
    let bytes = bytes_of(&disk, from);
    let (at, length) = batches_in(&bytes, number(from))[0];
    let target = bytes_of(&disk, to);
    let Header::Ours { seed } = decode_header(&target, number(to)) else {
        panic!("a whole header");
    };
    assert!(decode_frame(&bytes[at..at + length], seed).is_none());
    let mut forged = target[..HEADER_BYTES].to_vec();
    forged.extend_from_slice(&bytes[at..]);
    let scanned = scan(&forged, seed, None, 0, |_, _| panic!("no batch is here"));
    let scanned = scanned.expect("nothing refuses");
    assert_eq!((scanned.end, scanned.later), (HEADER_BYTES, None));
}

#[test]
fn a_full_disk_at_a_new_segment_leaves_the_log_as_it_was() {
    let (disk, mut log) = log_of(1);
    disk.set_capacity(Some(disk.used_bytes()));
    let refused = loop {
        match append(&mut log, 1) {
            Ok(()) => {}
            Err(Error::NoSpace) => break log.last_batch(),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(refused > 1 && segment_names(&disk).len() == 1);
    assert!(matches!(append(&mut log, 1), Err(Error::NoSpace)));
    disk.set_capacity(None);
    append(&mut log, 20).expect("there is room again");
    drop(log);
    assert_eq!(open(&disk, 0).expect("whole").1, expected(1..=refused + 20));
}

#[test]
fn cutting_removes_segments_that_are_wholly_applied() {
    let (disk, log) = log_of(40);
    let segments = log.segments();
    let names = segment_names(&disk);
    let mut last = 0;
    for (place, name) in names.iter().enumerate() {
        let bytes = bytes_of(&disk, name);
        last += batches_in(&bytes, number_of(name).expect("a segment")).len() as u64;
        segments.cut(last - 1).expect("the disk works");
        assert_eq!(segment_names(&disk), names[place..]);
        segments.cut(last).expect("the disk works");
        // The one in use stays.
        let kept = (place + 1).min(names.len() - 1);
        assert_eq!(segment_names(&disk), names[kept..]);
    }
    assert_eq!(segments.bytes(), SEGMENT_BYTES);
    assert_eq!(open(&disk, last).expect("it is whole").1, []);
}

/// A server that crashes again and again does not fill the disk with segments it did not use.
#[test]
fn an_unused_part_of_a_segment_is_given_back() {
    let disk = SimDisk::new();
    for _ in 0..50 {
        let (mut log, _) = open(&disk, 0).expect("it is whole");
        log.append(1, b"a").expect("there is room");
        assert!(log.segments().bytes() <= SEGMENT_BYTES + 64 * 50);
    }
}

/// Wherever the disk stops, each batch that was acknowledged is there after, and no other but the
/// one under way; and so it is if the disk stops again while the log is opened.
#[test]
fn a_stop_at_any_sync_keeps_what_was_acknowledged() {
    let run = |disk: &SimDisk| {
        let mut acknowledged = 0;
        let result = (|| {
            for _ in 0..3 {
                let (mut log, _) = open(disk, 0)?;
                acknowledged = acknowledged.max(log.last_batch());
                for _ in 0..12 {
                    append(&mut log, 1)?;
                    acknowledged = log.last_batch();
                    if acknowledged % 16 == 0 {
                        log.segments().cut(0)?;
                    }
                }
            }
            Ok::<(), Error>(())
        })();
        (acknowledged, result.is_err())
    };
    let verify = |disk: &SimDisk, acknowledged: u64, story: &str| {
        let (_, batches) = read(disk, 0).unwrap_or_else(|error| panic!("{story}: {error}"));
        let last = batches.len() as u64;
        assert!((acknowledged..=acknowledged + 1).contains(&last), "{story}");
        assert_eq!(batches, expected(1..=last), "{story}");
        last
    };
    let mut stop = 0;
    loop {
        stop += 1;
        let disk = SimDisk::new();
        disk.stop_at_sync(stop);
        let (acknowledged, stopped) = run(&disk);
        if !stopped {
            assert!(stop > 40, "the disk stopped often: {stop}");
            break;
        }
        for seed in 0..8 {
            let story = format!("stop {stop}, seed {seed}");
            let disk = disk.survivors(seed);
            let last = verify(&disk, acknowledged, &story);
            for again in 1..=3 {
                let disk = disk.survivors(0);
                disk.stop_at_sync(again);
                let _ = open(&disk, 0);
                for seed in 0..2 {
                    let story = format!("{story}, again {again}, seed {seed}");
                    let disk = disk.survivors(seed);
                    assert_eq!(verify(&disk, last, &story), last, "{story}");
                    let (mut log, _) = open(&disk, 0).expect("it was read");
                    append(&mut log, 2).expect("there is room");
                    verify(&disk, last + 2, &story);
                }
            }
        }
    }
}

/// Bytes that look like batches at every place, as a client can send them. A CRC at each would take
/// days.
#[test]
fn a_hostile_tail_is_read_to_its_end() {
    let mut tail = Vec::new();
    for _ in 0..1 << 17 {
        tail.extend_from_slice(&5000u64.to_le_bytes());
    }
    assert_eq!(later::find(&tail, 1, Some(100), 0), None);
}

proptest! {
    #[test]
    fn no_bytes_make_a_scan_panic(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..400),
        seed in any::<u32>(), last in prop::option::of(any::<u64>()), applied in any::<u64>(),
    ) {
        let scanned = scan(&bytes, seed, last, applied, |_, _| Ok(())).expect("nothing refuses");
        prop_assert!(scanned.end <= bytes.len());
    }

    /// The quick search finds what computing every CRC finds.
    #[test]
    fn a_later_batch_is_found_wherever_it_lies(
        gap in 1..60usize, fill in any::<u8>(), behind in 0..200usize,
        number in 1..20u64, last in 0..10u64, rows in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut batch = Vec::new();
        encode_frame(&mut batch, 77, number, 1, &rows);
        let mut tail = vec![fill; gap * ALIGN];
        tail.extend_from_slice(&batch);
        tail.extend(vec![fill; behind]);
        let plausible = number >= last + 2 && number <= last + 1 + (gap * ALIGN / FRAME_BYTES) as u64;
        let expected = plausible.then_some(gap * ALIGN);
        prop_assert_eq!(later::find(&tail, 77, Some(last), 0), expected);
        prop_assert_eq!(later::find(&tail, 78, Some(last), 0), None);
    }

    /// A log folder of arbitrary files is refused or read, and never makes the program end.
    #[test]
    fn no_file_makes_opening_panic(
        tail in prop::collection::vec(any::<u8>(), 0..200), cut in 0..4096u64, applied in 0..40u64,
    ) {
        let (disk, log) = log_of(10);
        drop(log);
        for name in segment_names(&disk) {
            write(&disk, &name, cut, &tail);
        }
        if let Ok((_, batches)) = open(&disk, applied) {
            prop_assert!(batches.iter().all(|(number, ..)| *number > applied));
        }
    }
}
