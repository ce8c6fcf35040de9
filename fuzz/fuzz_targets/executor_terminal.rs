//! What a client sends on a terminal's WebSocket: what is typed arrives as it is, and nothing makes the terminal larger than
//! it may be.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tram_executor::fuzzing::terminal;

/// Beyond this a terminal is not made.
const SIDE_MAX: u16 = 4096;
/// What fits in a message of a client.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Arbitrary)]
enum Said {
    Typed(Vec<u8>),
    Resize(u16, u16),
    Signal(String),
    Order(String),
    Ping(Vec<u8>),
    /// Of any kind, in any number of parts.
    Frame {
        first: u8,
        contents: Vec<u8>,
    },
    /// No WebSocket at all.
    Bytes(Vec<u8>),
}

fuzz_target!(|said: Vec<Said>| {
    let (mut bytes, mut typed) = (Vec::new(), Vec::new());
    let mut plain = true;
    for one in &said {
        match one {
            Said::Typed(contents) if contents.len() <= MESSAGE_BYTES_MAX => {
                frame(&mut bytes, 0x82, contents);
                typed.extend_from_slice(contents);
            }
            Said::Resize(rows, columns) => {
                let order = format!(r#"{{"resize":{{"rows":{rows},"columns":{columns}}}}}"#);
                frame(&mut bytes, 0x81, order.as_bytes());
            }
            Said::Ping(contents) if contents.len() <= 125 => frame(&mut bytes, 0x89, contents),
            // From here on it may have heard enough.
            Said::Typed(contents) => {
                frame(&mut bytes, 0x82, contents);
                plain = false;
            }
            Said::Signal(name) => {
                let order = serde_json::json!({ "signal": name }).to_string();
                frame(&mut bytes, 0x81, order.as_bytes());
                plain = false;
            }
            Said::Order(order) => {
                frame(&mut bytes, 0x81, order.as_bytes());
                plain = false;
            }
            Said::Ping(contents) => {
                frame(&mut bytes, 0x89, contents);
                plain = false;
            }
            Said::Frame { first, contents } => {
                frame(&mut bytes, *first, contents);
                plain = false;
            }
            Said::Bytes(more) => {
                bytes.extend_from_slice(more);
                plain = false;
            }
        }
    }
    let passed = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(terminal(&bytes, if plain { typed.len() } else { 0 }))
        .expect("a terminal");
    let (rows, columns) = passed.size;
    assert!(
        (1..=SIDE_MAX).contains(&rows) && (1..=SIDE_MAX).contains(&columns),
        "{rows} by {columns}"
    );
    if plain {
        assert!(passed.typed == typed, "something else was typed");
    }
});

/// A frame as clients send it: masked, here with zeroes.
fn frame(out: &mut Vec<u8>, first: u8, contents: &[u8]) {
    out.push(first);
    match contents.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..65536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(contents);
}
