//! One device's stream: what is read of it and not yet handed over, the message under way to it, and how it ends.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response, StatusCode};

use crate::frames::{Compression, FrameReader, Malformed};
use crate::grpc;
use crate::guarded::Guarded;
use crate::handover::{Handover, Place, Status, StreamId};

/// What all streams share.
pub struct StreamLimits {
    /// A stream with this many bytes unread is not read on.
    pub inbox_bytes_max: usize,
    /// Longest message that is received.
    pub message_bytes_max: usize,
    /// How long a peer may take to read what closing leaves for it.
    pub close_timeout: Duration,
}

pub struct Stream {
    id: StreamId,
    handover: std::sync::Arc<Handover>,
    limits: Rc<StreamLimits>,
    incoming: Guarded<RecvStream>,
    outgoing: Guarded<SendStream<Bytes>>,
    reader: FrameReader,
    place: Place,
    is_held: bool,
    inbox_is_full: bool,
    incoming_end: IncomingEnd,
    /// Bytes that were read and for which the peer has no window yet: it gets it back once they may be handed over.
    unreleased: usize,
    /// What is left of the message under way; empty = there is none.
    unsent: Bytes,
    end: End,
    waker: Option<Waker>,
}

/// Whether the peer has closed its half.
#[derive(PartialEq, Eq)]
enum IncomingEnd {
    NotYet,
    Seen,
    HandedOver,
}

enum End {
    /// It is open.
    NotYet,
    /// What is to be sent before it is over, beside the message under way.
    Wanted { last: Bytes, status: Status },
    /// Nothing more happens.
    Over,
}

