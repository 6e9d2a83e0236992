//! The wire types of etcd 3.7, made from `proto/` at build time.

// Generated code: its texts are those of the .proto files.
#![allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]

/// Requests, answers and services of the main API.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// A stored key and its events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles, permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// Locks held on the client's behalf.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// Elections run on the client's behalf.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// All of the above as an encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors"));
