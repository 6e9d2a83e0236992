//! The only source of time: the system's in the server; one that stands still, or is moved by hand in
//! tests.

// This is the file that owns the clocks.
#![allow(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A clock.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The operating system's.
    System,
    /// Stands still unless a test moves it; in microseconds, for both kinds of time.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// Milliseconds since 1970, as people count them; can go back.
    pub fn wall_millis(&self) -> u64 {
        match self {
            Clock::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                // A clock before 1970 tells nothing.
                since.map_or(0, |since| since.as_millis() as u64)
            }
            Clock::Manual(micros) => micros.load(Ordering::Relaxed) / 1000,
        }
    }

    /// Microseconds since the process started; never goes back.
    pub fn monotonic_micros(&self) -> u64 {
        match self {
            Clock::System => START.elapsed().as_micros() as u64,
            Clock::Manual(micros) => micros.load(Ordering::Relaxed),
        }
    }

    /// Milliseconds since the process started; never goes back.
    pub fn monotonic_millis(&self) -> u64 {
        self.monotonic_micros() / 1000
    }

    /// The same, rounded up.
    pub fn monotonic_millis_up(&self) -> u64 {
        match self {
            Clock::System => START.elapsed().as_nanos().div_ceil(1_000_000) as u64,
            Clock::Manual(micros) => micros.load(Ordering::Relaxed).div_ceil(1000),
        }
    }
}
