//! Connections on which no call is open: they cost little but a descriptor, so each address may hold some, for some time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long and how many.
#[derive(Debug, Clone, Copy)]
pub struct IdleLimits {
    pub idle_max: Duration,
    /// Of more, those are closed that have been idle the longest.
    pub per_address_max: usize,
    /// But none that has been idle for less: when thousands come at once, their calls are on the way.
    pub grace: Duration,
}

/// The idle connections of all addresses.
pub struct IdleConnections {
    limits: IdleLimits,
    /// By address, the longest idle first.
    by_address: RefCell<HashMap<String, BTreeMap<u64, Rc<Idle>>>>,
    next: Cell<u64>,
}

struct Idle {
    since: Instant,
    is_surplus: Notify,
}

/// Calls of one connection.
#[derive(Default)]
pub struct Calls {
    open: Cell<usize>,
    changed: Notify,
}

/// A call that is open as long as this exists.
pub struct OpenCall(Rc<Calls>);

impl Calls {
    pub fn open(self: &Rc<Self>) -> OpenCall {
        self.open.set(self.open.get() + 1);
        self.changed.notify_waiters();
        OpenCall(self.clone())
    }

    /// Returns once there has been no call for so long.
    pub async fn silent_for(&self, duration: Duration) {
        self.outlasted(async || tokio::time::sleep(duration).await).await;
    }

    /// Returns once `silence` does, which is begun anew whenever the last call has ended, and dropped when one begins.
    async fn outlasted(&self, silence: impl AsyncFn()) {
        loop {
            if self.open.get() > 0 {
                self.changed.notified().await;
                continue;
            }
            tokio::select! {
                () = silence() => return,
                () = self.changed.notified() => {}
            }
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.changed.notify_waiters();
    }
}

impl IdleConnections {
    pub fn new(limits: IdleLimits) -> Self {
        Self { limits, by_address: RefCell::default(), next: Cell::new(0) }
    }

    /// Returns when the connection has been idle for too long, or is one too many.
    pub async fn outlasted(&self, address: &str, calls: &Calls) {
        calls.outlasted(async || Place::take(self, address).outlasted().await).await;
    }
}

/// One connection's place among the idle ones of its address, given back when it is dropped.
struct Place<'a> {
    all: &'a IdleConnections,
    address: &'a str,
    number: u64,
    idle: Rc<Idle>,
}

impl<'a> Place<'a> {
    fn take(all: &'a IdleConnections, address: &'a str) -> Self {
        let number = all.next.replace(all.next.get() + 1);
        let idle = Rc::new(Idle { since: Instant::now(), is_surplus: Notify::new() });
        let mut by_address = all.by_address.borrow_mut();
        let held = by_address.entry(address.to_owned()).or_default();
        held.insert(number, idle.clone());
        let surplus = held.len().saturating_sub(all.limits.per_address_max);
        for longest in held.values().take(surplus).take_while(|longest| longest.since.elapsed() >= all.limits.grace) {
            longest.is_surplus.notify_one();
        }
        drop(by_address);
        Self { all, address, number, idle }
    }

    async fn outlasted(&self) {
        let limits = &self.all.limits;
        let too_long = async {
            tokio::time::sleep(limits.grace.min(limits.idle_max)).await;
            if !self.is_surplus() {
                tokio::time::sleep(limits.idle_max.saturating_sub(limits.grace)).await;
            }
        };
        tokio::select! {
            () = too_long => {}
            () = self.idle.is_surplus.notified() => {}
        }
    }

    fn is_surplus(&self) -> bool {
        let by_address = self.all.by_address.borrow();
        let held = &by_address[self.address];
        let surplus = held.len().saturating_sub(self.all.limits.per_address_max);
        held.keys().take(surplus).any(|number| *number == self.number)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut by_address = self.all.by_address.borrow_mut();
        if let Some(held) = by_address.get_mut(self.address) {
            held.remove(&self.number);
            if held.is_empty() {
                by_address.remove(self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::{LocalSet, spawn_local};

    const LIMITS: IdleLimits =
        IdleLimits { idle_max: Duration::from_secs(100), per_address_max: 2, grace: Duration::from_secs(5) };

    fn outlasting(all: &Rc<IdleConnections>, address: &'static str, calls: &Rc<Calls>) -> tokio::task::JoinHandle<u64> {
        let (all, calls, began) = (all.clone(), calls.clone(), Instant::now());
        spawn_local(async move {
            all.outlasted(address, &calls).await;
            began.elapsed().as_secs()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_call_is_closed_after_a_time_and_one_with_a_call_is_not() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(IdleConnections::new(LIMITS));
                let (silent, busy) = (Rc::<Calls>::default(), Rc::<Calls>::default());
                let call = busy.open();
                let (one, other) = (outlasting(&all, "a", &silent), outlasting(&all, "a", &busy));
                assert_eq!(one.await.unwrap(), 100);
                tokio::time::sleep(Duration::from_secs(900)).await;
                assert!(!other.is_finished());
                drop(call);
                assert_eq!(other.await.unwrap(), 1100);
                assert!(all.by_address.borrow().is_empty());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_silence_hear_of_a_call() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(IdleConnections::new(LIMITS));
                let calls = Rc::<Calls>::default();
                let first = outlasting(&all, "a", &calls);
                tokio::task::yield_now().await;
                let waiting = calls.clone();
                let second = spawn_local(async move { waiting.silent_for(Duration::from_secs(10)).await });
                tokio::time::sleep(Duration::from_secs(9)).await;
                let call = calls.open();
                tokio::time::sleep(Duration::from_secs(900)).await;
                assert!(!first.is_finished() && !second.is_finished());
                drop(call);
                tokio::time::sleep(Duration::from_secs(11)).await;
                assert!(second.is_finished());
                assert_eq!(first.await.unwrap(), 1009);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_of_an_address_the_longest_idle_goes_and_not_before_its_grace() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(IdleConnections::new(LIMITS));
                let calls = Rc::<Calls>::default();
                let together: Vec<_> = (0..4).map(|_| outlasting(&all, "a", &calls)).collect();
                let elsewhere = outlasting(&all, "b", &calls);
                tokio::time::sleep(Duration::from_secs(4)).await;
                assert!(together.iter().all(|one| !one.is_finished()));
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert_eq!(
                    together.iter().map(tokio::task::JoinHandle::is_finished).collect::<Vec<_>>(),
                    [true, true, false, false]
                );
                let late = outlasting(&all, "a", &calls);
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(
                    together.iter().map(tokio::task::JoinHandle::is_finished).collect::<Vec<_>>(),
                    [true, true, true, false]
                );
                assert!(!late.is_finished() && !elsewhere.is_finished());
            })
            .await;
    }
}
