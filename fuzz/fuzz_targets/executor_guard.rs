//! The guard before the executor's HTTP server, which takes secrets out of requests: what is behind it sees the requests that
//! it would see without it, in the same order, and never a secret.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tram_executor::fuzzing::{Seen, requests};

/// In `Authorization`, where it must not get through.
const SECRET: &str = "Bearer the-secret";

/// Pieces that connections are made of, beside what the fuzzer thinks of.
const PIECES: [&str; 24] = [
    "GET / HTTP/1.1\r\n",
    "POST /run HTTP/1.1\r\n",
    "PUT /file HTTP/1.0\r\n",
    "\r\n",
    "\n",
    "\r",
    "Authorization: Bearer the-secret\r\n",
    "authorization:Bearer the-secret\n",
    "AUTHORIZATION: bearer the-secret \r\n",
    "Authorization: Basic the-secret\r\n",
    "Content-Length: 4\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: +4\r\n",
    "content-length: 04\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Expect: 100-continue\r\n",
    "4\r\nabcd\r\n",
    "0\r\n\r\n",
    "abcd",
    "Host: a\r\n",
    " folded: Bearer the-secret\r\n",
];

#[derive(Debug, Arbitrary)]
enum Part {
    Known(u8),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Connection {
    parts: Vec<Part>,
    /// So many bytes arrive at a time.
    size: u16,
}

fn seen(bytes: &[u8], size: usize, guarded: bool) -> Vec<Seen> {
    let pieces: Vec<&[u8]> = bytes.chunks(size.max(1)).collect();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(requests(&pieces, guarded))
}

fuzz_target!(|connection: Connection| {
    let mut bytes = Vec::new();
    for part in &connection.parts {
        match part {
            Part::Known(index) => {
                bytes.extend_from_slice(PIECES[usize::from(*index) % PIECES.len()].as_bytes())
            }
            Part::Bytes(part) => bytes.extend_from_slice(part),
        }
    }
    let plain = seen(&bytes, bytes.len(), false);
    let guarded = seen(&bytes, bytes.len(), true);
    let in_parts = seen(&bytes, usize::from(connection.size), true);
    assert_eq!(
        without_seals(&guarded),
        without_seals(&in_parts),
        "it matters how they arrive"
    );
    for request in &guarded {
        for header in &request.authorization {
            assert!(!String::from_utf8_lossy(header).contains(SECRET), "{request:?}");
        }
    }
    let guarded = without_seals(&guarded);
    let mut expected = without_seals(&plain);
    // Nothing else is taken on a connection after a body of unclear length.
    if let Some(last) = expected.iter().position(|request| request.last) {
        expected.truncate(last + 1);
    }
    assert_eq!(guarded, expected, "something else is seen behind the guard");
});

/// Each connection has a seal of its own, so the headers that have it differ.
fn without_seals(seen: &[Seen]) -> Vec<Seen> {
    let plain = |request: &Seen| Seen {
        authorization: Vec::new(),
        ..request.clone()
    };
    seen.iter().map(plain).collect()
}
