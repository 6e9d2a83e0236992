//! Watches: every change, in order, to all who want it.
//!
//! ```text
//! history ─► hub       one cursor for all synced watchers: who wants this change? ─┐
//!       └──► catch_up  a cursor for each watcher that is behind ───────────────────┴─► outbox ─► client
//! ```
//! A watcher is a cursor over history. One that is synced shares the hub's; one that begins in the
//! past, or whose client reads too slowly, reads on by itself, in slices, until it meets the hub.
//! So nothing is queued that history does not hold, and nobody waits for a slow client.
//!
//! Plain functions over a [`View`](crate::storage::view::View): when they are called, and on which
//! thread, is left to `engine`.

pub mod answer;
mod behind;
pub mod catch_up;
pub mod event;
pub mod hub;
pub mod interest;
pub mod live;
mod stream;
pub mod watcher;
