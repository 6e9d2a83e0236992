//! One watch stream on one connection: HTTP/2 by hand, answers read as they lie on the wire.
//!
//! A thousand watchers hear hundreds of thousands of events a second, and the client shares the
//! cores with the server. So an answer is neither copied nor decoded: the fields that an item asks
//! about are found in the bytes that the socket gave.
//!
//! What a server may do here is bounded by what this side asks for: one stream, frames of at most
//! 16 KiB, no compression. Response headers are not looked at; their end of stream is an error.

use std::time::Instant;

use metastore::proto::etcdserverpb::watch_request::RequestUnion;
use metastore::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::Failure;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// A SETTINGS or PING that answers one.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// The connection itself, and the one stream on it.
const CONNECTION: u32 = 0;
const STREAM: u32 = 1;

/// What HTTP/2 gives each side to begin with. All requests of a stream fit in it, so that their
/// sender need not count.
const WINDOW_BYTES_DEFAULT: usize = 65_535;

const FRAME_HEADER_BYTES: usize = 9;
const FRAME_BYTES_MAX: usize = 16_384;

/// The flag of compression and the length, in front of each message.
const GRPC_HEADER_BYTES: usize = 5;

/// Read from the socket at once, at most.
const INPUT_BYTES: usize = 256 << 10;

/// How much the server may send before this side has read it.
#[derive(Clone, Copy)]
pub(crate) struct Receiving {
    pub(crate) window_bytes: u32,
    /// The kernel's part; its own choice if none.
    pub(crate) socket_bytes: Option<u32>,
}

pub(crate) const FREELY: Receiving = Receiving {
    window_bytes: 1 << 20,
    socket_bytes: None,
};

pub(crate) const NARROWLY: Receiving = Receiving {
    window_bytes: WINDOW_BYTES_DEFAULT as u32,
    socket_bytes: Some(4096),
};

/// One connection with one stream.
pub(crate) struct WatchStream {
    socket: TcpStream,
    input: Vec<u8>,
    filled: usize,
    /// The beginning of a message whose end has not come.
    message: Vec<u8>,
    output: Vec<u8>,
    window_bytes: usize,
    /// Read since the server was last given room.
    consumed: usize,
    requested_bytes: usize,
}

impl WatchStream {
    pub(crate) async fn open(port: u16, receiving: Receiving) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = receiving.socket_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        let socket = socket.connect(([127, 0, 0, 1], port).into()).await?;
        socket.set_nodelay(true)?;
        let mut output = PREFACE.to_vec();
        let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.extend(receiving.window_bytes.to_be_bytes());
        push_frame(&mut output, SETTINGS, 0, CONNECTION, &settings);
        let window_bytes = receiving.window_bytes as usize;
        if window_bytes > WINDOW_BYTES_DEFAULT {
            let more = (window_bytes - WINDOW_BYTES_DEFAULT) as u32;
            push_frame(
                &mut output,
                WINDOW_UPDATE,
                0,
                CONNECTION,
                &more.to_be_bytes(),
            );
        }
        let headers = request_headers(port);
        push_frame(&mut output, HEADERS, END_HEADERS, STREAM, &headers);
        let mut stream = Self {
            socket,
            input: vec![0; INPUT_BYTES],
            filled: 0,
            message: Vec::new(),
            output,
            window_bytes,
            consumed: 0,
            requested_bytes: 0,
        };
        stream.flush().await?;
        Ok(stream)
    }

    /// Asks for watchers, without waiting for the answers.
    pub(crate) async fn create(&mut self, requests: &[WatchCreateRequest]) -> Result<(), Failure> {
        let mut messages = Vec::new();
        for request in requests {
            let request = WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(request.clone())),
            };
            messages.push(0);
            messages.extend((request.encoded_len() as u32).to_be_bytes());
            request.encode(&mut messages)?;
        }
        self.requested_bytes += messages.len();
        assert!(
            self.requested_bytes <= WINDOW_BYTES_DEFAULT,
            "requests of {} bytes overrun the server's window",
            self.requested_bytes
        );
        for part in messages.chunks(FRAME_BYTES_MAX) {
            push_frame(&mut self.output, DATA, 0, STREAM, part);
        }
        self.flush().await
    }

    /// Reads once from the socket and hands on each answer that is whole.
    pub(crate) async fn read(
        &mut self,
        mut each: impl FnMut(Answer<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let read = self.socket.read(&mut self.input[self.filled..]).await?;
        let read_at = Instant::now();
        if read == 0 {
            return Err("the server closed a watch connection".into());
        }
        self.filled += read;
        let mut at = 0;
        while let Some(frame) = Frame::first(&self.input[at..self.filled])? {
            at += FRAME_HEADER_BYTES + frame.payload.len();
            match (frame.kind, frame.flags) {
                (DATA, flags) if flags & PADDED != 0 => return Err("a padded frame".into()),
                (DATA | HEADERS, flags) if flags & END_STREAM != 0 => {
                    return Err("the server ended a watch stream".into());
                }
                (DATA, _) => {
                    self.consumed += frame.payload.len();
                    let mut each = |message: &[u8]| each(Answer::of(message, read_at)?);
                    take_messages(&mut self.message, frame.payload, &mut each)?;
                }
                (SETTINGS, flags) if flags & ACK == 0 => {
                    push_frame(&mut self.output, SETTINGS, ACK, CONNECTION, &[]);
                }
                (PING, flags) if flags & ACK == 0 => {
                    push_frame(&mut self.output, PING, ACK, CONNECTION, frame.payload);
                }
                (RST_STREAM | GOAWAY, _) => return Err("the server reset a watch stream".into()),
                _ => {}
            }
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        if self.consumed >= self.window_bytes / 2 {
            let room = (self.consumed as u32).to_be_bytes();
            push_frame(&mut self.output, WINDOW_UPDATE, 0, CONNECTION, &room);
            push_frame(&mut self.output, WINDOW_UPDATE, 0, STREAM, &room);
            self.consumed = 0;
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if !self.output.is_empty() {
            self.socket.write_all(&self.output).await?;
            self.output.clear();
        }
        Ok(())
    }
}

/// A POST of gRPC, in HPACK's plainest form: static names, literal values, nothing remembered.
fn request_headers(port: u16) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        let mut field = name.to_vec();
        field.push(value.len() as u8);
        field.extend(value.as_bytes());
        field
    };
    let method_post_scheme_http = vec![0x83, 0x86];
    [
        method_post_scheme_http,
        literal(&[0x04], "/etcdserverpb.Watch/Watch"),
        literal(&[0x01], &format!("127.0.0.1:{port}")),
        literal(&[0x0f, 0x10], "application/grpc"),
        literal(b"\x00\x02te", "trailers"),
    ]
    .concat()
}

