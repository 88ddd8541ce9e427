//! Messages in the bytes of a gRPC stream: each has a flag (compressed or not), its length in four bytes, and itself.
//!
//! Source: "gRPC over HTTP2" in the gRPC documentation, Length-Prefixed-Message.

use std::io::Read;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::read::{GzDecoder, ZlibDecoder};

const PREFIX_BYTES: usize = 5;

/// Why the bytes of a stream are no messages of ours.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Malformed {
    /// Longer than is allowed, or becomes so where it is unpacked.
    TooLong,
    /// Compressed, on a stream that named no compression.
    Compressed,
    /// Said to be compressed, and cannot be unpacked.
    Garbled,
    /// A flag that gRPC does not have.
    Flag,
    /// The stream ended within a message.
    Cut,
}

/// How the messages of a stream may be compressed; the names are those of gRPC's `grpc-encoding`.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Compression {
    Identity,
    Gzip,
    Deflate,
}

/// Puts messages together again, from chunks of any size.
pub struct FrameReader {
    message_bytes_max: usize,
    compression: Compression,
    buffer: BytesMut,
}

impl FrameReader {
    pub fn new(message_bytes_max: usize, compression: Compression) -> Self {
        Self { message_bytes_max, compression, buffer: BytesMut::new() }
    }

    /// Takes in what came.
    pub fn push(&mut self, chunk: Bytes) {
        if self.buffer.is_empty() {
            // A chunk that nobody else refers to becomes the buffer as it is.
            self.buffer = chunk.into();
        } else {
            self.buffer.extend_from_slice(&chunk);
        }
    }

    /// The next message, if all of it is there.
    pub fn take(&mut self) -> Result<Option<Bytes>, Malformed> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let is_compressed = prefix[0] == 1;
        if prefix[0] > 1 {
            return Err(Malformed::Flag);
        }
        if is_compressed && self.compression == Compression::Identity {
            return Err(Malformed::Compressed);
        }
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if length > self.message_bytes_max {
            return Err(Malformed::TooLong);
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // Lest an idle stream holds on to what a long message needed.
            self.buffer = BytesMut::new();
        }
        if is_compressed { self.unpacked(&message).map(Some) } else { Ok(Some(message)) }
    }

    /// Unpacks no more than one byte beyond what a message may have, however little it was packed into.
    fn unpacked(&self, message: &[u8]) -> Result<Bytes, Malformed> {
        let enough = self.message_bytes_max as u64 + 1;
        let mut unpacked = Vec::new();
        match self.compression {
            Compression::Identity => return Err(Malformed::Compressed),
            Compression::Gzip => GzDecoder::new(message).take(enough).read_to_end(&mut unpacked),
            Compression::Deflate => ZlibDecoder::new(message).take(enough).read_to_end(&mut unpacked),
        }
        .map_err(|_| Malformed::Garbled)?;
        if unpacked.len() > self.message_bytes_max { Err(Malformed::TooLong) } else { Ok(unpacked.into()) }
    }

    /// Says whether a stream may end here.
    pub fn at_end(&self) -> Result<(), Malformed> {
        if self.buffer.is_empty() { Ok(()) } else { Err(Malformed::Cut) }
    }
}

