//! A stream: its watchers by their numbers, and what waits for its client.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use super::answer::{Answer, End};

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    /// No other stream of the hub ever has this number.
    pub(super) serial: u64,
    /// The slots of its watchers.
    pub(super) ids: HashMap<i64, u32>,
    /// The smallest number that was never chosen.
    next_id: i64,
    outbox: VecDeque<Answer>,
    outbox_bytes: usize,
    /// Slots and serials of watchers behind, but for those of the plan that is being read. Some may
    /// have been cancelled.
    pub(super) behind: VecDeque<(u32, u64)>,
    /// Whether someone sees to it that they catch up.
    pub(super) catching_up: bool,
    /// Where the next look at the progress of its watchers begins.
    pub(super) looks: usize,
    /// How it ends, once all that waits is taken.
    end: Option<End>,
    /// Waits for an answer.
    reader: Option<Waker>,
    /// Waits for room.
    writer: Option<Waker>,
}

impl Stream {
    /// A stream without watchers.
    pub(super) fn new(serial: u64, end: Option<End>) -> Stream {
        Stream {
            serial,
            ids: HashMap::new(),
            next_id: 0,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            behind: VecDeque::new(),
            catching_up: false,
            looks: 0,
            end,
            reader: None,
            writer: None,
        }
    }

    /// A number for a new watcher. None is ever chosen twice.
    pub(super) fn choose_id(&mut self) -> i64 {
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// What waits for the client, in bytes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Adds an answer, unless the stream is to end.
    pub(super) fn push(&mut self, answer: Answer) {
        if self.is_ending() {
            return;
        }
        self.outbox_bytes += answer.bytes();
        self.outbox.push_back(answer);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// The next answer, or how the stream ends.
    pub(super) fn take(
        &mut self,
        outbox_bytes_max: usize,
        context: &Context<'_>,
    ) -> Poll<Result<Answer, End>> {
        let Some(answer) = self.outbox.pop_front() else {
            if let Some(end) = &self.end {
                return Poll::Ready(Err(end.clone()));
            }
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        self.outbox_bytes -= answer.bytes();
        if self.outbox_bytes < outbox_bytes_max
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        Poll::Ready(Ok(answer))
    }

    /// Whether there is room for the answer to a request.
    pub(super) fn poll_room(&mut self, outbox_bytes_max: usize, context: &Context<'_>) -> Poll<()> {
        if self.outbox_bytes < outbox_bytes_max {
            return Poll::Ready(());
        }
        self.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Ends the stream, behind what waits. What ended it first is told.
    pub(super) fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether it is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.end.is_some()
    }
}