fn push_frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    assert!(payload.len() <= FRAME_BYTES_MAX, "a frame is short");
    output.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    output.extend([kind, flags]);
    output.extend(stream.to_be_bytes());
    output.extend(payload);
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with, once all of it is there.
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, Failure> {
        let Some((&[high, middle, low, kind, flags, ..], rest)) =
            bytes.split_first_chunk::<FRAME_HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(format!("a frame of {length} bytes").into());
        }
        Ok(rest.get(..length).map(|payload| Self {
            kind,
            flags,
            payload,
        }))
    }
}

/// Hands on every message that ends in `payload`, and keeps the beginning of the next in `held`.
fn take_messages(
    held: &mut Vec<u8>,
    payload: &[u8],
    each: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if held.is_empty() {
        let taken = take_whole(payload, each)?;
        held.extend(&payload[taken..]);
    } else {
        held.extend(payload);
        let taken = take_whole(held, each)?;
        held.drain(..taken);
    }
    Ok(())
}

/// Hands on the messages that `bytes` hold whole; answers how many bytes those are.
fn take_whole(
    bytes: &[u8],
    each: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mut at = 0;
    while let Some(&[compressed, length @ ..]) = bytes[at..].first_chunk::<GRPC_HEADER_BYTES>() {
        if compressed != 0 {
            return Err("a compressed message".into());
        }
        let begin = at + GRPC_HEADER_BYTES;
        let end = begin + u32::from_be_bytes(length) as usize;
        let Some(message) = bytes.get(begin..end) else {
            break;
        };
        each(message)?;
        at = end;
    }
    Ok(at)
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

/// A put, as a watcher hears it.
pub(crate) struct Event<'a> {
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
                    (3, Field::Number(revision)) => event.mod_revision = revision as i64,
                    (5, Field::Bytes(value)) => event.value = value,
                    _ => {}
                }
            }
        }
        Ok(event)
    }
}

/// The fields of a message, one after another.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, Failure> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, wire_type) = decode_key(&mut self.0)?;
        let number = decode_varint(&mut self.0)?;
        match wire_type {
            WireType::Varint => Ok(Some((tag, Field::Number(number)))),
            WireType::LengthDelimited => {
                let (bytes, rest) = self
                    .0
                    .split_at_checked(number as usize)
                    .ok_or("a field longer than its message")?;
                self.0 = rest;
                Ok(Some((tag, Field::Bytes(bytes))))
            }
            other => Err(format!("a field of type {other:?}").into()),
        }
    }
}
