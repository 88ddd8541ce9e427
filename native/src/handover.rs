//! What passes between the thread of the event loop and the thread of the streams: reports one way, orders the other.
//!
//! Each side takes all that the other left in one go. The event loop is woken by a descriptor, once until it drains; the streams'
//! thread by a notification, once until it takes the orders.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

/// Names a stream; unique within the process and never used again.
pub type StreamId = u64;

/// How a stream ends on the wire: the status of gRPC, and its details as a serialized `google.rpc.Status`.
#[derive(Debug, Clone)]
pub struct Status {
    pub code: u8,
    pub message: String,
    pub details: Vec<u8>,
}

impl Status {
    pub const OK: Self = Self { code: 0, message: String::new(), details: Vec::new() };

    pub fn new(code: u8, message: &str) -> Self {
        Self { code, message: message.to_owned(), details: Vec::new() }
    }
}

/// What the event loop wants done.
pub enum Order {
    Write(StreamId, Bytes),
    LetIn(StreamId),
    Hold(StreamId),
    Release(StreamId),
    /// The event loop has taken what the stream's inbox held when it was full.
    Emptied(StreamId),
    /// The event loop has heard that these are gone.
    Heard(Vec<StreamId>),
    /// Send `last` (a message with its prefix, or nothing), then the status.
    Close(StreamId, Status, Bytes),
    /// In TLS handshakes that begin from now on.
    UseCertificate(std::sync::Arc<rustls::ServerConfig>),
    Stop,
}

/// A stream of which the event loop has not heard yet.
pub struct Opened {
    pub stream: StreamId,
    pub peer: String,
    pub token: Option<String>,
}

/// What one stream sent since the last drain.
pub struct Received {
    pub stream: StreamId,
    pub messages: Vec<Bytes>,
    bytes: usize,
    /// The stream waits until this is drained.
    is_full: bool,
}

/// What happened on all streams since the last drain.
#[derive(Default)]
pub struct Inbound {
    pub opened: Vec<Opened>,
    pub received: Vec<Received>,
    pub writable: Vec<StreamId>,
    pub finished: Vec<StreamId>,
    pub closed: Vec<StreamId>,
}

/// What a message costs beside its bytes, so that a stream cannot pour in empty ones.
const MESSAGE_OVERHEAD_BYTES: usize = 64;

/// Where a stream's messages stand in `Inbound.received`, as long as nobody has drained it since.
#[derive(Clone, Copy, Default)]
pub struct Place {
    drained: u64,
    index: usize,
}

#[derive(Default)]
struct Reports {
    inbound: Inbound,
    /// How often it was drained; from 1, so that a new `Place` fits none.
    drained: u64,
    /// The descriptor was written since the last drain.
    is_woken: bool,
    /// Something waits for a stream to be writable.
    wakes_when_writable: bool,
    /// Streams that the event loop has closed and whose end is not reported: nothing else is reported of them.
    closing: HashSet<StreamId>,
    has_ended: bool,
}

#[derive(Default)]
struct Orders {
    orders: Vec<Order>,
    is_notified: bool,
}

pub struct Handover {
    reports: Mutex<Reports>,
    orders: Mutex<Orders>,
    ordered: Notify,
    wake: OwnedFd,
}

