//! The native edge of chatgrpc: devices' streams, spoken in gRPC on a thread of their own, and handed to the event loop in batches.
//!
//! `chatgrpc.edge.native_transport` makes of it what `chatgrpc.edge.transport.Transport` promises.

pub mod frames;
mod grpc;
mod guarded;
pub mod handover;
pub mod idle;
mod passage;
#[cfg(feature = "python")]
mod python;
pub mod server;
mod stream;
pub mod tls;
