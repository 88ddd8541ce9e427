//! Keeps a panic within `h2` to the connection on which it happens.
//!
//! One that happens while the connection's lock is held poisons it, and what shares that connection panics when it is next used,
//! or dropped. Two at once, as of what is dropped while the first unwinds, end the process.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::task::AbortHandle;

/// A part of `h2` whose `Drop` takes the connection's lock.
pub struct Guarded<T>(Option<T>);

impl<T> Guarded<T> {
    pub fn new(part: T) -> Self {
        Self(Some(part))
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        if let Some(part) = self.0.take() {
            if std::thread::panicking() {
                std::mem::forget(part); // memory of a broken connection, for everybody's streams
            } else {
                let _ = contained(|| drop(part));
            }
        }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken in `drop` only")
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken in `drop` only")
    }
}

/// Does what may panic for one stream; None if it has.
pub fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The tasks of a connection's calls. They end when it panics, since it has told nobody then; else each ends by itself.
#[derive(Default)]
pub struct CallTasks(std::cell::RefCell<Vec<AbortHandle>>);

impl CallTasks {
    pub fn add(&self, task: AbortHandle) {
        let mut tasks = self.0.borrow_mut();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }
}

impl Drop for CallTasks {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.borrow().iter().for_each(AbortHandle::abort);
        }
    }
}
