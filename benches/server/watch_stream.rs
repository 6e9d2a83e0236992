//! One watch stream on one connection: what watchers ask for, and what they hear.

use std::time::Instant;

use metastore::proto::etcdserverpb::watch_request::RequestUnion;
use metastore::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};

use crate::Failure;
use crate::stream::{Field, Fields, Receiving, Stream};

/// The watchers of one client.
pub(crate) struct WatchStream(Stream);

impl WatchStream {
    pub(crate) async fn open(port: u16, receiving: Receiving) -> Result<Self, Failure> {
        let stream = Stream::open(port, "/etcdserverpb.Watch/Watch", receiving).await?;
        Ok(Self(stream))
    }

    /// Asks for watchers, without waiting for the answers.
    pub(crate) async fn create(&mut self, requests: &[WatchCreateRequest]) -> Result<(), Failure> {
        let requests = requests.iter().map(|request| WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(request.clone())),
        });
        let requests: Vec<_> = requests.collect();
        self.0.send(&requests).await
    }

    /// Reads once from the socket and hands on each answer that is whole.
    pub(crate) async fn read(
        &mut self,
        mut each: impl FnMut(Answer<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let each = |message: &[u8], read_at| each(Answer::of(message, read_at)?);
        self.0.read(each).await
    }
}

/// A `WatchResponse`. Its events are looked at only when asked for.
pub(crate) struct Answer<'a> {
    /// When the socket gave it, or its end.
    pub(crate) read_at: Instant,
    pub(crate) watch_id: i64,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    message: &'a [u8],
}

/// A put or a delete, as a watcher hears it.
pub(crate) struct Event<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) mod_revision: i64,
    pub(crate) value: &'a [u8],
}

impl<'a> Answer<'a> {
    fn of(message: &'a [u8], read_at: Instant) -> Result<Self, Failure> {
        let mut answer = Self {
            read_at,
            watch_id: 0,
            created: false,
            canceled: false,
            message,
        };
        let mut fields = Fields(message);
        while let Some(field) = fields.next()? {
            match field {
                (2, Field::Number(id)) => answer.watch_id = id as i64,
                (3, Field::Number(created)) => answer.created = created != 0,
                (4, Field::Number(canceled)) => answer.canceled = canceled != 0,
                // Events come last, and there may be a thousand.
                (11, _) => break,
                _ => {}
            }
        }
        Ok(answer)
    }

    pub(crate) fn each_event(
        &self,
        mut each: impl FnMut(Event<'a>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut fields = Fields(self.message);
        while let Some(field) = fields.next()? {
            if let (11, Field::Bytes(event)) = field {
                each(Event::of(event)?)?;
            }
        }
        Ok(())
    }
}

impl<'a> Event<'a> {
    fn of(message: &'a [u8]) -> Result<Self, Failure> {
        let mut event = Self {
            key: &[],
            mod_revision: 0,
            value: &[],
        };
        let mut fields = Fields(message);
        while let Some(field) = fields.next()? {
            let (2, Field::Bytes(key_value)) = field else {
                continue;
            };
            let mut fields = Fields(key_value);
            while let Some(field) = fields.next()? {
                match field {
                    (1, Field::Bytes(key)) => event.key = key,
                    (3, Field::Number(revision)) => event.mod_revision = revision as i64,
                    (5, Field::Bytes(value)) => event.value = value,
                    _ => {}
                }
            }
        }
        Ok(event)
    }
}
