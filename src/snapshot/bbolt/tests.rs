//! What is written is read again; what is bent is refused, and never more.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;

use super::reader::{Error, Reader, Seen, Source};
use super::writer::{PAGE_BYTES, Size, Writer};
use super::{HEADER_BYTES, checksum};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Buckets = BTreeMap<Vec<u8>, Rows>;

fn write_to<W: std::io::Write>(mut writer: Writer<W>, buckets: &Buckets) -> Size {
    for (name, rows) in buckets {
        writer.bucket(name).expect("memory takes all");
        for (key, value) in rows {
            writer.put(key, value).expect("memory takes all");
        }
    }
    writer.finish().expect("memory takes all")
}

fn write(buckets: &Buckets) -> Vec<u8> {
    let size = write_to(Writer::sizing(), buckets);
    let mut file = Vec::new();
    let again = write_to(
        Writer::begin(&mut file, size).expect("memory takes all"),
        buckets,
    );
    assert_eq!(again, size);
    assert_eq!(file.len() as u64, size.bytes());
    file
}

fn read(file: &[u8]) -> Result<Buckets, Error> {
    let reader = Reader::open(file)?;
    let mut seen = Seen::default();
    let mut all = Buckets::new();
    for bucket in reader.buckets(&mut seen)? {
        let mut found = Rows::new();
        let mut rows = reader.rows(&bucket, &mut seen)?;
        while let Some((key, value)) = rows.next()? {
            found.insert(key.to_vec(), value.to_vec());
        }
        all.insert(bucket.name, found);
    }
    reader.check_freelist(&mut seen)?;
    Ok(all)
}

fn many(rows: u32, value_bytes: usize) -> Rows {
    let row = |number: u32| {
        let value = vec![number as u8; value_bytes];
        (number.to_be_bytes().to_vec(), value)
    };
    (0..rows).map(row).collect()
}

#[test]
fn files_of_all_shapes_come_back() {
    for rows in [0, 1, 2, 40, 41, 400, 20_000] {
        for value_bytes in [0, 20, 1000, 5000] {
            let rows = rows.min(20_000_000 / (value_bytes as u32 + 100));
            let buckets = Buckets::from([
                (b"a".to_vec(), Rows::new()),
                (b"key".to_vec(), many(rows, value_bytes)),
                (b"z".to_vec(), many(1, 100_000)),
            ]);
            let file = write(&buckets);
            assert!(read(&file).expect("it is sound") == buckets, "{rows} rows");
        }
    }
    assert_eq!(read(&write(&Buckets::new())).unwrap(), Buckets::new());
}

#[test]
fn a_small_bucket_lies_in_its_row() {
    let buckets = Buckets::from([(b"b".to_vec(), many(3, 5))]);
    assert_eq!(write(&buckets).len(), 3 * PAGE_BYTES);
    let buckets = Buckets::from([(b"b".to_vec(), many(100, 5))]);
    assert_eq!(write(&buckets).len(), 4 * PAGE_BYTES);
}

/// Long keys, so that the tree is deep.
#[test]
fn deep_trees_come_back() {
    let key = |number: u32| {
        let mut key = number.to_be_bytes().to_vec();
        key.resize(3000, b'k');
        (key, Vec::new())
    };
    let buckets = Buckets::from([(b"b".to_vec(), (0..500).map(key).collect())]);
    assert!(read(&write(&buckets)).expect("it is sound") == buckets);
}

#[test]
fn a_second_meta_page_stands_in_for_the_first() {
    let buckets = Buckets::from([(b"b".to_vec(), many(400, 5))]);
    for broken in [0, 1] {
        let mut file = write(&buckets);
        file[broken * PAGE_BYTES + HEADER_BYTES] ^= 1;
        assert_eq!(read(&file).expect("one is sound"), buckets);
    }
    let mut file = write(&buckets);
    file[HEADER_BYTES] ^= 1;
    file[PAGE_BYTES + HEADER_BYTES] ^= 1;
    assert!(matches!(read(&file), Err(Error::File(_))));
}

