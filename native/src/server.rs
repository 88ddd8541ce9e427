//! The thread of the streams: takes connections, speaks HTTP/2 on them, and does what the event loop orders.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::grpc;
use crate::guarded::{CallTasks, Guarded, contained};
use crate::handover::{Handover, Opened, Order, Status, StreamId};
use crate::idle::{Calls, IdleConnections, IdleLimits, OpenCall};
use crate::passage::Passage;
use crate::stream::{Stream, StreamLimits, turn_away};

/// How a server listens, and what its peers may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// Path of the method whose calls are streams of devices: `/package.Service/Method`.
    pub path: String,
    /// Unix socket of the server that answers all other calls; none = they are UNIMPLEMENTED.
    pub passage: Option<String>,
    pub inbox_bytes_max: usize,
    pub message_bytes_max: usize,
    pub close_timeout: Duration,
    pub streams_per_connection_max: u32,
    /// Streams of one address whose devices are not let in yet.
    pub strangers_per_address_max: usize,
    /// How more are refused.
    pub strangers_refusal: Status,
    pub handshake_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub idle: IdleLimits,
    /// An older connection takes no new calls, so that load spreads over new nodes; it varies by a tenth.
    pub connection_age_max: Duration,
    /// How long the calls of an old connection may go on.
    pub connection_age_grace: Duration,
    /// How long connections may take, once the server stops, to take what was written.
    pub stop_grace: Duration,
}

/// A stream's flow-control window: what a fast sender can put into our memory unread.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024 - 1;
/// What frames of a few bytes may take beside what is in them until they are read, which is soon: some 130,000 of them. `h2` never
/// takes off those that come for a stream that is closed, and a connection may be old.
const SMALL_FRAMES_BUDGET_BYTES: usize = 32 * 1024 * 1024;
/// A connection that is to close, and has no call for as long, is closed though its peer does not agree.
const CLOSED_AFTER: Duration = Duration::from_secs(10);
const HANG_UP_TIMEOUT: Duration = Duration::from_millis(100);
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// What HTTP/2 may hold of one stream's output, beside the message under way.
const SEND_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Serves until it is ordered to stop.
pub async fn serve(listener: std::net::TcpListener, options: Options, handover: Arc<Handover>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let server = Rc::new(Server::new(options, handover));
    let stop_grace = server.options.stop_grace;
    LocalSet::new()
        .run_until(async move {
            let mut connections = JoinSet::new();
            // First of all the certificate, if there is one.
            let obeying = server.obey();
            tokio::pin!(obeying);
            loop {
                tokio::select! {
                    biased;
                    () = &mut obeying => break,
                    Some(_) = connections.join_next() => {}
                    (socket, address) = accept(&listener) => {
                        connections.spawn_local(server.clone().connection(socket, address));
                    }
                }
            }
            drop(listener);
            server.stopping.send_replace(true);
            let _ = tokio::time::timeout(stop_grace, async { while connections.join_next().await.is_some() {} }).await;
            Ok(())
        })
        .await
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // Out of descriptors, say: those that are there go on, and closing one frees a place.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

struct Server {
    options: Options,
    limits: Rc<StreamLimits>,
    handover: Arc<Handover>,
    streams: RefCell<HashMap<StreamId, Entry>>,
    strangers: RefCell<HashMap<String, usize>>,
    next_id: std::cell::Cell<StreamId>,
    /// None = no TLS.
    tls: RefCell<Option<TlsAcceptor>>,
    idle: IdleConnections,
    stopping: watch::Sender<bool>,
}

/// Who is on a connection, and what is under way there.
struct Caller {
    peer: String,
    holder: String,
    passage: Option<Passage>,
    calls: Rc<Calls>,
    tasks: CallTasks,
}

struct Entry {
    /// None once it is gone, and the event loop has not heard that.
    stream: Option<Rc<RefCell<Stream>>>,
    /// The address that gave it a place for strangers; none once its device is let in.
    stranger_of: Option<String>,
}

/// A stream that is served; when that is over, however it ends, it is forgotten and its end reported.
struct Served {
    server: Rc<Server>,
    id: StreamId,
    _open_call: OpenCall,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.forget(self.id);
        self.server.handover.closed(self.id);
    }
}

impl Server {
    fn new(options: Options, handover: Arc<Handover>) -> Self {
        let limits = Rc::new(StreamLimits {
            inbox_bytes_max: options.inbox_bytes_max,
            message_bytes_max: options.message_bytes_max,
            close_timeout: options.close_timeout,
        });
        Self {
            idle: IdleConnections::new(options.idle),
            stopping: watch::Sender::new(false),
            options,
            limits,
            handover,
            streams: RefCell::default(),
            strangers: RefCell::default(),
            next_id: std::cell::Cell::new(1),
            tls: RefCell::default(),
        }
    }

