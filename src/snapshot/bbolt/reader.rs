//! Reads a bbolt file that nobody vouches for.
//!
//! Nothing in the file is believed: each page must say that it is itself, elements lie within it
//! one behind the other, keys ascend and stay between those of the branches above, and no page is
//! reached twice. So a walk ends, whatever the bytes are, takes memory for a page a level and a
//! bit a page, and what it hands out is what bbolt would. Memory for a page that takes others behind
//! it is taken once its elements are seen to reach into the last of them. The first thing that is
//! wrong ends the walk, with the page and what is wrong with it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{
    BRANCH, BUCKET, BUCKET_HEADER_BYTES, ELEMENT_BYTES, FREELIST, HEADER_BYTES, KEY_BYTES_MAX,
    LEAF, MAGIC, META, META_BYTES, NO_FREELIST, VERSION, checksum,
};

/// Sizes of a page that an operating system has.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=64 << 10;

/// The most that one page and those behind it take: far more than a request of etcd's.
const SPAN_BYTES_MAX: u64 = 512 << 20;

/// The same for a branch, which holds keys alone.
const BRANCH_BYTES_MAX: u64 = 1 << 20;

/// Levels of a tree: of the fullest file there are eight.
const DEPTH_MAX: usize = 32;

/// Buckets of a file: etcd has ten.
const BUCKETS_MAX: usize = 64;

/// Pages that share one allocation of the marks.
const MARKS: u64 = 1 << 15;

/// Where a file's bytes come from.
pub trait Source {
    /// How many there are.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset` on.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl Source for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).ok();
        let found = offset.and_then(|at| self.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no bbolt file, or not one that is whole.
    #[error("{0}")]
    File(&'static str),
    /// It ends too early.
    #[error("the file ends after {found} bytes, of {needed}")]
    Cut {
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        needed: u64,
    },
    /// A page holds what bbolt never writes.
    #[error("page {page}: {what}")]
    Page {
        /// Its number.
        page: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn wrong<T>(page: u64, what: &'static str) -> Result<T, Error> {
    Err(Error::Page { page, what })
}

/// An open file: see the module.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    meta: Meta,
}

/// What the newer of the two meta pages says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    page_bytes: usize,
    root: u64,
    freelist: u64,
    pages: u64,
    txid: u64,
}

/// The pages that one pass over the file has been to.
#[derive(Debug, Default)]
pub struct Seen(HashMap<u64, Box<[u64; MARKS as usize / 64]>>);

impl Seen {
    /// Marks a page; whether it was not marked before.
    fn mark(&mut self, page: u64) -> bool {
        let (words, bit) = (self.0.entry(page / MARKS), page % MARKS);
        let words = words.or_insert_with(|| Box::new([0; MARKS as usize / 64]));
        let word = &mut words[bit as usize / 64];
        let before = *word;
        *word |= 1 << (bit % 64);
        *word != before
    }

    fn holds(&self, page: u64) -> bool {
        let bit = page % MARKS;
        self.0
            .get(&(page / MARKS))
            .is_some_and(|words| words[bit as usize / 64] & 1 << (bit % 64) != 0)
    }
}

/// A bucket as the root lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: Vec<u8>,
    /// The page of its row, for messages.
    row_page: u64,
    root: Root,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    Page(u64),
    Inline(Vec<u8>),
}

impl<S: Source> Reader<S> {
    /// Looks at the meta pages. The file may be longer than its pages: files grow ahead.
    pub fn open(source: S) -> Result<Reader<S>, Error> {
        let size = source.size()?;
        let first = read_meta(&source, size, 0, None)?;
        let second = match first {
            Some(first) => read_meta(&source, size, first.page_bytes as u64, Some(first))?,
            None => {
                let places = (0..).map(|shift| 512u64 << shift);
                let places = places.take_while(|place| *place <= *PAGE_BYTES.end() as u64);
                let mut found = None;
                for place in places {
                    let meta = read_meta(&source, size, place, None)?;
                    found = found.or(meta.filter(|meta| meta.page_bytes as u64 == place));
                }
                found
            }
        };
        let meta = match (first, second) {
            (Some(first), Some(second)) if second.txid > first.txid => second,
            (Some(meta), _) | (None, Some(meta)) => meta,
            (None, None) => {
                return Err(Error::File("not a bbolt file: neither meta page is sound"));
            }
        };
        let needed = meta.pages.checked_mul(meta.page_bytes as u64);
        match needed {
            Some(needed) if needed <= size => {}
            _ => {
                return Err(Error::Cut {
                    found: size,
                    needed: needed.unwrap_or(u64::MAX),
                });
            }
        }
        if !(2..meta.pages).contains(&meta.root) {
            return Err(Error::File("the root lies outside of the file"));
        }
        if meta.freelist != NO_FREELIST && !(2..meta.pages).contains(&meta.freelist) {
            return Err(Error::File(
                "the list of free pages lies outside of the file",
            ));
        }
        Ok(Reader { source, meta })
    }