impl Stream {
    /// Answers the call with its headers. None if the peer is gone already.
    pub fn accept(
        id: StreamId,
        handover: std::sync::Arc<Handover>,
        limits: Rc<StreamLimits>,
        compression: Compression,
        incoming: Guarded<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Rc<RefCell<Self>>> {
        let outgoing = Guarded::new(respond.send_response(grpc::response_headers(), false).ok()?);
        let reader = FrameReader::new(limits.message_bytes_max, compression);
        Some(Rc::new(RefCell::new(Self {
            id,
            handover,
            limits,
            incoming,
            outgoing,
            reader,
            place: Place::default(),
            is_held: false,
            inbox_is_full: false,
            incoming_end: IncomingEnd::NotYet,
            unreleased: 0,
            unsent: Bytes::new(),
            end: End::NotYet,
            waker: None,
        })))
    }

    /// Serves the stream until it is over.
    ///
    /// `timeout`: how long it may last, if its client says so.
    pub async fn serve(stream: Rc<RefCell<Self>>, timeout: Option<Duration>) {
        let close_timeout = stream.borrow().limits.close_timeout;
        let to_its_end = poll_fn(|cx| stream.borrow_mut().poll_until(cx, |end| !matches!(end, End::NotYet)));
        if tokio::time::timeout(timeout.unwrap_or(Duration::MAX), to_its_end).await.is_err() {
            let status = Status::new(grpc::DEADLINE_EXCEEDED, "The stream has lasted for as long as its client had said.");
            stream.borrow_mut().close(status, Bytes::new());
        }
        // If it is being closed, the peer may not have taken all of it yet.
        let over = poll_fn(|cx| stream.borrow_mut().poll_until(cx, |end| matches!(end, End::Over)));
        if tokio::time::timeout(close_timeout, over).await.is_err() {
            stream.borrow_mut().outgoing.send_reset(Reason::CANCEL);
        }
    }

    /// Has the next chunk that comes wake this one, while HTTP/2 holds its lock.
    #[cfg(test)]
    pub fn wakes(&mut self, waker: &Waker) {
        assert!(self.incoming.poll_data(&mut Context::from_waker(waker)).is_pending());
    }

    // What the event loop wants.

    /// Begins to send a message.
    pub fn write(&mut self, message: Bytes) {
        if matches!(self.end, End::NotYet) {
            self.unsent = message;
            if self.send_some().is_err() || !self.unsent.is_empty() {
                self.wake();
            }
        }
    }

    pub fn hold(&mut self) {
        self.is_held = true;
    }

    pub fn release(&mut self) {
        self.is_held = false;
        self.wake();
    }

    pub fn emptied(&mut self) {
        self.inbox_is_full = false;
        self.wake();
    }

    /// Ends the stream after the message under way, `last` and the status. The first ending counts.
    pub fn close(&mut self, status: Status, last: Bytes) {
        if matches!(self.end, End::NotYet) {
            self.end = End::Wanted { last, status };
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Goes on as far as it can; ready when it has come to an end of that kind.
    fn poll_until(&mut self, cx: &mut Context<'_>, is_end: impl Fn(&End) -> bool) -> Poll<()> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
        if !matches!(self.end, End::Over) && self.go_on(cx).is_err() {
            self.end = End::Over;
        }
        if is_end(&self.end) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Err = the call is broken. What came before it broke is handed over.
    fn go_on(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        self.read_on(cx)?;
        if let Poll::Ready(reset) = self.outgoing.poll_reset(cx) {
            return Err(reset.map_or_else(|error| error, h2::Error::from));
        }
        self.write_on(cx)
    }

    /// Takes in all that has come, and hands over what may be. What may not stays here, and its window with us: so a peer that
    /// must wait sends no more than a window, and the queue of HTTP/2, in which a small frame costs much, stays empty.
    fn read_on(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        loop {
            self.hand_over()?;
            if self.incoming_end != IncomingEnd::NotYet || !matches!(self.end, End::NotYet) {
                return Ok(());
            }
            match self.incoming.poll_data(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(chunk))) => {
                    self.unreleased += chunk.len();
                    self.reader.push(chunk);
                }
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(None) => self.incoming_end = IncomingEnd::Seen,
            }
        }
    }

    fn hand_over(&mut self) -> Result<(), h2::Error> {
        while !self.is_held && !self.inbox_is_full && matches!(self.end, End::NotYet) {
            self.incoming.flow_control().release_capacity(std::mem::take(&mut self.unreleased))?;
            match self.reader.take() {
                Ok(Some(message)) => {
                    self.inbox_is_full = self.handover.received(self.id, &mut self.place, message, self.limits.inbox_bytes_max);
                }
                Ok(None) if self.incoming_end == IncomingEnd::Seen => match self.reader.at_end() {
                    Ok(()) => {
                        self.incoming_end = IncomingEnd::HandedOver;
                        self.handover.finished(self.id);
                    }
                    Err(malformed) => self.refuse(malformed),
                },
                Ok(None) => return Ok(()),
                Err(malformed) => self.refuse(malformed),
            }
        }
        Ok(())
    }

    /// The peer sends what is no gRPC, or too much: its stream ends with a status that says so.
    fn refuse(&mut self, malformed: Malformed) {
        self.end = End::Wanted { last: Bytes::new(), status: grpc::refusal_of(malformed) };
    }

    fn write_on(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        loop {
            while !self.unsent.is_empty() {
                self.send_some()?;
                if !self.unsent.is_empty() {
                    match self.outgoing.poll_capacity(cx) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(None) => return Err(Reason::CANCEL.into()),
                        Poll::Ready(Some(capacity)) => capacity?,
                    };
                }
            }
            let End::Wanted { last, status } = &mut self.end else {
                return Ok(());
            };
            if last.is_empty() {
                let trailers = grpc::trailers_of(status);
                self.outgoing.send_trailers(trailers)?;
                self.end = End::Over;
                return Ok(());
            }
            self.unsent = std::mem::take(last);
        }
    }

    /// Hands HTTP/2 as much of the message under way as flow control lets through now.
    fn send_some(&mut self) -> Result<(), h2::Error> {
        self.outgoing.reserve_capacity(self.unsent.len());
        let capacity = self.outgoing.capacity().min(self.unsent.len());
        if capacity > 0 {
            self.outgoing.send_data(self.unsent.split_to(capacity), false)?;
            if self.unsent.is_empty() && matches!(self.end, End::NotYet) {
                self.handover.writable(self.id);
            }
        }
        Ok(())
    }
}

/// Ends a call that has not become a stream, with headers alone.
pub fn turn_away(mut respond: SendResponse<Bytes>, status: &Status) {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    let mut headers: HeaderMap = grpc::trailers_of(status);
    headers.extend(grpc::response_headers().headers().clone());
    *response.headers_mut() = headers;
    let _ = respond.send_response(response, true);
}
