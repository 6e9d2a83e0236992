//! What is kept: files, the log, the memtable, the tables, and views over them.

pub mod disk;
