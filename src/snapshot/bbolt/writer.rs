//! Writes a bbolt file front to back, from rows in order.
//!
//! ```text
//! row ─► open leaf ─► full: page n     ─► its first key and n ─► open branch ─► full: page m ─► …
//! ```
//! One node a level is open; a full one becomes the next page, and its place goes into the node
//! above. So pages stand in the order of the rows, branches among the leaves, and memory is that of
//! a page a level and one row, however large the file.
//!
//! The meta pages come first and say where the last page is. So the file is written twice: once
//! into nothing, for its [`Size`], and then with it. Equal rows give equal bytes.

use std::io::{self, Write};

use super::{
    BRANCH, BUCKET, BUCKET_HEADER_BYTES, ELEMENT_BYTES, HEADER_BYTES, KEY_BYTES_MAX, LEAF, MAGIC,
    META, META_BYTES, NO_FREELIST, VERSION, checksum,
};

/// The size of the pages that are written.
pub const PAGE_BYTES: usize = 4096;

/// A bucket whose page is no larger lies within its row of the root, as bbolt has it.
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;

/// A commit's number; that of the second meta page is one less.
const TXID: u64 = 2;

/// What the meta pages say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Pages of the file.
    pub pages: u64,
    /// The page of the root.
    pub root: u64,
}

impl Size {
    /// Bytes of the file.
    pub fn bytes(self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// See the module.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    foretold: Option<Size>,
    pages: u64,
    root: Tree,
    /// The bucket that is open, and its name.
    bucket: Option<(Vec<u8>, Tree)>,
}

impl Writer<io::Sink> {
    /// Writes into nothing, to learn the size.
    pub fn sizing() -> Writer<io::Sink> {
        Writer::new(io::sink(), None).expect("nothing is written")
    }
}

impl<W: Write> Writer<W> {
    /// Begins a file of `size`, as the same rows have come to before.
    pub fn begin(out: W, size: Size) -> io::Result<Writer<W>> {
        Writer::new(out, Some(size))
    }

    fn new(mut out: W, foretold: Option<Size>) -> io::Result<Writer<W>> {
        for page in 0..2 {
            out.write_all(&meta(page, foretold.unwrap_or_default()))?;
        }
        Ok(Writer {
            out,
            foretold,
            pages: 2,
            root: Tree::default(),
            bucket: None,
        })
    }

    /// Begins a bucket. Names come in byte order.
    pub fn bucket(&mut self, name: &[u8]) -> io::Result<()> {
        self.end_bucket()?;
        self.bucket = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds a row to the bucket. Keys come in byte order.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let (_, tree) = self.bucket.as_mut().expect("a bucket was begun");
        tree.put(&mut self.out, &mut self.pages, 0, key, value)
    }

    /// Ends the file; answers its size.
    pub fn finish(mut self) -> io::Result<Size> {
        self.end_bucket()?;
        let root = self.root.end(&mut self.out, &mut self.pages)?;
        self.out.flush()?;
        let size = Size {
            pages: self.pages,
            root,
        };
        assert!(
            self.foretold.is_none_or(|foretold| foretold == size),
            "the same rows come to the same size: {size:?} after {:?}",
            self.foretold
        );
        Ok(size)
    }

