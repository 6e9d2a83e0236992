//! etcd's backup format: a bbolt database with etcd's buckets, and how a store goes in and out.

pub mod bbolt;
