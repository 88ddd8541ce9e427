//! What Python sees of it: the class `chatgrpc_edge.Streams`.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::{PyAssertionError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::frames::framed;
use crate::handover::{Handover, Order, Status, StreamId, lock};
use crate::idle::IdleLimits;
use crate::server::{self, Options};
use crate::tls;

type Drained<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Vec<StreamId>, Vec<StreamId>, Vec<StreamId>);

/// Devices' streams. Every method but `stop` returns at once.
#[pyclass]
struct Streams {
    options: Options,
    handover: Arc<Handover>,
    /// Those of which the opening was drained and the end was not, and whether each is writable.
    live: Mutex<HashMap<StreamId, bool>>,
    thread: Mutex<Option<JoinHandle<std::io::Result<()>>>>,
}

#[pymethods]
impl Streams {
    #[new]
    #[pyo3(signature = (
        *, path, inbox_bytes_max, message_bytes_max, close_timeout_s, streams_per_connection_max,
        strangers_per_address_max, strangers_refusal, handshake_timeout_s, keepalive_interval_s, keepalive_timeout_s, idle_max_s,
        idle_per_address_max, idle_grace_s, connection_age_max_s, connection_age_grace_s, stop_grace_s,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are named in Python")]
    fn new(
        path: String,
        inbox_bytes_max: usize,
        message_bytes_max: usize,
        close_timeout_s: f64,
        streams_per_connection_max: u32,
        strangers_per_address_max: usize,
        strangers_refusal: WireStatus,
        handshake_timeout_s: f64,
        keepalive_interval_s: f64,
        keepalive_timeout_s: f64,
        idle_max_s: f64,
        idle_per_address_max: usize,
        idle_grace_s: f64,
        connection_age_max_s: f64,
        connection_age_grace_s: f64,
        stop_grace_s: f64,
    ) -> PyResult<Self> {
        let options = Options {
            path,
            passage: None,
            inbox_bytes_max,
            message_bytes_max,
            close_timeout: Duration::from_secs_f64(close_timeout_s),
            streams_per_connection_max,
            strangers_per_address_max,
            strangers_refusal: strangers_refusal.into(),
            handshake_timeout: Duration::from_secs_f64(handshake_timeout_s),
            keepalive_interval: Duration::from_secs_f64(keepalive_interval_s),
            keepalive_timeout: Duration::from_secs_f64(keepalive_timeout_s),
            idle: IdleLimits {
                idle_max: Duration::from_secs_f64(idle_max_s),
                per_address_max: idle_per_address_max,
                grace: Duration::from_secs_f64(idle_grace_s),
            },
            connection_age_max: Duration::from_secs_f64(connection_age_max_s),
            connection_age_grace: Duration::from_secs_f64(connection_age_grace_s),
            stop_grace: Duration::from_secs_f64(stop_grace_s),
        };
        Ok(Self { options, handover: Arc::new(Handover::new()?), live: Mutex::default(), thread: Mutex::default() })
    }

    /// Shows this certificate, a chain as PEM, in every TLS handshake that begins from now on. Before `serve`, or there is no TLS.
    fn use_certificate(&self, certificate: &[u8], key: &[u8]) -> PyResult<()> {
        let config = tls::configuration(certificate, key).map_err(PyValueError::new_err)?;
        self.handover.order([Order::UseCertificate(config)]);
        Ok(())
    }

    /// Serves a listening TCP socket, whose descriptor is ours from now on, and passes other calls on to the Unix socket `passage`.
    fn serve(&self, listener: RawFd, passage: Option<String>) -> PyResult<()> {
        use std::os::fd::FromRawFd;
        let mut thread = lock(&self.thread);
        if thread.is_some() {
            return Err(PyRuntimeError::new_err("it serves already"));
        }
        // SAFETY: the caller has given the descriptor up, as the docstring asks; Python's socket.detach() does.
        let listener = unsafe { std::net::TcpListener::from_raw_fd(listener) };
        listener.set_nonblocking(true)?;
        let options = Options { passage, ..self.options.clone() };
        let handover = self.handover.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let serving = std::thread::Builder::new().name("chatgrpc-edge".to_owned()).spawn(move || {
            let _ended = Ended(handover.clone());
            runtime.block_on(server::serve(listener, options, handover))
        })?;
        *thread = Some(serving);
        Ok(())
    }