    // Orders.

    async fn obey(&self) {
        loop {
            for order in self.handover.orders().await {
                match order {
                    Order::Write(id, message) => self.with(id, |stream| stream.write(message)),
                    Order::LetIn(id) => self.let_in(id),
                    Order::Hold(id) => self.with(id, Stream::hold),
                    Order::Release(id) => self.with(id, Stream::release),
                    Order::Emptied(id) => self.with(id, Stream::emptied),
                    Order::Close(id, status, last) => self.with(id, |stream| stream.close(status, last)),
                    Order::Heard(gone) => gone.into_iter().for_each(|id| self.heard(id)),
                    Order::UseCertificate(config) => *self.tls.borrow_mut() = Some(config.into()),
                    Order::Stop => return,
                }
            }
        }
    }

    /// Does something with a stream; nothing if it is gone.
    fn with(&self, id: StreamId, f: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.streams.borrow().get(&id).and_then(|entry| entry.stream.as_ref()) {
            // It may be one of a connection that panicked, and whose streams end any moment: nobody else's wait for that.
            let _ = contained(|| f(&mut stream.borrow_mut()));
        }
    }

    fn let_in(&self, id: StreamId) {
        if let Some(address) = self.streams.borrow_mut().get_mut(&id).and_then(|entry| entry.stranger_of.take()) {
            self.give_place_back(&address);
        }
    }

    // Connections.

    async fn connection(self: Rc<Self>, socket: TcpStream, address: SocketAddr) {
        let _ = socket.set_nodelay(true);
        let tls = self.tls.borrow().clone();
        let Some(tls) = tls else {
            return self.http2(socket, address).await;
        };
        if let Some(Ok(encrypted)) = self.shaken(address, tls.accept(socket)).await {
            self.http2(encrypted, address).await;
        }
    }

    /// What comes of a handshake; None if it takes too long. Until then the connection counts as an idle one of its address.
    async fn shaken<T>(&self, address: SocketAddr, handshake: impl Future<Output = T>) -> Option<T> {
        let (holder, no_calls) = (holder_of(address), Calls::default());
        tokio::select! {
            shaken = tokio::time::timeout(self.options.handshake_timeout, handshake) => shaken.ok(),
            () = self.idle.outlasted(&holder, &no_calls) => None,
        }
    }