    /// Bytes that the database takes of the file.
    pub fn bytes(&self) -> u64 {
        self.meta.pages * self.meta.page_bytes as u64
    }

    /// Where the bytes come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// All buckets, in the order of their names.
    pub fn buckets(&self, seen: &mut Seen) -> Result<Vec<Bucket>, Error> {
        let mut buckets = Vec::new();
        let mut walk = self.walk(Root::Page(self.meta.root), self.meta.root, BUCKET, seen)?;
        while let Some((name, value)) = walk.next()? {
            // One byte too many shows that it is too long.
            let most = value
                .len()
                .min(BUCKET_HEADER_BYTES + self.meta.page_bytes + 1);
            let (name, value) = (name.to_vec(), value[..most].to_vec());
            let row_page = walk.page();
            let Some((root, page)) = value
                .split_at_checked(BUCKET_HEADER_BYTES)
                .map(|(header, page)| (u64_at(header, 0), page))
            else {
                return wrong(row_page, "the row of a bucket is too short");
            };
            let root = match root {
                // bbolt has it below a quarter of a page.
                0 if page.len() <= self.meta.page_bytes => Root::Inline(page.to_vec()),
                root if page.is_empty() => Root::Page(root),
                _ => return wrong(row_page, "the row of a bucket is too long"),
            };
            if buckets.len() == BUCKETS_MAX {
                return wrong(row_page, "there are more buckets than etcd ever has");
            }
            buckets.push(Bucket {
                name,
                row_page,
                root,
            });
        }
        Ok(buckets)
    }

    /// The rows of a bucket, in the order of their keys.
    pub fn rows<'a>(&'a self, bucket: &Bucket, seen: &'a mut Seen) -> Result<Rows<'a, S>, Error> {
        self.walk(bucket.root.clone(), bucket.row_page, 0, seen)
    }

    /// After a pass over all buckets: whether none of the pages it has been to is listed as free.
    pub fn check_freelist(&self, seen: &mut Seen) -> Result<(), Error> {
        let id = self.meta.freelist;
        if id == NO_FREELIST {
            return Ok(());
        }
        let page = self.read_page(id, FREELIST, seen)?;
        let mut ids = page.bytes[HEADER_BYTES..].chunks_exact(8);
        let mut count = page.count as u64;
        if page.count == 0xFFFF {
            count = ids.next().map_or(0, |first| u64_at(first, 0));
        }
        if count > ids.len() as u64 {
            return wrong(id, "the list of free pages is longer than its page");
        }
        let mut last = 0;
        for free in ids.take(count as usize).map(|bytes| u64_at(bytes, 0)) {
            if free <= last || !(2..self.meta.pages).contains(&free) {
                return wrong(id, "the list of free pages is out of order");
            }
            if seen.holds(free) {
                return wrong(free, "it is listed as free, and is in use");
            }
            last = free;
        }
        Ok(())
    }

