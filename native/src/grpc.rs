//! What gRPC puts into HTTP/2: headers, statuses, trailers. Source: "gRPC over HTTP2" in the gRPC documentation.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::frames::{Compression, Malformed};
use crate::handover::Status;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

const BEARER: &str = "bearer ";
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,deflate,gzip");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

pub const DEADLINE_EXCEEDED: u8 = 4;
pub const RESOURCE_EXHAUSTED: u8 = 8;
pub const UNIMPLEMENTED: u8 = 12;
pub const INTERNAL: u8 = 13;
pub const UNAVAILABLE: u8 = 14;

pub fn response_headers() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    response.headers_mut().insert(ACCEPT_ENCODING, ACCEPTED);
    response
}

/// How a call says that its messages may be compressed; the status with which it is refused if nobody here can unpack that.
pub fn compression_of(headers: &HeaderMap) -> Result<Compression, Status> {
    match headers.get(ENCODING).map_or(&b"identity"[..], HeaderValue::as_bytes) {
        b"identity" => Ok(Compression::Identity),
        b"gzip" => Ok(Compression::Gzip),
        b"deflate" => Ok(Compression::Deflate),
        _ => Err(Status::new(UNIMPLEMENTED, "Messages may be compressed by gzip or deflate, or not at all.")),
    }
}

/// How long a call may take, as its client says: up to eight digits and a unit. What is none is no limit.
pub fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

pub fn trailers_of(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert(STATUS, HeaderValue::from(u16::from(status.code)));
    if !status.message.is_empty() {
        trailers.insert(MESSAGE, percent_encoded(&status.message));
    }
    if !status.details.is_empty() {
        trailers.insert(DETAILS, base64(&status.details));
    }
    trailers
}

pub fn refusal_of(malformed: Malformed) -> Status {
    match malformed {
        Malformed::TooLong => Status::new(RESOURCE_EXHAUSTED, "The message is longer than limits.batch_bytes_max."),
        Malformed::Compressed => Status::new(INTERNAL, "A message is compressed, and the call named no compression."),
        Malformed::Garbled => Status::new(INTERNAL, "A message cannot be unpacked as the call says it is compressed."),
        Malformed::Flag => Status::new(INTERNAL, "A message begins with a flag that gRPC does not have."),
        Malformed::Cut => Status::new(INTERNAL, "The stream ended within a message."),
    }
}

/// Encodes what is no printable ASCII, and the percent sign.
fn percent_encoded(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
    }
    HeaderValue::from_str(&encoded).expect("only printable ASCII is left")
}

/// Base64 without padding, as gRPC writes binary metadata.
fn base64(bytes: &[u8]) -> HeaderValue {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes);
    HeaderValue::from_str(&encoded).expect("base64 is ASCII")
}

/// The token of the `authorization` header (RFC 6750 §2.1), if there is one. Values of several such headers are one with commas
/// between (RFC 9110 §5.3), and so no token: of two, nobody could say whose the call is.
pub fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let values: Result<Vec<_>, _> = headers.get_all(http::header::AUTHORIZATION).iter().map(HeaderValue::to_str).collect();
    let value = values.ok()?.join(", ");
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case(BEARER) && !token.is_empty()).then(|| token.to_owned())
}

/// A peer's address as gRPC writes it: `ipv4:192.0.2.1:50000`, `ipv6:%5B2001:db8::1%5D:50000`.
pub fn peer_name(address: std::net::SocketAddr) -> String {
    match address {
        std::net::SocketAddr::V4(address) => format!("ipv4:{address}"),
        std::net::SocketAddr::V6(address) => format!("ipv6:%5B{}%5D:{}", address.ip(), address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_in_trailers() {
        let status = Status { code: 16, message: "Späť 100%\n".to_owned(), details: vec![0, 255, 1, 2] };
        let trailers = trailers_of(&status);
        assert_eq!(trailers[STATUS], "16");
        assert_eq!(trailers[MESSAGE], "Sp%C3%A4%C5%A5 100%25%0A");
        assert_eq!(trailers[DETAILS], "AP8BAg");
        assert_eq!(trailers_of(&Status::OK).len(), 1);
    }

    #[test]
    fn a_token_is_what_stands_behind_bearer() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
        ] {
            let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(bearer_token(&headers).as_deref(), token, "{value}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }

    #[test]
    fn addresses_are_written_as_grpc_does() {
        assert_eq!(peer_name("192.0.2.1:5".parse().unwrap()), "ipv4:192.0.2.1:5");
        assert_eq!(peer_name("[2001:db8::1]:5".parse().unwrap()), "ipv6:%5B2001:db8::1%5D:5");
    }

    #[test]
    fn a_timeout_has_a_number_and_a_unit() {
        for (value, timeout) in [
            ("5S", Some(Duration::from_secs(5))),
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("100000000S", None),
            ("soon", None),
            ("S", None),
            ("-1S", None),
            ("1x", None),
        ] {
            let headers = HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(value))]);
            assert_eq!(timeout_of(&headers), timeout, "{value}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }
}