    async fn http2<S: AsyncRead + AsyncWrite + Unpin>(self: Rc<Self>, mut socket: S, address: SocketAddr) {
        let handshake = h2::server::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            // Streams that must wait keep their windows, and must not keep that of the others on their connection.
            .initial_connection_window_size(self.options.streams_per_connection_max.saturating_mul(STREAM_WINDOW_BYTES))
            .max_concurrent_streams(self.options.streams_per_connection_max)
            // A proxy may give up all of its streams at once; more is an attack (CVE-2023-44487).
            .max_pending_accept_reset_streams(self.options.streams_per_connection_max as usize)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .data_frame_budget(SMALL_FRAMES_BUDGET_BYTES)
            .handshake(&mut socket);
        match self.shaken(address, handshake).await {
            Some(Ok(connection)) => return self.speak(connection, address).await,
            Some(Err(_)) => {}
            None => return,
        }
        hang_up(&mut socket).await;
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
        self: Rc<Self>,
        mut connection: Connection<S, Bytes>,
        address: SocketAddr,
    ) {
        let peer = grpc::peer_name(address);
        let passage = self.options.passage.as_ref().map(|path| Passage::new(path.clone(), &peer));
        let caller = Caller { peer, holder: holder_of(address), passage, calls: Rc::default(), tasks: CallTasks::default() };
        let gone = self.is_gone(connection.ping_pong());
        let idle = self.idle.outlasted(&caller.holder, &caller.calls);
        let old = tokio::time::sleep(varied(self.options.connection_age_max));
        let mut stopping = self.stopping.subscribe();
        let too_old = tokio::time::sleep(Duration::MAX);
        let silent = caller.calls.silent_for(CLOSED_AFTER);
        tokio::pin!(gone, idle, old, too_old, silent);
        let mut is_closing = false;
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        self.call(request.map(Guarded::new), respond, &caller);
                        continue;
                    }
                    // Dropping the connection breaks the streams that it still has, and each reports that itself.
                    Some(Err(_)) | None => return,
                },
                () = &mut gone => return,
                () = &mut too_old => return,
                () = &mut silent, if is_closing => return,
                () = &mut idle, if !is_closing => {}
                () = &mut old, if !is_closing => {}
                _ = stopping.wait_for(|is_stopping| *is_stopping), if !is_closing => {}
            }
            // Calls that are open go on; whoever wants to make new ones connects anew.
            is_closing = true;
            too_old.as_mut().reset(Instant::now() + self.options.connection_age_grace);
            connection.graceful_shutdown();
        }
    }

    /// Returns when the peer does not answer a ping. The first one goes out while it could still shake hands: a peer that does not
    /// speak HTTP/2 behind its preface does not answer it.
    async fn is_gone(&self, pings: Option<h2::PingPong>) {
        let Some(mut pings) = pings else {
            return std::future::pending().await;
        };
        let (mut rest, mut timeout) = (self.options.handshake_timeout / 2, self.options.handshake_timeout / 2);
        loop {
            tokio::time::sleep(rest).await;
            match tokio::time::timeout(timeout, pings.ping(h2::Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
            (rest, timeout) = (self.options.keepalive_interval, self.options.keepalive_timeout);
        }
    }

    fn call(self: &Rc<Self>, request: Request<Guarded<RecvStream>>, respond: SendResponse<Bytes>, caller: &Caller) {
        let open_call = caller.calls.open();
        let spawn = |call: Pin<Box<dyn Future<Output = ()>>>| caller.tasks.add(spawn_local(call).abort_handle());
        if !is_grpc(&request) {
            let (body, ends_within) = (request.into_body(), self.options.handshake_timeout);
            spawn(Box::pin(async move {
                say_what_this_is(body, respond, ends_within).await;
                drop(open_call);
            }));
        } else if request.uri().path() == self.options.path {
            let timeout = grpc::timeout_of(request.headers());
            if let Some((id, stream)) = self.open(request, respond, &caller.peer, &caller.holder) {
                let served = Served { server: self.clone(), id, _open_call: open_call };
                spawn(Box::pin(async move {
                    Stream::serve(stream, timeout).await;
                    drop(served);
                }));
            }
        } else if let Some(passage) = &caller.passage {
            let passing = passage.pass(request, respond);
            spawn(Box::pin(async move {
                passing.await;
                drop(open_call);
            }));
        } else {
            turn_away(respond, &Status::new(grpc::UNIMPLEMENTED, "There is no such method here."));
        }
    }

    fn open(
        &self,
        request: Request<Guarded<RecvStream>>,
        respond: SendResponse<Bytes>,
        peer: &str,
        holder: &str,
    ) -> Option<(StreamId, Rc<RefCell<Stream>>)> {
        let compression = match grpc::compression_of(request.headers()) {
            Ok(compression) => compression,
            Err(refusal) => {
                turn_away(respond, &refusal);
                return None;
            }
        };
        if !self.take_place(holder) {
            turn_away(respond, &self.options.strangers_refusal);
            return None;
        }
        let id = self.next_id.get();
        let token = grpc::bearer_token(request.headers());
        let Some(stream) =
            Stream::accept(id, self.handover.clone(), self.limits.clone(), compression, request.into_body(), respond)
        else {
            self.give_place_back(holder);
            return None;
        };
        self.next_id.set(id + 1);
        self.streams.borrow_mut().insert(id, Entry { stream: Some(stream.clone()), stranger_of: Some(holder.to_owned()) });
        self.handover.opened(Opened { stream: id, peer: peer.to_owned(), token });
        Some((id, stream))
    }

    /// The stream is gone. Its place goes back once the event loop has heard that: so nobody can open and break streams faster
    /// than it hears of them.
    fn forget(&self, id: StreamId) {
        if let Some(entry) = self.streams.borrow_mut().get_mut(&id) {
            entry.stream = None;
        }
    }

    fn heard(&self, id: StreamId) {
        if let Some(address) = self.streams.borrow_mut().remove(&id).and_then(|entry| entry.stranger_of) {
            self.give_place_back(&address);
        }
    }

    fn take_place(&self, address: &str) -> bool {
        let mut strangers = self.strangers.borrow_mut();
        let held = strangers.entry(address.to_owned()).or_default();
        let has_place = *held < self.options.strangers_per_address_max;
        if has_place {
            *held += 1;
        }
        has_place
    }

    fn give_place_back(&self, address: &str) {
        let mut strangers = self.strangers.borrow_mut();
        if let std::collections::hash_map::Entry::Occupied(mut held) = strangers.entry(address.to_owned()) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// Closes a connection so that its peer sees an end and not a reset, which comes where something was left unread.
async fn hang_up<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut S) {
    let reading = async {
        let mut unread = [0; 4096];
        let _ = socket.shutdown().await;
        while matches!(socket.read(&mut unread).await, Ok(1..)) {}
    };
    let _ = tokio::time::timeout(HANG_UP_TIMEOUT, reading).await;
}

/// The duration, more or less by up to a tenth, so that what began together does not end together.
fn varied(duration: Duration) -> Duration {
    let mut random = [0; 8];
    // Without it all have the same age, and that is all.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    duration.mul_f64(0.9 + 0.2 * f64::from(u16::from_ne_bytes([random[0], random[1]])) / f64::from(u16::MAX))
}

/// Answers what a browser sends, say, once it has sent it. An answer before the end would leave what is wrong with the rest unsaid.
async fn say_what_this_is(mut body: Guarded<RecvStream>, mut respond: SendResponse<Bytes>, ends_within: Duration) {
    let reading = async {
        while let Some(chunk) = poll_fn(|cx| body.poll_data(cx)).await {
            body.flow_control().release_capacity(chunk?.len())?;
        }
        poll_fn(|cx| body.poll_trailers(cx)).await
    };
    if !matches!(tokio::time::timeout(ends_within, reading).await, Ok(Ok(_))) {
        return; // which resets the stream
    }
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    if let Ok(mut body) = respond.send_response(response, false) {
        let _ = body.send_data(Bytes::from_static(b"This port speaks gRPC.\n"), true);
    }
}

fn is_grpc(request: &Request<Guarded<RecvStream>>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    request.method() == Method::POST && content_type.is_some_and(|name| name.starts_with(b"application/grpc"))
}

/// Whom an address counts as: itself, of IPv6 the network of 64 bits, which one subscriber has at least.
fn holder_of(address: SocketAddr) -> String {
    match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use h2::SendStream;
    use h2::client::{ResponseFuture, SendRequest};
    use std::task::{Wake, Waker};

    const PATH: &str = "/chat/Connect";

    fn server() -> Rc<Server> {
        let long = Duration::from_secs(60);
        let options = Options {
            path: PATH.to_owned(),
            passage: None,
            inbox_bytes_max: 1_000,
            message_bytes_max: 1_000,
            close_timeout: long,
            streams_per_connection_max: 10,
            strangers_per_address_max: 10,
            strangers_refusal: Status::OK,
            handshake_timeout: long,
            keepalive_interval: long,
            keepalive_timeout: long,
            idle: IdleLimits { idle_max: long, per_address_max: 10, grace: long },
            connection_age_max: long,
            connection_age_grace: long,
            stop_grace: long,
        };
        Rc::new(Server::new(options, Arc::new(Handover::new().unwrap())))
    }

    async fn connected(server: &Rc<Server>) -> SendRequest<Bytes> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        spawn_local(server.clone().http2(theirs, "127.0.0.1:1".parse().unwrap()));
        let (sender, driver) = h2::client::handshake(ours).await.unwrap();
        spawn_local(async move {
            let _ = driver.await;
        });
        sender
    }

    async fn opened(sender: &SendRequest<Bytes>) -> (ResponseFuture, SendStream<Bytes>) {
        let uri = format!("http://localhost{PATH}");
        let request = Request::post(uri).header("content-type", "application/grpc").body(()).unwrap();
        sender.clone().ready().await.unwrap().send_request(request, false).unwrap()
    }

    /// What the event loop hears until there is so much.
    async fn heard<T>(server: &Server, wanted: usize, which: impl Fn(crate::handover::Inbound) -> Vec<T>) -> Vec<T> {
        let mut found = Vec::new();
        while found.len() < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
            found.extend(which(server.handover.drain()));
        }
        found
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("planted");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_within_http2_costs_its_connection_and_no_other() {
        let server = server();
        LocalSet::new()
            .run_until(async {
                let obedient = server.clone();
                let obeying = spawn_local(async move { obedient.obey().await });
                let (broken, whole) = (connected(&server).await, connected(&server).await);
                let (_one, mut sends) = opened(&broken).await;
                let _other = opened(&broken).await;
                let (answer, _sends) = opened(&whole).await;
                let ids = heard(&server, 3, |inbound| inbound.opened.iter().map(|one| one.stream).collect()).await;
                server.with(ids[0], |stream| stream.wakes(&Waker::from(Arc::new(Panics))));
                sends.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), false).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
                server.handover.order(ids.iter().map(|id| Order::Write(*id, Bytes::from_static(b"told"))));
                let mut closed = heard(&server, 2, |inbound| inbound.closed).await;
                closed.sort_unstable();
                assert_eq!(closed, ids[..2]);
                let mut body = answer.await.unwrap().into_body();
                assert_eq!(body.data().await.unwrap().unwrap(), "told");
                assert!(!obeying.is_finished());
            })
            .await;
    }
}
