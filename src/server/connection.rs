//! Listeners and connections.
//!
//! Each network thread has its own runtime; all accept from the same sockets. A connection is served
//! by the thread that accepted it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Error;
use super::dispatch::Services;
use crate::config::{ListenAddress, ListenUrl};

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1024;

/// How long the server waits after a failure to accept, which is mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// As in etcd: how often a silent client is asked whether it is there, and for how long.
const PING_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How much a client may send ahead, per stream and per connection.
///
/// h2 counts each message as 256 bytes at least, and sends a connection away on which more than half
/// of its window waits by that count. The smallest message takes five bytes, and so a stream's
/// window is full long before that only if it is a hundredth of the connection's.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const _: () = assert!(CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES > 2 * (256 - 5) / 5);

/// A bound socket.
#[derive(Debug)]
pub enum Bound {
    /// Of TCP.
    Tcp(std::net::TcpListener),
    /// Of a file, which is removed at the end.
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// A socket's file; removed when the server ends.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bound {
    /// The same socket for another thread; a socket's file stays with the first.
    pub fn share(&self) -> io::Result<Option<Bound>> {
        match self {
            Bound::Tcp(listener) => Ok(Some(Bound::Tcp(listener.try_clone()?))),
            Bound::Unix(..) => Ok(None),
        }
    }
}

/// Binds `url`.
pub fn bind(url: &ListenUrl) -> Result<Bound, Error> {
    let cannot = |cause| Error::Listen {
        url: url.text.clone(),
        cause,
    };
    match &url.address {
        ListenAddress::Ip(address) if address.ip().is_unspecified() => {
            // As in Go, either wildcard stands for both families.
            let both = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, address.port()));
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            let bound = tcp(both).or_else(|error| match error.kind() {
                io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
                _ => tcp(v4),
            });
            bound.map_err(cannot)
        }
        ListenAddress::Ip(address) => tcp(*address).map_err(cannot),
        ListenAddress::Localhost(port) => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            tcp(address).map_err(cannot)
        }
        ListenAddress::Unix(path) => unix(path).map_err(cannot),
    }
}

fn tcp(address: SocketAddr) -> io::Result<Bound> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Bound::Tcp(socket.into()))
}

fn unix(path: &Path) -> io::Result<Bound> {
    // One that a crash left behind is in nobody's use.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Bound::Unix(listener, SocketFile(path.to_owned())))
}

/// What a connection needs to be served.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The services.
    pub services: Services,
    /// Most streams of a connection; `None` is no limit.
    pub streams_max: Option<u32>,
    /// Turns true when the server stops.
    pub stopping: watch::Receiver<bool>,
    /// Connections that are open.
    pub connections: TaskTracker,
}

impl Serving {
    /// Resolves when the server stops.
    pub async fn stopped(mut self) {
        stopped(&mut self.stopping).await;
    }

    /// Accepts connections until the server stops.
    pub async fn accept(mut self, bound: Bound) -> io::Result<()> {
        match bound {
            Bound::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                while let Some(accepted) = self.or_stop(listener.accept()).await {
                    match accepted {
                        Ok((stream, _)) => {
                            // A connection that ended in between is found out when it is read.
                            let _ = stream.set_nodelay(true);
                            self.spawn(stream);
                        }
                        Err(error) => pause(&error).await,
                    }
                }
            }
            Bound::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                while let Some(accepted) = self.or_stop(listener.accept()).await {
                    match accepted {
                        Ok((stream, _)) => self.spawn(stream),
                        Err(error) => pause(&error).await,
                    }
                }
            }
        }
        Ok(())
    }

    async fn or_stop<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            event = event => Some(event),
            () = stopped(&mut self.stopping) => None,
        }
    }

    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Serving {
            services,
            streams_max,
            mut stopping,
            connections,
        } = self.clone();
        let services = Arc::new(services);
        connections.spawn(async move {
            let service = service_fn(move |request: http::Request<Incoming>| {
                let services = Arc::clone(&services);
                async move { Ok::<_, std::convert::Infallible>(services.call(request).await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_concurrent_streams(streams_max)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped(&mut stopping) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!(%error, "a connection ended");
            }
        });
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // It only fails if the server has already gone.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn pause(error: &io::Error) {
    warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