    fn walk<'a>(
        &'a self,
        root: Root,
        row_page: u64,
        flags: u32,
        seen: &'a mut Seen,
    ) -> Result<Rows<'a, S>, Error> {
        let page = match root {
            Root::Page(id) => self.read_page(id, BRANCH | LEAF, seen)?,
            Root::Inline(bytes) => Page::read(row_page, 0, LEAF, bytes)?,
        };
        Ok(Rows {
            reader: self,
            seen,
            flags,
            path: vec![Frame {
                page,
                next: 0,
                data_end: 0,
                least: Vec::new(),
                bound: None,
            }],
        })
    }

    /// Reads the page `id`, which must be of one of `kinds` and not have been met before.
    fn read_page(&self, id: u64, kinds: u16, seen: &mut Seen) -> Result<Page, Error> {
        if !(2..self.meta.pages).contains(&id) {
            return wrong(id, "it lies outside of the file, and is referred to");
        }
        let page_bytes = self.meta.page_bytes as u64;
        let mut header = [0; HEADER_BYTES];
        self.source.read_at(&mut header, id * page_bytes)?;
        let overflow = u64::from(u32_at(&header, 12));
        if overflow >= self.meta.pages - id {
            return wrong(id, "it reaches beyond the end of the file");
        }
        let bytes = (overflow + 1) * page_bytes;
        let most = if u16_at(&header, 8) == BRANCH {
            BRANCH_BYTES_MAX
        } else {
            SPAN_BYTES_MAX
        };
        if bytes > most.max(page_bytes) {
            return wrong(id, "it is larger than any that etcd writes");
        }
        if overflow > 0 && u16_at(&header, 8) != FREELIST {
            // An older bbolt takes one page more for what ends with a page.
            let needed = self.reach(id, &header)?;
            if !(bytes - page_bytes..=bytes).contains(&needed) {
                return wrong(id, "it takes more pages than its elements need, or fewer");
            }
        }
        for page in id..=id + overflow {
            if !seen.mark(page) {
                return wrong(page, "it is reached twice");
            }
        }
        let mut whole = vec![0; bytes as usize];
        self.source.read_at(&mut whole, id * page_bytes)?;
        Page::read(id, id, kinds, whole)
    }

    /// Where the data of the last element of page `id` end, as the element says.
    fn reach(&self, id: u64, header: &[u8; HEADER_BYTES]) -> Result<u64, Error> {
        let Some(before) = u64::from(u16_at(header, 10)).checked_sub(1) else {
            return Ok(HEADER_BYTES as u64);
        };
        let at = HEADER_BYTES as u64 + before * ELEMENT_BYTES as u64;
        let mut element = [0; ELEMENT_BYTES];
        let offset = id * self.meta.page_bytes as u64 + at;
        // The table of the fullest page is longer than some files.
        if offset + ELEMENT_BYTES as u64 > self.bytes() {
            return wrong(id, "its elements reach beyond its end");
        }
        self.source.read_at(&mut element, offset)?;
        let fields: &[usize] = match u16_at(header, 8) {
            BRANCH => &[0, 4],
            _ => &[4, 8, 12],
        };
        let lengths = fields.iter().map(|at| u64::from(u32_at(&element, *at)));
        Ok(at + lengths.sum::<u64>())
    }
}

/// Reads a meta page at `offset`, which is the second if there is a `first`; `None` if it is not
/// sound.
fn read_meta(
    source: &impl Source,
    size: u64,
    offset: u64,
    first: Option<Meta>,
) -> Result<Option<Meta>, Error> {
    let mut page = [0; HEADER_BYTES + META_BYTES];
    if size < offset + page.len() as u64 {
        return Ok(None);
    }
    source.read_at(&mut page, offset)?;
    let meta = &page[HEADER_BYTES..];
    let sound = u16_at(&page, 8) == META
        && u64_at(&page, 0) == u64::from(offset > 0)
        && u32_at(meta, 0) == MAGIC
        && u32_at(meta, 4) == VERSION
        && u64_at(meta, 56) == checksum(&meta[..56]);
    if !sound {
        return Ok(None);
    }
    let found = Meta {
        page_bytes: u32_at(meta, 8) as usize,
        root: u64_at(meta, 16),
        freelist: u64_at(meta, 32),
        pages: u64_at(meta, 40),
        txid: u64_at(meta, 48),
    };
    let known = PAGE_BYTES.contains(&found.page_bytes) && found.page_bytes.is_power_of_two();
    if !known || first.is_some_and(|first| first.page_bytes != found.page_bytes) {
        return Err(Error::File("its pages have a size that no system has"));
    }
    Ok(Some(found))
}

/// One page, its elements within bounds as they are asked for.
#[derive(Debug)]
struct Page {
    /// For messages.
    id: u64,
    is_branch: bool,
    count: usize,
    bytes: Vec<u8>,
}

impl Page {
    fn read(id: u64, says: u64, kinds: u16, bytes: Vec<u8>) -> Result<Page, Error> {
        if bytes.len() < HEADER_BYTES {
            return wrong(id, "an inline bucket is too short for a page");
        }
        let flags = u16_at(&bytes, 8);
        if u64_at(&bytes, 0) != says {
            return wrong(id, "it says that it is another page");
        }
        if !matches!(flags, BRANCH | LEAF | FREELIST) || flags & kinds == 0 {
            return wrong(id, "it is of another kind than it should be");
        }
        let count = u16_at(&bytes, 10) as usize;
        if flags != FREELIST && HEADER_BYTES + count * ELEMENT_BYTES > bytes.len() {
            return wrong(id, "its elements reach beyond its end");
        }
        Ok(Page {
            id,
            is_branch: flags == BRANCH,
            count,
            bytes,
        })
    }

