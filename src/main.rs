//! Flags, then the server.
fn main() {}