    /// Takes no more connections, gives peers some time to take what was written, cuts what is left, and ends the thread. What was
    /// reported before can still be drained. May be called on any thread.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            self.handover.order([Order::Stop]);
            match py.detach(|| thread.join()) {
                Ok(ended) => ended.map_err(PyOSError::new_err)?,
                Err(_) => return Err(PyRuntimeError::new_err("the thread of the streams has panicked")),
            }
        }
        Ok(())
    }

    /// The descriptor that is readable when there is something to drain.
    fn wake_fd(&self) -> RawFd {
        self.handover.wake_fd()
    }

    /// Makes the descriptor unreadable until the next report after the next drain.
    fn quiet(&self) {
        self.handover.quiet();
    }

    /// Makes the descriptor readable also when a stream is writable, until the next drain; without this that alone does not.
    fn wake_when_writable(&self) {
        self.handover.wake_when_writable();
    }

    /// What happened since the last call: opened (stream, peer, token), received (stream, messages), writable, finished, closed.
    ///
    /// Raises `RuntimeError` if the thread of the streams has ended, which it does by a defect only, unless it is stopped.
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Drained<'py>> {
        if self.handover.has_ended() && lock(&self.thread).is_some() {
            return Err(PyRuntimeError::new_err("the thread of the streams has ended by itself"));
        }
        let inbound = self.handover.drain();
        {
            let mut live = lock(&self.live);
            live.extend(
                inbound.opened.iter().map(|one| (one.stream, true)).chain(inbound.writable.iter().map(|one| (*one, true))),
            );
            for stream in &inbound.closed {
                live.remove(stream);
            }
        }
        let opened = PyList::empty(py);
        for one in inbound.opened {
            opened.append((one.stream, one.peer, one.token))?;
        }
        let received = PyList::empty(py);
        for one in inbound.received {
            let messages = PyList::new(py, one.messages.iter().map(|message| PyBytes::new(py, message)))?;
            received.append(PyTuple::new(py, [one.stream.into_pyobject(py)?.into_any(), messages.into_any()])?)?;
        }
        Ok((opened, received, inbound.writable, inbound.finished, inbound.closed))
    }

    /// Sends one message on each of the streams.
    fn write(&self, messages: &Bound<'_, PyAny>) -> PyResult<()> {
        let messages: Vec<(StreamId, Bound<'_, PyBytes>)> =
            messages.try_iter()?.map(|one| one?.extract()).collect::<PyResult<_>>()?;
        let mut orders = Vec::with_capacity(messages.len());
        let mut is_mistaken = false;
        let mut live = lock(&self.live);
        for (stream, message) in messages {
            match live.get_mut(&stream) {
                None => {} // it is gone
                Some(is_writable) if *is_writable => {
                    *is_writable = false;
                    orders.push(Order::Write(stream, framed(message.as_bytes())));
                }
                Some(_) => is_mistaken = true,
            }
        }
        drop(live);
        self.handover.order(orders);
        if is_mistaken {
            return Err(PyAssertionError::new_err("a message was written to a stream that was not writable"));
        }
        Ok(())
    }

    fn let_in(&self, stream: StreamId) {
        self.handover.order([Order::LetIn(stream)]);
    }

    fn hold(&self, stream: StreamId) {
        self.handover.order([Order::Hold(stream)]);
    }

    fn release(&self, stream: StreamId) {
        self.handover.order([Order::Release(stream)]);
    }

    /// Ends a stream: the message under way, then `last` (if not empty), then the status.
    fn close(&self, stream: StreamId, status: WireStatus, last: &[u8]) {
        if lock(&self.live).contains_key(&stream) {
            self.handover.closes(stream);
            let last = if last.is_empty() { Bytes::new() } else { framed(last) };
            self.handover.order([Order::Close(stream, status.into(), last)]);
        }
    }
}

/// Tells the event loop when the thread of the streams is over, be it by a panic.
struct Ended(Arc<Handover>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// Number, message, and a serialized `google.rpc.Status`.
type WireStatus = (u8, String, Vec<u8>);

impl From<WireStatus> for Status {
    fn from((code, message, details): WireStatus) -> Self {
        Self { code, message, details }
    }
}

/// The native edge of chatgrpc.
#[pymodule]
fn chatgrpc_edge(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Streams>()
}
