//! One gRPC stream on one connection: HTTP/2 by hand, messages read as they lie on the wire.
//!
//! The client shares the cores with the server, and a stream may carry hundreds of thousands of
//! answers a second. So a message is neither copied nor decoded: the fields that an item asks about
//! are found in the bytes that the socket gave.
//!
//! What a server may do here is bounded by what this side asks for: one stream, frames of at most
//! 16 KiB, no compression. Response headers are not looked at; their end of stream is an error.

use std::time::Instant;

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

/// What HTTP/2 gives each side to begin with.
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

/// One connection with one stream. What waits on it may be dropped while it waits.
pub(crate) struct Stream {
    socket: TcpStream,
    input: Vec<u8>,
    filled: usize,
    /// The beginning of a message whose end has not come.
    message: Vec<u8>,
    /// Frames that the socket has not taken.
    output: Vec<u8>,
    /// Requests that no frame holds, for want of room.
    requests: Vec<u8>,
    room: Room,
    window_bytes: usize,
    /// Read since the server was last given room.
    consumed: usize,
}

impl Stream {
    /// Connects and calls the method at `path`.
    pub(crate) async fn open(port: u16, path: &str, receiving: Receiving) -> Result<Self, Failure> {
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
            let more = ((window_bytes - WINDOW_BYTES_DEFAULT) as u32).to_be_bytes();
            push_frame(&mut output, WINDOW_UPDATE, 0, CONNECTION, &more);
        }
        let headers = request_headers(port, path);
        push_frame(&mut output, HEADERS, END_HEADERS, STREAM, &headers);
        let mut stream = Self {
            socket,
            input: vec![0; INPUT_BYTES],
            filled: 0,
            message: Vec::new(),
            output,
            requests: Vec::new(),
            room: Room::default(),
            window_bytes,
            consumed: 0,
        };
        stream.flush().await?;
        Ok(stream)
    }

    /// Sends requests, or keeps them until the server has given room for them.
    pub(crate) async fn send(&mut self, requests: &[impl Message]) -> Result<(), Failure> {
        for request in requests {
            self.requests.push(0);
            let length = request.encoded_len() as u32;
            self.requests.extend(length.to_be_bytes());
            request.encode(&mut self.requests)?;
        }
        self.flush().await
    }

    /// Reads once from the socket and hands on each message that is whole, with the time at which
    /// the socket gave it, or its end.
    pub(crate) async fn read(
        &mut self,
        mut each: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // What a read dropped before had to say.
        self.flush().await?;
        let read = self.socket.read(&mut self.input[self.filled..]).await?;
        let read_at = Instant::now();
        if read == 0 {
            return Err("the server closed a connection".into());
        }
        self.filled += read;
        let mut at = 0;
        while let Some(frame) = Frame::first(&self.input[at..self.filled])? {
            at += FRAME_HEADER_BYTES + frame.payload.len();
            match (frame.kind, frame.flags) {
                (DATA, flags) if flags & PADDED != 0 => return Err("a padded frame".into()),
                (DATA | HEADERS, flags) if flags & END_STREAM != 0 => {
                    return Err("the server ended a stream".into());
                }
                (DATA, _) => {
                    self.consumed += frame.payload.len();
                    let mut each = |message: &[u8]| each(message, read_at);
                    take_messages(&mut self.message, frame.payload, &mut each)?;
                }
                (SETTINGS, flags) if flags & ACK == 0 => {
                    self.room.set(frame.payload);
                    push_frame(&mut self.output, SETTINGS, ACK, CONNECTION, &[]);
                }
                (PING, flags) if flags & ACK == 0 => {
                    push_frame(&mut self.output, PING, ACK, CONNECTION, frame.payload);
                }
                (WINDOW_UPDATE, _) => self.room.add(frame.stream, frame.payload),
                (RST_STREAM | GOAWAY, _) => return Err("the server reset a stream".into()),
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
        let taken = self.room.take(self.requests.len());
        for part in self.requests[..taken].chunks(FRAME_BYTES_MAX) {
            push_frame(&mut self.output, DATA, 0, STREAM, part);
        }
        self.requests.drain(..taken);
        while !self.output.is_empty() {
            let written = self.socket.write(&self.output).await?;
            if written == 0 {
                return Err("a connection takes no more".into());
            }
            self.output.drain(..written);
        }
        Ok(())
    }
}

/// How much this side may send before the server has read it.
struct Room {
    connection: i64,
    stream: i64,
    /// What the server gives a stream to begin with.
    initial: i64,
}

impl Default for Room {
    fn default() -> Self {
        let initial = WINDOW_BYTES_DEFAULT as i64;
        Self {
            connection: initial,
            stream: initial,
            initial,
        }
    }
}

impl Room {
    /// Takes up to so many bytes.
    fn take(&mut self, bytes: usize) -> usize {
        let taken = self.connection.min(self.stream).clamp(0, bytes as i64);
        self.connection -= taken;
        self.stream -= taken;
        taken as usize
    }

    /// The server's settings: six bytes each.
    fn set(&mut self, settings: &[u8]) {
        for setting in settings.chunks_exact(6) {
            let [name @ .., a, b, c, d] = setting else {
                continue;
            };
            if name == INITIAL_WINDOW_SIZE.to_be_bytes() {
                let initial = i64::from(u32::from_be_bytes([*a, *b, *c, *d]));
                // It changes what a stream has, and not what the connection has.
                self.stream += initial - self.initial;
                self.initial = initial;
            }
        }
    }

    fn add(&mut self, stream: u32, payload: &[u8]) {
        let Some(bytes) = payload.first_chunk() else {
            return;
        };
        let more = i64::from(u32::from_be_bytes(*bytes));
        match stream {
            CONNECTION => self.connection += more,
            _ => self.stream += more,
        }
    }
}

/// A POST of gRPC, in HPACK's plainest form: static names, literal values, nothing remembered.
fn request_headers(port: u16, path: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        let mut field = name.to_vec();
        field.push(value.len() as u8);
        field.extend(value.as_bytes());
        field
    };
    let method_post_scheme_http = vec![0x83, 0x86];
    [
        method_post_scheme_http,
        literal(&[0x04], path),
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
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with, once all of it is there.
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, Failure> {
        let Some((&[high, middle, low, kind, flags, ref stream @ ..], rest)) =
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
            stream: u32::from_be_bytes(*stream),
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

/// The fields of a message, one after another.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

pub(crate) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, Failure> {
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
