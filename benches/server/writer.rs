//! A writer that watchers hear: its values tell when they were sent.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::Failure;
use crate::audience::stamp;
use crate::client::Client;
use crate::load::{Random, key};
use crate::process::Server;

/// Puts random keys with stamped values.
#[derive(Clone)]
pub(crate) struct Writer {
    client: Client,
    random: Random,
    keys: u64,
    value: Vec<u8>,
}

impl Writer {
    pub(crate) async fn open(
        server: &Server,
        seed: u64,
        keys: u64,
        value_bytes: usize,
    ) -> Result<Self, Failure> {
        let mut random = Random::new(seed);
        Ok(Self {
            client: Client::open(server.port).await?,
            value: random.noise()[..value_bytes].to_vec(),
            random,
            keys,
        })
    }

    /// Answers when the put is answered, with its latency.
    pub(crate) async fn put(&mut self) -> Result<Duration, Failure> {
        let key = self.next_key();
        self.put_key(key).await
    }

    pub(crate) fn next_key(&mut self) -> Bytes {
        key(self.random.below(self.keys))
    }

    pub(crate) async fn put_key(&mut self, key: Bytes) -> Result<Duration, Failure> {
        let begin = Instant::now();
        let stamp = stamp(begin);
        self.value[..stamp.len()].copy_from_slice(&stamp);
        let value = Bytes::copy_from_slice(&self.value);
        self.client.put(key, value).await?;
        Ok(begin.elapsed())
    }
}
