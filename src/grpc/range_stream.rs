//! RangeStream: a range in parts, all of one revision.
//!
//! The first part fixes the revision. Between two parts no view is held, only the floor is checked:
//! a compaction that passes the revision ends the stream, as in etcd. Parts begin small and follow
//! the size of what they hold; the client's own pace bounds what is under way.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Context, convert};
use crate::mvcc::range;
use crate::mvcc::request::{Order, Range, Target};
use crate::proto::etcdserverpb as pb;
use crate::storage::key_range::KeyRange;

/// Keys of the first part.
const FIRST_PART_KEYS: usize = 10;

/// Parts that wait for the client to take them.
const PARTS_WAITING_MAX: usize = 1;

type Part = Result<pb::RangeStreamResponse, Status>;

/// Checks the request and begins its stream.
pub fn begin(
    context: &Arc<Context>,
    request: pb::RangeRequest,
) -> Result<ReceiverStream<Part>, Status> {
    let whole = request.limit < 0;
    let mut request = convert::range(request)?;
    let default_order = request.order == Order::None
        || (request.target == Target::Key && request.order == Order::Ascend);
    if !default_order {
        return Err(Status::unimplemented(
            "RangeStream does not support custom sort orders",
        ));
    }
    if request.filters.any() {
        return Err(Status::unimplemented(
            "RangeStream does not support revision filters",
        ));
    }
    // Parts sorted by another target, each by itself, would not add up to the range.
    request.target = Target::Key;
    let (sender, parts) = mpsc::channel(PARTS_WAITING_MAX);
    let context = Arc::clone(context);
    tokio::spawn(async move {
        if let Err(Some(status)) = send_parts(&context, request, whole, &sender).await {
            let _ = sender.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(parts))
}

/// Sends all parts. The error is `None` when the client has gone.
async fn send_parts(
    context: &Context,
    mut request: Range,
    whole: bool,
    sender: &mpsc::Sender<Part>,
) -> Result<(), Option<Status>> {
    let failed = |error| Some(Status::from(error));
    let engine = &context.engine;
    let view = engine.view();
    let pinned = view.revision;
    let at = range::resolve(&view, request.revision, pinned).map_err(failed)?;
    drop(view);
    request.revision = at as i64;
    let mut remaining = match request.limit {
        0 => usize::MAX,
        limit => limit,
    };
    let mut part_keys = if whole || request.count_only {
        usize::MAX
    } else {
        FIRST_PART_KEYS
    };
    let mut sent = 0;
    loop {
        let mut part = request.clone();
        part.limit = match part_keys.min(remaining) {
            usize::MAX => 0,
            limit => limit,
        };
        let view = engine.view();
        let newest = view.revision;
        let (ranged, room) = engine
            .range_in(view, newest, part, false)
            .await
            .map_err(failed)?;
        // What waits for the client is one part a stream.
        drop(room);
        let keys = ranged.kvs.len();
        sent += keys as u64;
        remaining -= keys;
        let last_key = ranged.kvs.last().map(|kv| kv.key.clone());
        let cut = ranged.more && remaining == 0;
        let ends = !ranged.more || cut;
        let count_only = request.count_only.then_some(ranged.count);
        let mut response = convert::ranged(ranged, context.header(pinned));
        if let Some(key) = last_key.filter(|_| !ends || cut) {
            request.range.start = successor(&key);
        }
        if ends {
            let rest = if cut {
                count_rest(context, &request).await.map_err(failed)?
            } else {
                0
            };
            response.more = cut;
            response.count = count_only.unwrap_or(sent + rest) as i64;
        } else {
            response.header = None;
            response.more = false;
            response.count = 0;
        }
        let bytes = response.encoded_len();
        let response = pb::RangeStreamResponse {
            range_response: Some(response),
        };
        sender.send(Ok(response)).await.map_err(|_| None)?;
        if ends {
            return Ok(());
        }
        if bytes < context.request_bytes_max / 2 {
            part_keys = part_keys.saturating_mul(2);
        } else if bytes > context.request_bytes_max.saturating_mul(2) {
            part_keys = (part_keys / 2).max(1);
        }
    }
}

async fn count_rest(context: &Context, request: &Range) -> Result<u64, crate::mvcc::Error> {
    let rest = Range {
        count_only: true,
        range: KeyRange::clone(&request.range),
        ..request.clone()
    };
    let (ranged, _) = context.engine.range(rest).await?;
    Ok(ranged.count)
}

/// The first key behind `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}
