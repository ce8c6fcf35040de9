//! Bytes through the relay to a sandbox's port and back: they come back as they went, in whatever pieces they arrive.

#![no_main]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;

/// Both sides are on this machine and do nothing that takes time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

static RELAY: OnceLock<SocketAddr> = OnceLock::new();

/// One relay for all runs, to a server that says everything again.
fn start() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            std::thread::spawn(move || {
                let mut from = &stream;
                // A client that resets its connection ends this one.
                let _said = std::io::copy(&mut from, &mut &stream);
                let _ended = stream.shutdown(Shutdown::Write);
            });
        }
    });
    let relay = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = relay.local_addr().expect("an address");
    relay.set_nonblocking(true).expect("a listener");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let relay = tokio::net::TcpListener::from_std(relay).expect("a listener");
            tram_executor::fuzzing::relay(relay, port).await;
        });
    });
    address
}

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let address = *RELAY.get_or_init(start);
    let mut client = TcpStream::connect(address).expect("the relay accepts");
    client.set_nodelay(true).expect("an option");
    client.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    client.set_write_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    for piece in &pieces {
        client.write_all(piece).expect("it takes everything");
    }
    client.shutdown(Shutdown::Write).expect("an end");
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).expect("all comes back");
    assert!(heard == pieces.concat(), "something else came back");
});
