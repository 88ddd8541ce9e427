//! The way of all calls that are no streams of devices: on, over a Unix socket, to the server that answers them.
//!
//! Each client connection has one of its own there, so what that server does by connection it does by client.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::grpc;
use crate::guarded::Guarded;
use crate::handover::Status;
use crate::stream::turn_away;

/// Tells the server behind whom it serves. What a client says of itself under this name is dropped.
const PEER: HeaderName = HeaderName::from_static("x-chatgrpc-peer");

pub struct Passage {
    path: String,
    peer: HeaderValue,
    /// Made by the first call that needs it.
    connection: Rc<Mutex<Option<SendRequest<Bytes>>>>,
}

impl Passage {
    pub fn new(path: String, peer: &str) -> Self {
        let peer = HeaderValue::from_str(peer).expect("an address is ASCII");
        Self { path, peer, connection: Rc::default() }
    }

    /// Passes a call on, and its answer back.
    pub fn pass(
        &self,
        request: Request<Guarded<RecvStream>>,
        respond: SendResponse<Bytes>,
    ) -> impl Future<Output = ()> + use<> {
        let (path, peer, connection) = (self.path.clone(), self.peer.clone(), self.connection.clone());
        async move {
            match connected(&path, &connection).await {
                Ok(sender) => {
                    let _ = pass(sender, peer, request, respond).await;
                }
                Err(_) => turn_away(respond, &unavailable()),
            }
        }
    }
}

type Failure = Box<dyn std::error::Error>;

async fn connected(path: &str, connection: &Mutex<Option<SendRequest<Bytes>>>) -> Result<SendRequest<Bytes>, Failure> {
    let mut connection = connection.lock().await;
    if let Some(sender) = connection.as_ref() {
        // Says, too, whether the connection still stands.
        if let Ok(ready) = sender.clone().ready().await {
            return Ok(ready);
        }
    }
    let (sender, driver) = h2::client::Builder::new()
        .data_frame_budget(usize::MAX) // the server behind is ourselves
        .handshake(UnixStream::connect(path).await?)
        .await?;
    tokio::task::spawn_local(async move {
        let _ = driver.await;
    });
    *connection = Some(sender.clone());
    Ok(sender.ready().await?)
}

async fn pass(
    mut sender: SendRequest<Bytes>,
    peer: HeaderValue,
    request: Request<Guarded<RecvStream>>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), Failure> {
    let (mut head, body) = request.into_parts();
    head.headers.insert(PEER, peer);
    let mut uri = head.uri.into_parts();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority.get_or_insert_with(|| http::uri::Authority::from_static("localhost"));
    head.uri = Uri::from_parts(uri)?;
    let is_empty = body.is_end_stream();
    let Ok((answer, upward)) = sender.send_request(Request::from_parts(head, ()), is_empty) else {
        turn_away(respond, &unavailable());
        return Ok(());
    };
    let up = async {
        // What goes wrong on the way up shows in the answer, or in its absence; and an answer may be complete before the call is.
        if !is_empty {
            let _ = copy(body, upward).await;
        }
    };
    let down = async {
        let answer = match answered(&mut respond, answer).await {
            Ok(answer) => answer,
            Err(Unanswered::GivenUp) => return Ok(()),
            Err(Unanswered::Reset(reason)) => {
                respond.send_reset(reason);
                return Ok(());
            }
            Err(Unanswered::Lost) => {
                turn_away(respond, &unavailable());
                return Ok(());
            }
        };
        let (head, body) = answer.into_parts();
        let is_empty = body.is_end_stream();
        let downward = respond.send_response(Response::from_parts(head, ()), is_empty)?;
        if !is_empty {
            copy(body, downward).await?;
        }
        Ok::<(), Failure>(())
    };
    tokio::pin!(up, down);
    let mut is_up = false;
    loop {
        tokio::select! {
            () = &mut up, if !is_up => is_up = true,
            went = &mut down => return went,
        }
    }
}

fn unavailable() -> Status {
    Status::new(grpc::UNAVAILABLE, "The server does not answer calls yet, or no more. Try again.")
}

/// Why there is no answer.
enum Unanswered {
    /// The client wants none any more.
    GivenUp,
    /// The server behind has ended the call, by a reset.
    Reset(Reason),
    /// The connection to it is gone, or about to go.
    Lost,
}

async fn answered(
    respond: &mut SendResponse<Bytes>,
    mut answer: h2::client::ResponseFuture,
) -> Result<Response<Guarded<RecvStream>>, Unanswered> {
    poll_fn(|cx| {
        if respond.poll_reset(cx).is_ready() {
            return std::task::Poll::Ready(Err(Unanswered::GivenUp));
        }
        Pin::new(&mut answer).poll(cx).map_ok(|answer| answer.map(Guarded::new)).map_err(|error| match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => Unanswered::Reset(reason),
            _ => Unanswered::Lost,
        })
    })
    .await
}

/// Copies what one half sends, and its trailers, to the other, at the pace at which that is taken.
async fn copy(mut from: Guarded<RecvStream>, mut to: SendStream<Bytes>) -> Result<(), Failure> {
    let copied = copy_all(&mut from, &mut to).await;
    if let Err(failure) = &copied {
        let reason = failure.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        to.send_reset(reason.unwrap_or(Reason::INTERNAL_ERROR));
    }
    copied
}

async fn copy_all(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<(), Failure> {
    loop {
        let chunk = poll_fn(|cx| {
            if let std::task::Poll::Ready(reset) = to.poll_reset(cx) {
                return std::task::Poll::Ready(Some(Err(reset.map_or_else(|error| error, h2::Error::from))));
            }
            from.poll_data(cx)
        })
        .await;
        let Some(chunk) = chunk else { break };
        let mut chunk = chunk?;
        from.flow_control().release_capacity(chunk.len())?;
        while !chunk.is_empty() {
            to.reserve_capacity(chunk.len());
            let capacity = match poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(capacity) => capacity?,
                None => return Err(h2::Error::from(Reason::CANCEL).into()),
            };
            let part = chunk.split_to(capacity.min(chunk.len()));
            to.send_data(part, false)?;
        }
    }
    match poll_fn(|cx| from.poll_trailers(cx)).await? {
        Some(trailers) => to.send_trailers(trailers)?,
        None => to.send_data(Bytes::new(), true)?,
    }
    Ok(())
}