/// A message as it goes on the wire.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("a message of the edge is shorter than 4 GiB"));
    frame.put_slice(message);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reader: &mut FrameReader) -> Vec<Bytes> {
        std::iter::from_fn(|| reader.take().unwrap()).collect()
    }

    #[test]
    fn messages_are_put_together_from_chunks_of_any_size() {
        let messages: Vec<Vec<u8>> = vec![vec![], b"a".to_vec(), vec![b'x'; 70_000], vec![], b"end".to_vec()];
        let wire: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        for size in [1, 2, 3, 5, 6, 7, 4096, wire.len()] {
            let mut reader = FrameReader::new(100_000, Compression::Identity);
            let mut seen = Vec::new();
            for chunk in wire.chunks(size) {
                reader.push(Bytes::copy_from_slice(chunk));
                seen.extend(all(&mut reader));
            }
            assert_eq!(seen, messages, "in chunks of {size}");
            assert_eq!(reader.at_end(), Ok(()));
        }
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_before_it_has_come() {
        let mut reader = FrameReader::new(10, Compression::Identity);
        reader.push(Bytes::from_static(&[0, 0, 0, 0, 11]));
        assert_eq!(reader.take(), Err(Malformed::TooLong));
    }

    #[test]
    fn flags_that_mean_nothing_are_refused() {
        for (flag, why) in [(1, Malformed::Compressed), (2, Malformed::Flag), (255, Malformed::Flag)] {
            let mut reader = FrameReader::new(10, Compression::Identity);
            reader.push(Bytes::copy_from_slice(&[flag, 0, 0, 0, 0]));
            assert_eq!(reader.take(), Err(why));
        }
    }

    #[test]
    fn a_stream_does_not_end_within_a_message() {
        let mut reader = FrameReader::new(10, Compression::Identity);
        reader.push(Bytes::from_static(&[0, 0, 0, 0, 2, b'a']));
        assert_eq!(reader.take(), Ok(None));
        assert_eq!(reader.at_end(), Err(Malformed::Cut));
    }

    fn packed(compression: Compression, message: &[u8]) -> Vec<u8> {
        use flate2::write::{GzEncoder, ZlibEncoder};
        use std::io::Write;
        let packed = match compression {
            Compression::Identity => message.to_vec(),
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(message).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(message).unwrap();
                encoder.finish().unwrap()
            }
        };
        let mut frame = framed(&packed).to_vec();
        frame[0] = u8::from(compression != Compression::Identity);
        frame
    }

    #[test]
    fn what_is_compressed_is_unpacked_and_no_further_than_the_limit() {
        for compression in [Compression::Gzip, Compression::Deflate] {
            for (size, fits) in [(0, true), (1000, true), (1001, false), (10_000_000, false)] {
                let mut reader = FrameReader::new(1000, compression);
                let message = vec![b'x'; size];
                let wire = packed(compression, &message);
                if wire.len() > 1000 {
                    continue;
                }
                reader.push(Bytes::from(wire));
                let expected = if fits { Ok(Some(Bytes::from(message))) } else { Err(Malformed::TooLong) };
                assert_eq!(reader.take(), expected, "{compression:?} of {size}");
            }
            let mut reader = FrameReader::new(1000, compression);
            reader.push(Bytes::from_static(&[1, 0, 0, 0, 3, b'a', b'b', b'c']));
            assert_eq!(reader.take(), Err(Malformed::Garbled));
            // What is not compressed is as it is.
            let mut reader = FrameReader::new(1000, compression);
            reader.push(framed(b"plain"));
            assert_eq!(reader.take(), Ok(Some(Bytes::from_static(b"plain"))));
        }
    }

    /// What is read of the bytes, in chunks that end at these places, and how it ended.
    fn read(bytes: &[u8], ends: &[usize], compression: Compression) -> (Vec<Bytes>, Option<Malformed>) {
        let mut reader = FrameReader::new(1000, compression);
        let mut seen = Vec::new();
        let mut from = 0;
        for end in ends.iter().map(|end| end % (bytes.len() + 1)).chain([bytes.len()]) {
            if end > from {
                reader.push(Bytes::copy_from_slice(&bytes[from..end]));
                from = end;
            }
            loop {
                match reader.take() {
                    Ok(Some(message)) => seen.push(message),
                    Ok(None) => break,
                    Err(malformed) => return (seen, Some(malformed)),
                }
            }
        }
        (seen, reader.at_end().err())
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]

        #[test]
        fn bytes_of_any_kind_are_read_alike_in_chunks_of_any_kind(
            // Mostly what begins like a message, so that more than the first flag is looked at.
            parts in proptest::collection::vec(
                (0..3u8, proptest::collection::vec(proptest::num::u8::ANY, 0..40), 0..50u32), 0..6
            ),
            ends in proptest::collection::vec(0..400usize, 0..20),
            gzip in proptest::bool::ANY,
        ) {
            let mut bytes = Vec::new();
            for (flag, body, length) in parts {
                bytes.push(flag);
                bytes.extend(length.to_be_bytes());
                bytes.extend(body);
            }
            let compression = if gzip { Compression::Gzip } else { Compression::Identity };
            let whole = read(&bytes, &[], compression);
            proptest::prop_assert_eq!(read(&bytes, &ends, compression), whole.clone());
            proptest::prop_assert!(whole.0.iter().all(|message| message.len() <= 1000));
        }
    }
}
