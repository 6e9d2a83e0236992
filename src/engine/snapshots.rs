//! Snapshots under way: from a thread that reads a view to a client, through memory or a file.
//!
//! ```text
//! view ─► long-read thread ─► queue ──────────────► client      while the client keeps up
//!                         └─► spool ─► read thread ─► client      from when it does not
//! ```
//! The thread waits for the client for [`PATIENCE`] in all; then it writes what is left into a file
//! without a name, that in the queue and what is little included, as fast as the disk takes it, and
//! lets the view go. So no client, however slow, holds a view or a thread for long, or memory. If the
//! disk has no room for the file, the thread waits longer, but not without end. When the client goes, the thread ends with the next piece, and the file is
//! gone with its last handle.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::{Engine, acquire};
use crate::clock::Clock;
use crate::mvcc::Error;
use crate::snapshot::bbolt::writer::Size;
use crate::snapshot::contents::{self, Member};
use crate::snapshot::{self, save};
use crate::storage;
use crate::storage::disk::{self, Disk, DiskFile};
use crate::storage::view::View;

/// Bytes of a piece; a multiple of a page.
pub const PIECE_BYTES: usize = 32 << 10;

/// Pieces that wait for the client in memory.
const PIECES_WAITING_MAX: usize = 64;

/// How long the thread waits for the client, in all, before it writes into a file.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same where there is no room for the file; past it the snapshot fails, unless there is room then.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// Room that must be left on the disk beside the file and as much as others have.
const MARGIN_BYTES: u64 = 256 << 20;

/// Unsynced bytes of the file: the log's syncs must not wait behind all of it.
const SYNC_EVERY_BYTES: u64 = 4 << 20;

/// Bytes read from the file at once: of a client that stops reading then, these stay in memory.
const READ_BYTES: usize = 8 * PIECE_BYTES;

/// Names of the files, which they have for a moment.
const SPOOL: &str = "snapshot.spool.";

/// Removes the files of a process that was killed at the wrong moment.
pub fn remove_spools(disk: &dyn Disk) -> io::Result<()> {
    for name in disk.list()? {
        if name.starts_with(SPOOL) {
            disk.remove(&name)?;
        }
    }
    Ok(())
}

/// A snapshot on its way to one client. Dropping it ends all that is done for it.
#[derive(Debug)]
pub struct Snapshot {
    engine: Arc<Engine>,
    pipe: Arc<Pipe>,
    size: Size,
    /// Bytes taken.
    taken: u64,
    /// Read from the file, and not yet taken.
    rest: Bytes,
}

impl Engine {
    /// Begins a snapshot of what is there now: answers once its size is known.
    pub async fn snapshot(self: &Arc<Self>, member: Member) -> Result<Snapshot, Error> {
        let pipe = Arc::new(Pipe::default());
        let mut snapshot = Snapshot {
            engine: Arc::clone(self),
            pipe: Arc::clone(&pipe),
            size: Size::default(),
            taken: 0,
            rest: Bytes::new(),
        };
        loop {
            let thread = acquire(&self.long_read_threads).await?;
            // Only now: who waits for a thread holds no view.
            let view = self.view();
            let producer = Producer {
                pipe: Arc::clone(&pipe),
                spools: Arc::clone(&self.spools),
                piece: Vec::with_capacity(PIECE_BYTES),
                waited: Duration::ZERO,
                no_room: false,
                spool: None,
                sent: 0,
                total: 0,
            };
            let (member, in_this) = (member.clone(), Arc::clone(&view));
            tokio::task::spawn_blocking(move || {
                let _thread = thread;
                producer.run(&in_this, &member);
            });
            match pipe.size().await {
                Err(snapshot::Error::Storage(storage::Error::Closed)) => {
                    drop(self.next_view(&view).await?);
                }
                sized => {
                    snapshot.size = self.unless_failed(sized.map_err(told))?;
                    return Ok(snapshot);
                }
            }
        }
    }

    /// A checksum of all that a snapshot would hold.
    pub async fn hash(self: &Arc<Self>, member: Member) -> Result<(u32, u64), Error> {
        self.read_long(move |view, waited_for| {
            let hash = contents::hash(view, &member, waited_for).map_err(told)?;
            Ok((hash, view.revision))
        })
        .await
    }
}

fn told(error: snapshot::Error) -> Error {
    match error {
        snapshot::Error::Storage(cause) => Error::Storage(cause),
        snapshot::Error::Io(error) if disk::is_full(&error) => Error::NoSpace,
        // A file of ours that cannot be had fails the one client it is for, not the store.
        snapshot::Error::Io(_) | snapshot::Error::Abandoned => Error::Stopped,
    }
}

