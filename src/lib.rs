//! MetaStore: a durable single-node etcd. The map, top layer first:
//!
//! ```text
//! main ─► server ─► grpc ─► engine ─► { mvcc, lease, auth } ─► storage ─► redb
//! ```
//! A program can run a whole server with [`server::run`], or open a store with
//! [`engine::Engine::open`].

pub mod auth;
pub mod clock;
pub mod config;
pub mod engine;
#[doc(hidden)]
pub mod fuzz;
pub mod grpc;
pub mod lease;
pub mod mvcc;
pub mod proto;
pub mod server;
pub mod snapshot;
pub mod storage;
pub mod watch;

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