    /// Where the key of an element begins and ends, and its value; and what else it says: flags of
    /// a row, or a child. Its data begin at or behind `data_end`.
    fn element(&self, number: usize, data_end: usize) -> Result<(usize, usize, usize, u64), Error> {
        let at = HEADER_BYTES + number * ELEMENT_BYTES;
        let element = &self.bytes[at..][..ELEMENT_BYTES];
        let field = |place| u32_at(element, place) as u64;
        let (position, key_bytes, value_bytes, other) = if self.is_branch {
            (field(0), field(4), 0, u64_at(element, 8))
        } else {
            (field(4), field(8), field(12), field(0))
        };
        let key_at = at as u64 + position;
        let value_at = key_at + key_bytes;
        let end = value_at + value_bytes;
        let table_end = HEADER_BYTES + self.count * ELEMENT_BYTES;
        if key_at < data_end.max(table_end) as u64 || end > self.bytes.len() as u64 {
            return wrong(self.id, "an element lies outside of its place");
        }
        if !(1..=KEY_BYTES_MAX as u64).contains(&key_bytes) {
            return wrong(self.id, "a key has a length that bbolt does not take");
        }
        Ok((key_at as usize, value_at as usize, end as usize, other))
    }
}

/// A key and its value.
pub type Row<'a> = (&'a [u8], &'a [u8]);

/// A walk over the rows of a bucket.
#[derive(Debug)]
pub struct Rows<'a, S> {
    reader: &'a Reader<S>,
    seen: &'a mut Seen,
    /// What every row's flags must be.
    flags: u32,
    /// The page that the walk is in, and those above it.
    path: Vec<Frame>,
}

#[derive(Debug)]
struct Frame {
    page: Page,
    next: usize,
    /// Where the data of the last element ended.
    data_end: usize,
    /// What the next key must not be below, and must be below. The last key, once there is one, is
    /// below the next.
    least: Vec<u8>,
    bound: Option<Vec<u8>>,
}

impl Frame {
    /// Takes the next element: see [`Page::element`].
    fn step(&mut self) -> Result<(usize, usize, usize, u64), Error> {
        let element = self.page.element(self.next, self.data_end)?;
        let (key_at, value_at, end, _) = element;
        let key = &self.page.bytes[key_at..value_at];
        let ascends = if self.next == 0 {
            key >= &self.least[..]
        } else {
            key > &self.least[..]
        };
        if !ascends || self.bound.as_ref().is_some_and(|bound| key >= &bound[..]) {
            return wrong(self.page.id, "its keys are out of order");
        }
        self.least.clear();
        self.least.extend_from_slice(key);
        self.data_end = end;
        self.next += 1;
        Ok(element)
    }
}

impl<S: Source> Rows<'_, S> {
    /// The page that the last row lies in.
    fn page(&self) -> u64 {
        self.path.last().map_or(0, |frame| frame.page.id)
    }

    /// The page that the next row lies in; behind the last row it is 0.
    pub fn next_page(&mut self) -> Result<u64, Error> {
        self.descend()?;
        Ok(self.page())
    }

    /// The next row: its key and its value.
    #[allow(
        clippy::should_implement_trait,
        reason = "a row is lent until the next is asked for"
    )]
    pub fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        self.descend()?;
        let Some(frame) = self.path.last_mut() else {
            return Ok(None);
        };
        let (key_at, value_at, end, flags) = frame.step()?;
        if flags != u64::from(self.flags) {
            return wrong(
                frame.page.id,
                "a bucket stands where a row should, or a row for a bucket",
            );
        }
        let bytes = &frame.page.bytes;
        Ok(Some((&bytes[key_at..value_at], &bytes[value_at..end])))
    }

    /// Goes to the leaf that the next row lies in; behind the last row there is none.
    fn descend(&mut self) -> Result<(), Error> {
        loop {
            let depth = self.path.len();
            let Some(frame) = self.path.last_mut() else {
                return Ok(());
            };
            let id = frame.page.id;
            if frame.next == frame.page.count {
                // Only a bucket's own page may be empty.
                if frame.page.count == 0 && (depth > 1 || frame.page.is_branch) {
                    return wrong(id, "it is empty");
                }
                self.path.pop();
                continue;
            }
            if !frame.page.is_branch {
                return Ok(());
            }
            let (_, _, end, child) = frame.step()?;
            if depth == DEPTH_MAX {
                return wrong(id, "the tree is deeper than any that etcd writes");
            }
            let least = frame.least.clone();
            let bound = if frame.next < frame.page.count {
                let (key_at, value_at, _, _) = frame.page.element(frame.next, end)?;
                Some(frame.page.bytes[key_at..value_at].to_vec())
            } else {
                frame.bound.clone()
            };
            let page = self.reader.read_page(child, BRANCH | LEAF, self.seen)?;
            self.path.push(Frame {
                page,
                next: 0,
                data_end: 0,
                least,
                bound,
            });
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