/// Nothing that is done under these locks panics, and a poisoned one would end the process anyway.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Handover {
    pub fn new() -> std::io::Result<Self> {
        let reports = Reports { drained: 1, ..Reports::default() };
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { reports: Mutex::new(reports), orders: Mutex::default(), ordered: Notify::new(), wake })
    }

    // For the event loop's thread.

    /// The descriptor that becomes readable when there is something to drain.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Makes the descriptor unreadable, until the next report after the next drain.
    pub fn quiet(&self) {
        let mut counter = [0; 8];
        // EAGAIN, where nothing was written, is what was wanted.
        let _ = rustix::io::read(self.wake.as_fd(), &mut counter);
    }

    /// Until the next drain a writable stream wakes the event loop, too.
    pub fn wake_when_writable(&self) {
        let mut reports = lock(&self.reports);
        reports.wakes_when_writable = true;
        if !reports.inbound.writable.is_empty() {
            self.wake(reports);
        }
    }

    pub fn drain(&self) -> Inbound {
        let mut reports = lock(&self.reports);
        let mut inbound = std::mem::take(&mut reports.inbound);
        reports.drained += 1;
        reports.is_woken = false;
        reports.wakes_when_writable = false;
        if !reports.closing.is_empty() {
            let closing = &reports.closing;
            inbound.received.retain(|received| !closing.contains(&received.stream));
            inbound.writable.retain(|stream| !closing.contains(stream));
            inbound.finished.retain(|stream| !closing.contains(stream));
            for stream in &inbound.closed {
                reports.closing.remove(stream);
            }
        }
        drop(reports);
        let emptied =
            inbound.received.iter().filter(|received| received.is_full).map(|received| Order::Emptied(received.stream));
        let heard = (!inbound.closed.is_empty()).then(|| Order::Heard(inbound.closed.clone()));
        self.order(emptied.chain(heard));
        inbound
    }

    /// Whether the streams' thread is over.
    pub fn has_ended(&self) -> bool {
        lock(&self.reports).has_ended
    }

    pub fn order(&self, more: impl IntoIterator<Item = Order>) {
        let mut orders = lock(&self.orders);
        orders.orders.extend(more);
        if !orders.is_notified && !orders.orders.is_empty() {
            orders.is_notified = true;
            self.ordered.notify_one();
        }
    }

    /// From now on nothing is reported of the stream but its end.
    pub fn closes(&self, stream: StreamId) {
        lock(&self.reports).closing.insert(stream);
    }

    // For the streams' thread.

    /// Waits until there are orders, and takes them.
    pub async fn orders(&self) -> Vec<Order> {
        loop {
            let taken = {
                let mut orders = lock(&self.orders);
                orders.is_notified = false;
                std::mem::take(&mut orders.orders)
            };
            if !taken.is_empty() {
                return taken;
            }
            self.ordered.notified().await;
        }
    }

    fn report(&self, add: impl FnOnce(&mut Reports)) {
        let mut reports = lock(&self.reports);
        add(&mut reports);
        self.wake(reports);
    }

    fn wake(&self, mut reports: MutexGuard<'_, Reports>) {
        if !reports.is_woken {
            reports.is_woken = true;
            drop(reports);
            // The counter cannot overflow: it is written once until it is read.
            let _ = rustix::io::write(self.wake.as_fd(), &1u64.to_ne_bytes());
        }
    }

    pub fn opened(&self, opened: Opened) {
        self.report(|reports| reports.inbound.opened.push(opened));
    }

    /// Reports a message. Returns whether the stream's inbox holds `bytes_max` or more with it: then an `Order::Emptied` follows.
    pub fn received(&self, stream: StreamId, place: &mut Place, message: Bytes, bytes_max: usize) -> bool {
        let mut is_full = false;
        self.report(|reports| {
            let received = &mut reports.inbound.received;
            if place.drained != reports.drained {
                *place = Place { drained: reports.drained, index: received.len() };
                received.push(Received { stream, messages: Vec::with_capacity(1), bytes: 0, is_full: false });
            }
            let inbox = &mut received[place.index];
            inbox.bytes += message.len() + MESSAGE_OVERHEAD_BYTES;
            inbox.messages.push(message);
            is_full = inbox.bytes >= bytes_max;
            inbox.is_full = is_full;
        });
        is_full
    }

    pub fn writable(&self, stream: StreamId) {
        let mut reports = lock(&self.reports);
        reports.inbound.writable.push(stream);
        if reports.wakes_when_writable {
            self.wake(reports);
        }
    }

    pub fn finished(&self, stream: StreamId) {
        self.report(|reports| reports.inbound.finished.push(stream));
    }

    pub fn ended(&self) {
        self.report(|reports| reports.has_ended = true);
    }

    pub fn closed(&self, stream: StreamId) {
        self.report(|reports| reports.inbound.closed.push(stream));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_awake(handover: &Handover) -> bool {
        let mut counter = [0; 8];
        rustix::io::read(handover.wake.as_fd(), &mut counter).is_ok()
    }

    #[test]
    fn the_event_loop_is_woken_once_until_it_drains() {
        let handover = Handover::new().unwrap();
        assert!(!is_awake(&handover));
        handover.finished(1);
        handover.finished(2);
        assert!(is_awake(&handover));
        handover.closed(3);
        assert!(!is_awake(&handover));
        assert_eq!(handover.drain().finished, [1, 2]);
        handover.closed(1);
        assert!(is_awake(&handover));
    }

    #[test]
    fn the_event_loop_is_woken_by_a_writable_stream_if_it_asks_for_that() {
        let handover = Handover::new().unwrap();
        handover.writable(1);
        assert!(!is_awake(&handover));
        handover.wake_when_writable();
        assert!(is_awake(&handover));
        assert_eq!(handover.drain().writable, [1]);
        handover.wake_when_writable();
        assert!(!is_awake(&handover));
        handover.writable(2);
        assert!(is_awake(&handover));
        handover.drain();
        handover.writable(3);
        assert!(!is_awake(&handover));
    }

    #[test]
    fn messages_of_a_stream_stand_together_and_a_full_inbox_is_told_when_it_is_emptied() {
        let handover = Handover::new().unwrap();
        let (mut one, mut two) = (Place::default(), Place::default());
        assert!(!handover.received(1, &mut one, Bytes::from_static(b"12"), 130));
        assert!(!handover.received(2, &mut two, Bytes::from_static(b"xy"), 130));
        assert!(handover.received(1, &mut one, Bytes::from_static(b"34"), 130));
        let drained: Vec<_> =
            handover.drain().received.into_iter().map(|received| (received.stream, received.messages)).collect();
        assert_eq!(drained[0], (1, vec![Bytes::from_static(b"12"), Bytes::from_static(b"34")]));
        assert_eq!(drained[1], (2, vec![Bytes::from_static(b"xy")]));
        assert!(matches!(lock(&handover.orders).orders[..], [Order::Emptied(1)]));
        assert!(!handover.received(1, &mut one, Bytes::from_static(b"56"), 130));
        assert_eq!(handover.drain().received.len(), 1);
    }

    #[test]
    fn of_a_stream_that_was_closed_only_its_end_is_reported() {
        let handover = Handover::new().unwrap();
        let mut place = Place::default();
        handover.received(1, &mut place, Bytes::from_static(b"before"), 100);
        handover.closes(1);
        handover.writable(1);
        handover.finished(1);
        let inbound = handover.drain();
        assert!(inbound.received.is_empty() && inbound.writable.is_empty() && inbound.finished.is_empty());
        handover.received(1, &mut place, Bytes::from_static(b"after"), 100);
        handover.closed(1);
        let inbound = handover.drain();
        assert!(inbound.received.is_empty());
        assert_eq!(inbound.closed, [1]);
        assert!(lock(&handover.reports).closing.is_empty());
    }
}