/// Sets bytes of the first meta page, and its checksum right again.
fn bend_meta(file: &mut [u8], at: usize, bytes: &[u8]) {
    for page in 0..2 {
        let meta = &mut file[page * PAGE_BYTES + HEADER_BYTES..][..64];
        meta[at..at + bytes.len()].copy_from_slice(bytes);
        let sum = checksum(&meta[..56]);
        meta[56..].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn each_hostile_file_is_named() {
    let buckets = Buckets::from([(b"b".to_vec(), many(10_000, 20))]);
    let sound = write(&buckets);
    let pages = (sound.len() / PAGE_BYTES) as u64;
    // The bucket's root, a branch, lies before the root.
    let branch = (pages as usize - 2) * PAGE_BYTES;
    let leaf = 2 * PAGE_BYTES;
    let u64s = |number: u64| number.to_le_bytes().to_vec();
    let u32s = |number: u32| number.to_le_bytes().to_vec();
    let u16s = |number: u16| number.to_le_bytes().to_vec();
    let bends: Vec<(&str, usize, Vec<u8>)> = vec![
        ("another page", leaf, u64s(7)),
        ("another kind", leaf + 8, u16s(0x10)),
        ("another kind", leaf + 8, u16s(0x03)),
        ("elements reach beyond", leaf + 10, u16s(0xFFFE)),
        ("is empty", leaf + 10, u16s(0)),
        ("beyond the end", leaf + 12, u32s(u32::MAX)),
        // It takes the page behind it, as a full page of an older bbolt does; and more.
        ("reached twice", leaf + 12, u32s(1)),
        ("more pages than its elements", leaf + 12, u32s(2)),
        ("stands where a row", leaf + 16, u32s(1)),
        ("outside of its place", leaf + 20, u32s(u32::MAX)),
        ("outside of its place", leaf + 20, u32s(0)),
        ("outside of its place", leaf + 24, u32s(u32::MAX)),
        ("outside of its place", leaf + 28, u32s(u32::MAX)),
        ("a key has a length", leaf + 24, u32s(0)),
        ("outside of the file", branch + 24, u64s(1)),
        ("outside of the file", branch + 24, u64s(u64::MAX)),
        ("another kind", branch + 8, u16s(4)),
        // A child twice; the branch as its own child.
        ("reached twice", branch + 16 + 24, u64s(2)),
        ("reached twice", branch + 24, u64s(pages - 2)),
        ("is empty", branch + 10, u16s(0)),
    ];
    for (what, at, bytes) in bends {
        let mut file = sound.clone();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        let error = read(&file).expect_err(what).to_string();
        assert!(
            error.contains(what) && error.contains("page "),
            "{what}: {error}"
        );
    }
    let metas: [(&str, usize, Vec<u8>); 6] = [
        ("size that no system", 8, u32s(4095)),
        ("size that no system", 8, u32s(0)),
        ("the root lies outside", 16, u64s(0)),
        ("the root lies outside", 16, u64s(pages)),
        ("free pages lies outside", 32, u64s(1)),
        ("the file ends after", 40, u64s(u64::MAX)),
    ];
    for (what, at, bytes) in metas {
        let mut file = sound.clone();
        bend_meta(&mut file, at, &bytes);
        let error = read(&file).expect_err(what).to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    for length in [0, 1, 79, PAGE_BYTES, 2 * PAGE_BYTES, sound.len() - 1] {
        assert!(read(&sound[..length]).is_err(), "cut to {length}");
    }
}

/// A row that its reader refuses is named by the page that it lies in.
#[test]
fn the_page_of_the_next_row_is_told() {
    let file = write(&Buckets::from([(b"b".to_vec(), many(400, 20))]));
    let reader = Reader::open(&file[..]).expect("it is sound");
    let mut seen = Seen::default();
    let buckets = reader.buckets(&mut seen).expect("it is sound");
    let mut rows = reader.rows(&buckets[0], &mut seen).expect("it is sound");
    // A leaf has 102 of them.
    for number in 0..400 {
        assert_eq!(rows.next_page().expect("it is sound"), 2 + number / 102);
        assert!(rows.next().expect("it is sound").is_some());
    }
    rows.next_page().expect("it is sound");
    assert_eq!(rows.next().expect("it is sound"), None);
}

/// A file of holes: hardly any of it is there.
struct Holes {
    pages: BTreeMap<u64, Vec<u8>>,
    size: u64,
    /// The most that was read at once.
    largest: Cell<usize>,
}

impl Source for Holes {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.largest.set(self.largest.get().max(buf.len()));
        buf.fill(0);
        let page = PAGE_BYTES as u64;
        if let Some(bytes) = self.pages.get(&(offset / page)) {
            let there = &bytes[(offset % page) as usize..];
            let length = there.len().min(buf.len());
            buf[..length].copy_from_slice(&there[..length]);
        }
        Ok(())
    }
}

impl Holes {
    /// A root of one leaf that takes `overflow` pages more, and whose one row, a bucket, has a value of
    /// `value_bytes`.
    fn with_bucket(overflow: u32, value_bytes: u32) -> Holes {
        let size = Size {
            pages: 3 + u64::from(overflow),
            root: 2,
        };
        let mut leaf = vec![0; PAGE_BYTES];
        for (at, number) in [(0, 2), (8, 1 << 16 | 2), (12, overflow)] {
            leaf[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
        }
        for (at, number) in [(16, 1), (20, 16), (24, 1), (28, value_bytes)] {
            leaf[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
        }
        leaf[32] = b'b';
        // The inline page is a leaf.
        leaf[33 + 16 + 8] = 2;
        let mut front = Vec::new();
        let writer = Writer::begin(&mut front, size).expect("memory takes all");
        drop(writer);
        let (first, second) = front.split_at(PAGE_BYTES);
        Holes {
            pages: BTreeMap::from([(0, first.to_vec()), (1, second.to_vec()), (2, leaf)]),
            size: size.bytes(),
            largest: Cell::default(),
        }
    }

    fn buckets(self) -> (Result<usize, Error>, usize) {
        let reader = Reader::open(self).expect("its meta pages are sound");
        let buckets = reader.buckets(&mut Seen::default());
        let largest = reader.source().largest.get();
        (buckets.map(|buckets| buckets.len()), largest)
    }
}

/// What a page claims is held against what is in it before memory is taken.
#[test]
fn memory_is_not_taken_for_claims() {
    let most = (512 << 20) / PAGE_BYTES as u32 - 1;
    let (buckets, _) = Holes::with_bucket(0, 32).buckets();
    assert_eq!(buckets.expect("it is sound"), 1);
    let (buckets, largest) = Holes::with_bucket(most, 32).buckets();
    let error = buckets.expect_err("the page has nothing there");
    assert!(
        error.to_string().contains("more pages than its elements"),
        "{error}"
    );
    assert!(largest <= PAGE_BYTES, "{largest} bytes were read at once");
    // The rows of a bucket do not lie in the root.
    for (overflow, value_bytes) in [(1, 8000), (100, 100 * 4096)] {
        let (buckets, _) = Holes::with_bucket(overflow, value_bytes).buckets();
        let error = buckets.expect_err("that is no inline bucket");
        assert!(error.to_string().contains("too long"), "{error}");
    }
}

#[test]
fn a_list_of_free_pages_is_held_against_what_is_in_use() {
    let buckets = Buckets::from([(b"b".to_vec(), many(400, 20))]);
    let sound = write(&buckets);
    let pages = (sound.len() / PAGE_BYTES) as u64;
    let with_free = |ids: &[u64]| {
        let mut file = sound.clone();
        let mut page = vec![0; PAGE_BYTES];
        page[..8].copy_from_slice(&pages.to_le_bytes());
        page[8..10].copy_from_slice(&0x10u16.to_le_bytes());
        page[10..12].copy_from_slice(&(ids.len() as u16).to_le_bytes());
        for (place, id) in ids.iter().enumerate() {
            page[16 + 8 * place..][..8].copy_from_slice(&id.to_le_bytes());
        }
        file.extend_from_slice(&page);
        file.extend_from_slice(&vec![0; PAGE_BYTES]);
        bend_meta(&mut file, 32, &pages.to_le_bytes());
        bend_meta(&mut file, 40, &(pages + 2).to_le_bytes());
        file
    };
    assert_eq!(read(&with_free(&[])).unwrap(), buckets);
    assert_eq!(read(&with_free(&[pages + 1])).unwrap(), buckets);
    for ids in [
        &[2][..],
        &[pages],
        &[pages + 2],
        &[0],
        &[pages + 1, pages + 1],
    ] {
        let error = read(&with_free(ids)).expect_err("a page in use is not free");
        assert!(matches!(error, Error::Page { .. }), "{error}");
    }
}

fn any_rows() -> impl Strategy<Value = Rows> {
    let key = prop::collection::vec(any::<u8>(), 1..40);
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..60),
        1 => (0..9000usize).prop_map(|length| vec![7; length]),
    ];
    prop::collection::btree_map(key, value, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_buckets_come_back(
        buckets in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..20), any_rows(), 0..6),
    ) {
        prop_assert_eq!(read(&write(&buckets)).unwrap(), buckets);
    }

    /// Reading ends, and does not panic.
    #[test]
    fn any_bend_is_an_error_or_other_rows(
        rows in 0..2000u32,
        bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = write(&Buckets::from([(b"b".to_vec(), many(rows, 9))]));
        for (place, byte) in bends {
            // Most of it beside the meta pages, whose checksum would refuse nearly all.
            let place = 2 * PAGE_BYTES + place.index(file.len() - 2 * PAGE_BYTES);
            file[place] = byte;
        }
        let _ = read(&file);
        let _ = read(&file[..cut.index(file.len())]);
    }
}