    fn end_bucket(&mut self) -> io::Result<()> {
        let Some((name, mut tree)) = self.bucket.take() else {
            return Ok(());
        };
        let mut row = Vec::with_capacity(BUCKET_HEADER_BYTES + INLINE_BYTES_MAX);
        match tree.inline() {
            Some(leaf) => {
                row.extend_from_slice(&[0; BUCKET_HEADER_BYTES]);
                leaf.write(&mut row, 0, 0)?;
            }
            None => {
                let root = tree.end(&mut self.out, &mut self.pages)?;
                row.extend_from_slice(&root.to_le_bytes());
                row.extend_from_slice(&[0; 8]);
            }
        }
        let (out, pages) = (&mut self.out, &mut self.pages);
        self.root.put(out, pages, BUCKET, &name, &row)
    }
}

/// A bucket's tree as far as it is open: the leaf, and the branches above it.
#[derive(Debug, Default)]
struct Tree {
    levels: Vec<Node>,
}

impl Tree {
    fn put(
        &mut self,
        out: &mut impl Write,
        pages: &mut u64,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> io::Result<()> {
        assert!(
            (1..=KEY_BYTES_MAX).contains(&key.len()),
            "bbolt takes keys of 1 to {KEY_BYTES_MAX} bytes"
        );
        if self.levels.is_empty() {
            self.levels.push(Node::default());
        }
        self.make_room(out, pages, 0, key.len() + value.len())?;
        self.levels[0].push(Kind::Row { flags }, key, value);
        Ok(())
    }

    /// Writes the node of `level` if it cannot take `bytes` more.
    fn make_room(
        &mut self,
        out: &mut impl Write,
        pages: &mut u64,
        level: usize,
        bytes: usize,
    ) -> io::Result<()> {
        // A branch with one child would not part anything.
        let least = if level == 0 { 1 } else { 2 };
        let node = &self.levels[level];
        if node.elements.len() < least || node.bytes() + ELEMENT_BYTES + bytes <= PAGE_BYTES {
            return Ok(());
        }
        let (key, page) = self.write_node(out, pages, level)?;
        self.put_child(out, pages, level + 1, &key, page)
    }

    fn put_child(
        &mut self,
        out: &mut impl Write,
        pages: &mut u64,
        level: usize,
        key: &[u8],
        page: u64,
    ) -> io::Result<()> {
        if self.levels.len() == level {
            self.levels.push(Node::default());
        }
        self.make_room(out, pages, level, key.len())?;
        self.levels[level].push(Kind::Child { page }, key, &[]);
        Ok(())
    }

    /// Writes the node of `level`; answers its first key and its page.
    fn write_node(
        &mut self,
        out: &mut impl Write,
        pages: &mut u64,
        level: usize,
    ) -> io::Result<(Vec<u8>, u64)> {
        let node = &mut self.levels[level];
        let (page, length) = (*pages, node.bytes());
        let taken = length.div_ceil(PAGE_BYTES);
        node.write(out, page, taken - 1)?;
        write_zeros(out, taken * PAGE_BYTES - length)?;
        *pages += taken as u64;
        let key = node.first_key().to_vec();
        node.clear();
        Ok((key, page))
    }

    /// The only node, if it is small enough to lie within its row.
    fn inline(&mut self) -> Option<&Node> {
        if self.levels.is_empty() {
            self.levels.push(Node::default());
        }
        match &self.levels[..] {
            [leaf] if leaf.bytes() <= INLINE_BYTES_MAX => Some(leaf),
            _ => None,
        }
    }

    /// Writes what is open; answers the root's page.
    fn end(&mut self, out: &mut impl Write, pages: &mut u64) -> io::Result<u64> {
        if self.levels.is_empty() {
            self.levels.push(Node::default());
        }
        let mut level = 0;
        loop {
            let (key, page) = self.write_node(out, pages, level)?;
            level += 1;
            if level == self.levels.len() {
                return Ok(page);
            }
            self.put_child(out, pages, level, &key, page)?;
        }
    }
}

/// What an element is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Row { flags: u32 },
    Child { page: u64 },
}

#[derive(Debug)]
struct Element {
    kind: Kind,
    key_bytes: u32,
    value_bytes: u32,
}

/// A page in the making: all its elements are of one kind.
#[derive(Debug, Default)]
struct Node {
    elements: Vec<Element>,
    /// Keys and values, one behind the other.
    data: Vec<u8>,
    last_key_at: usize,
}

impl Node {
    fn push(&mut self, kind: Kind, key: &[u8], value: &[u8]) {
        if let Some(last) = self.elements.last() {
            let last = &self.data[self.last_key_at..][..last.key_bytes as usize];
            assert!(last < key, "keys come in byte order");
        }
        self.last_key_at = self.data.len();
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
        self.elements.push(Element {
            kind,
            key_bytes: key.len() as u32,
            value_bytes: u32::try_from(value.len()).expect("a value fits a gRPC message"),
        });
    }

    fn first_key(&self) -> &[u8] {
        let length = self.elements.first().map_or(0, |first| first.key_bytes);
        &self.data[..length as usize]
    }

    fn bytes(&self) -> usize {
        HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.data.len()
    }

    fn write(&self, out: &mut impl Write, page: u64, overflow: usize) -> io::Result<()> {
        let flags = match self.elements.first().map(|first| first.kind) {
            Some(Kind::Child { .. }) => BRANCH,
            // An empty bucket is an empty leaf.
            Some(Kind::Row { .. }) | None => LEAF,
        };
        let mut table = Vec::with_capacity(HEADER_BYTES + self.elements.len() * ELEMENT_BYTES);
        table.extend_from_slice(&page.to_le_bytes());
        table.extend_from_slice(&flags.to_le_bytes());
        table.extend_from_slice(&(self.elements.len() as u16).to_le_bytes());
        table.extend_from_slice(&(overflow as u32).to_le_bytes());
        // Counted from the element itself.
        let mut position = self.elements.len() * ELEMENT_BYTES;
        for element in &self.elements {
            let (position_u32, key) = (position as u32, element.key_bytes);
            match element.kind {
                Kind::Row { flags } => {
                    for number in [flags, position_u32, key, element.value_bytes] {
                        table.extend_from_slice(&number.to_le_bytes());
                    }
                }
                Kind::Child { page } => {
                    table.extend_from_slice(&position_u32.to_le_bytes());
                    table.extend_from_slice(&key.to_le_bytes());
                    table.extend_from_slice(&page.to_le_bytes());
                }
            }
            position += (key + element.value_bytes) as usize;
            position -= ELEMENT_BYTES;
        }
        out.write_all(&table)?;
        out.write_all(&self.data)
    }

    fn clear(&mut self) {
        self.elements.clear();
        self.data.clear();
        // One large value must not be remembered.
        self.data.shrink_to(4 * PAGE_BYTES);
        self.last_key_at = 0;
    }
}

fn write_zeros(out: &mut impl Write, length: usize) -> io::Result<()> {
    out.write_all(&[0; PAGE_BYTES][..length])
}

fn meta(page: u64, size: Size) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    bytes[8..10].copy_from_slice(&META.to_le_bytes());
    let meta = &mut bytes[HEADER_BYTES..][..META_BYTES];
    meta[..4].copy_from_slice(&MAGIC.to_le_bytes());
    meta[4..8].copy_from_slice(&VERSION.to_le_bytes());
    meta[8..12].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    meta[16..24].copy_from_slice(&size.root.to_le_bytes());
    meta[32..40].copy_from_slice(&NO_FREELIST.to_le_bytes());
    meta[40..48].copy_from_slice(&size.pages.to_le_bytes());
    meta[48..56].copy_from_slice(&(TXID - page).to_le_bytes());
    let sum = checksum(&meta[..56]);
    meta[56..].copy_from_slice(&sum.to_le_bytes());
    bytes
}
