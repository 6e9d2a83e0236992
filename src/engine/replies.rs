//! Answers on their way back: one wake-up a batch for each network thread.
//!
//! To wake a task on another thread costs a system call. So the writer leaves all answers of a
//! batch at the thread's [`Home`] and wakes one task there, which hands them on within the thread.
//! What waits at a home is bounded by what the queue admits.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::command::{Answer, Reply};
use crate::mvcc::Error;

type Outcome = Result<Answer, Error>;

thread_local! {
    static HOME: RefCell<Option<Home>> = const { RefCell::new(None) };
}

/// Where the answers for one network thread are left.
#[derive(Debug, Clone, Default)]
pub struct Home {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    left: Mutex<Vec<(oneshot::Sender<Outcome>, Outcome)>>,
    wake: Notify,
}

impl Home {
    /// The current thread's, if it has one.
    pub fn current() -> Option<Home> {
        HOME.with_borrow(Clone::clone)
    }

    fn left(&self) -> std::sync::MutexGuard<'_, Vec<(oneshot::Sender<Outcome>, Outcome)>> {
        self.inner
            .left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands on the answers for this thread, without end. Each network thread runs it as a task.
pub async fn attend() {
    let home = Home::default();
    HOME.set(Some(home.clone()));
    loop {
        home.inner.wake.notified().await;
        for (sender, outcome) in std::mem::take(&mut *home.left()) {
            // One who went away needs no answer.
            let _ = sender.send(outcome);
        }
    }
}

/// Sends the answers of a batch.
pub fn send(answers: Vec<(Reply, Outcome)>) {
    let mut homes: Vec<Home> = Vec::new();
    for (reply, outcome) in answers {
        match reply.home {
            None => {
                let _ = reply.sender.send(outcome);
            }
            Some(home) => {
                home.left().push((reply.sender, outcome));
                if !homes
                    .iter()
                    .any(|other| Arc::ptr_eq(&other.inner, &home.inner))
                {
                    homes.push(home);
                }
            }
        }
    }
    for home in homes {
        home.inner.wake.notify_one();
    }
}
