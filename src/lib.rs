//! MetaStore: a durable single-node etcd. The map, top layer first.

pub mod config;
pub mod proto;
pub mod storage;