impl Snapshot {
    /// Bytes of the database; its checksum follows.
    pub fn bytes(&self) -> u64 {
        self.size.bytes()
    }

    /// The next piece: of [`PIECE_BYTES`], but for the database's last, and the checksum.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.taken == self.bytes() + save::TRAILER_BYTES as u64 {
            return Ok(None);
        }
        if self.rest.is_empty() {
            self.rest = loop {
                let news = self.pipe.news.notified();
                match self.pipe.take() {
                    Taken::Piece(piece) => break piece,
                    Taken::Spooled(spool, at, length) => {
                        break self.read(spool, at, length).await?;
                    }
                    Taken::Failed(cause) => {
                        return self.engine.unless_failed(Err(told(cause)));
                    }
                    Taken::Nothing => news.await,
                }
            };
        }
        let length = match self.bytes().checked_sub(self.taken) {
            Some(left @ 1..) => left.min(PIECE_BYTES as u64) as usize,
            _ => save::TRAILER_BYTES,
        };
        let piece = self.rest.split_to(length.min(self.rest.len()));
        self.taken += piece.len() as u64;
        Ok(Some(piece))
    }

    async fn read(&self, spool: Arc<Spool>, at: u64, length: usize) -> Result<Bytes, Error> {
        let thread = acquire(&self.engine.read_threads).await?;
        let read = tokio::task::spawn_blocking(move || {
            let _thread = thread;
            let mut bytes = vec![0; length];
            spool.file.read_at(&mut bytes, at).map(|()| bytes)
        });
        match read.await {
            Ok(Ok(bytes)) => Ok(bytes.into()),
            _ => Err(Error::Stopped),
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.pipe.leave();
    }
}

/// Where the thread and the client meet.
#[derive(Debug, Default)]
struct Pipe {
    inner: Mutex<Inner>,
    /// For the thread: there is room, or the client has gone.
    room: Condvar,
    /// For the client: there is something to take.
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    size: Option<Size>,
    pieces: VecDeque<Bytes>,
    spool: Option<Arc<Spool>>,
    /// Bytes in the file, and those that the client has asked for.
    spooled: u64,
    read: u64,
    failed: Option<snapshot::Error>,
    gone: bool,
}

/// What the client finds.
enum Taken {
    Piece(Bytes),
    /// File, place and length.
    Spooled(Arc<Spool>, u64, usize),
    Failed(snapshot::Error),
    Nothing,
}

impl Pipe {
    async fn size(&self) -> Result<Size, snapshot::Error> {
        loop {
            let news = self.news.notified();
            {
                let mut inner = self.inner();
                if let Some(error) = inner.failed.take() {
                    return Err(error);
                }
                if let Some(size) = inner.size {
                    return Ok(size);
                }
            }
            news.await;
        }
    }

    fn take(&self) -> Taken {
        let mut inner = self.inner();
        if let Some(piece) = inner.pieces.pop_front() {
            self.room.notify_one();
            return Taken::Piece(piece);
        }
        if let Some(spool) = &inner.spool
            && inner.read < inner.spooled
        {
            let (spool, at) = (Arc::clone(spool), inner.read);
            let length = (inner.spooled - at).min(READ_BYTES as u64);
            inner.read += length;
            return Taken::Spooled(spool, at, length as usize);
        }
        match inner.failed.take() {
            Some(error) => Taken::Failed(error),
            None => Taken::Nothing,
        }
    }

    fn leave(&self) {
        let mut inner = self.inner();
        inner.gone = true;
        inner.pieces.clear();
        inner.spool = None;
        self.room.notify_one();
    }

    fn tell(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner());
        self.news.notify_one();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where files for slow clients are made.
#[derive(Debug)]
pub struct Spools {
    disk: Arc<dyn Disk>,
    count: AtomicU64,
    /// Bytes of all that there are.
    bytes: Arc<AtomicU64>,
}

impl Spools {
    /// Files in the folder of `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Spools {
        Spools {
            disk,
            count: AtomicU64::new(0),
            bytes: Arc::default(),
        }
    }

    /// A file of `length` bytes that are all its own, and no name that anybody could find it by.
    fn make(&self, length: u64) -> io::Result<Spool> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("{SPOOL}{number}");
        // As much as all others take must be left, so that they never have more than half of the room.
        let others = self.bytes.fetch_add(length, Ordering::Relaxed);
        let counted = Counted {
            length,
            bytes: Arc::clone(&self.bytes),
        };
        let file = self.disk.create(&name, length + MARGIN_BYTES + others)?;
        self.disk.remove(&name)?;
        file.set_len(length)?;
        Ok(Spool {
            file,
            _counted: counted,
        })
    }
}

/// A file for a slow client.
#[derive(Debug)]
struct Spool {
    file: Arc<dyn DiskFile>,
    _counted: Counted,
}

/// The bytes of a file, until it is gone.
#[derive(Debug)]
struct Counted {
    length: u64,
    bytes: Arc<AtomicU64>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.length, Ordering::Relaxed);
    }
}

/// The thread's end.
struct Producer {
    pipe: Arc<Pipe>,
    spools: Arc<Spools>,
    /// What has not been passed on yet.
    piece: Vec<u8>,
    /// For the client, in all.
    waited: Duration,
    /// There was none for the file.
    no_room: bool,
    spool: Option<Arc<Spool>>,
    sent: u64,
    total: u64,
}

impl Producer {
    fn run(mut self, view: &View, member: &Member) {
        let pipe = Arc::clone(&self.pipe);
        let go_on = || !pipe.inner().gone;
        let written = save::size(view, member, go_on).and_then(|size| {
            self.total = size.bytes() + save::TRAILER_BYTES as u64;
            pipe.tell(|inner| inner.size = Some(size));
            save::write(view, member, size, &mut self, go_on)
        });
        match written {
            Ok(()) | Err(snapshot::Error::Abandoned) => {}
            Err(error) => pipe.tell(|inner| inner.failed = Some(error)),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::copy_from_slice(&self.piece);
        self.piece.clear();
        let length = piece.len() as u64;
        if self.spool.is_none() {
            self.await_client(PIECES_WAITING_MAX - 1)?;
        }
        match &self.spool {
            None => self.pipe.tell(|inner| inner.pieces.push_back(piece)),
            Some(spool) => {
                let at = {
                    let inner = self.pipe.inner();
                    if inner.gone {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    inner.spooled
                };
                spool.file.write_at(&piece, at)?;
                if (at + length) / SYNC_EVERY_BYTES > at / SYNC_EVERY_BYTES {
                    spool.file.sync()?;
                }
                self.pipe.tell(|inner| inner.spooled += length);
            }
        }
        self.sent += length;
        Ok(())
    }

    /// Waits until no more than `waiting_max` pieces wait for the client. Past patience, there is a file
    /// instead.
    fn await_client(&mut self, waiting_max: usize) -> io::Result<()> {
        let pipe = Arc::clone(&self.pipe);
        loop {
            let begun = Clock::System.monotonic_micros();
            let patience = if self.no_room {
                LAST_PATIENCE
            } else {
                PATIENCE
            };
            let patience = patience.saturating_sub(self.waited);
            let full = |inner: &mut Inner| inner.pieces.len() > waiting_max && !inner.gone;
            let waited = pipe.room.wait_timeout_while(pipe.inner(), patience, full);
            let (inner, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if inner.gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let waiting: usize = inner.pieces.iter().map(Bytes::len).sum();
            drop(inner);
            self.waited += Duration::from_micros(Clock::System.monotonic_micros() - begun);
            if !timeout.timed_out() {
                return Ok(());
            }
            let left = self.total - self.sent + waiting as u64;
            match self.spools.make(left) {
                Ok(spool) => {
                    info!(
                        bytes = left,
                        "a snapshot's client is slow: what is left goes into a file"
                    );
                    return self.spool(spool);
                }
                // Of what is all in the queue the client keeps no thread waiting.
                Err(error) if disk::is_full(&error) && self.sent == self.total => return Ok(()),
                Err(error) if disk::is_full(&error) && !self.no_room => self.no_room = true,
                Err(error) => {
                    warn!(%error, bytes = left, "a snapshot's client is slow, and there is no room for a file");
                    return Err(error);
                }
            }
        }
    }

    /// From now on the client is served from `spool`: first what waits for it.
    fn spool(&mut self, spool: Spool) -> io::Result<()> {
        let mut spooled = 0;
        let waiting = mem::take(&mut self.pipe.inner().pieces);
        for piece in waiting {
            spool.file.write_at(&piece, spooled)?;
            spooled += piece.len() as u64;
        }
        let spool = Arc::new(spool);
        self.spool = Some(Arc::clone(&spool));
        self.pipe.tell(|inner| {
            inner.spool = Some(spool);
            inner.spooled = spooled;
        });
        Ok(())
    }
}

impl Drop for Producer {
    /// A client must not wait for a thread that has ended.
    fn drop(&mut self) {
        if thread::panicking() {
            self.pipe
                .tell(|inner| inner.failed = Some(snapshot::Error::Abandoned));
        }
    }
}

impl Write for Producer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..length]);
        if self.piece.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            self.send()?;
        }
        if self.spool.is_none() {
            self.await_client(0)?;
        }
        Ok(())
    }
}
