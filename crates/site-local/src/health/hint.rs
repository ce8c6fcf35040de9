//! What a program listens on instead of the port it should.
//!
//! Asked when a connection is refused: the kernel's tables of the instance's network are read, and the usual
//! mistakes named.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kernel's number for a socket that listens.
const LISTEN: &str = "0A";
/// More would not help anybody.
const PORTS_SHOWN: usize = 5;

/// Sentences to add to "connection refused", or nothing. `pid` is any process of the instance.
pub(super) async fn hint(pid: i32, wanted: u16) -> Option<String> {
    let mut listeners = Vec::new();
    for table in ["tcp", "tcp6"] {
        if let Ok(text) = tokio::fs::read_to_string(format!("/proc/{pid}/net/{table}")).await {
            listeners.extend(parse(&text));
        }
    }
    explain(&listeners, wanted)
}

fn explain(listeners: &[(IpAddr, u16)], wanted: u16) -> Option<String> {
    if let Some((address, _)) = listeners.iter().find(|(_, port)| *port == wanted) {
        return Some(if address.is_loopback() {
            format!(
                "the program listens on {address} only, where nobody outside the instance reaches it: \
                 make it listen on 0.0.0.0"
            )
        } else {
            format!("the program listens on {address} now")
        });
    }
    let reachable: BTreeSet<u16> = listeners
        .iter()
        .filter(|(address, _)| !address.is_loopback())
        .map(|(_, port)| *port)
        .collect();
    let ports: Vec<String> = reachable
        .iter()
        .take(PORTS_SHOWN)
        .map(ToString::to_string)
        .collect();
    match ports.as_slice() {
        [] => None,
        [only] => Some(format!(
            "the program listens on {only}, not on {wanted}: set the port to {only}"
        )),
        several => Some(format!(
            "the program listens on {}, not on {wanted}: set the port to one of these",
            several.join(", ")
        )),
    }
}

/// The listening sockets of one of the kernel's tables.
fn parse(table: &str) -> Vec<(IpAddr, u16)> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next()?;
            let state = columns.nth(1)?;
            if state != LISTEN {
                return None;
            }
            let (address, port) = local.split_once(':')?;
            Some((read_address(address)?, u16::from_str_radix(port, 16).ok()?))
        })
        .collect()
}

/// Words of eight hexadecimal digits in the machine's byte order.
fn read_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            let address = Ipv6Addr::from(bytes);
            Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finds_what_a_process_listens_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pid = i32::try_from(std::process::id()).unwrap();
        let text = hint(pid, port).await.unwrap();
        assert!(
            text.starts_with("the program listens on 127.0.0.1 only"),
            "{text}"
        );
        let six = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let text = hint(pid, six.local_addr().unwrap().port()).await.unwrap();
        assert!(text.starts_with("the program listens on ::1 only"), "{text}");
    }

    #[test]
    fn names_the_usual_mistakes() {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let wrong_port = explain(&[(any, 3000)], 8000).unwrap();
        assert_eq!(
            wrong_port,
            "the program listens on 3000, not on 8000: set the port to 3000"
        );
        let several = explain(
            &[(any, 9090), (any, 3000), (IpAddr::V4(Ipv4Addr::LOCALHOST), 1)],
            8000,
        )
        .unwrap();
        assert_eq!(
            several,
            "the program listens on 3000, 9090, not on 8000: set the port to one of these"
        );
        assert_eq!(explain(&[], 8000), None);
        assert_eq!(explain(&[(IpAddr::V4(Ipv4Addr::LOCALHOST), 1)], 8000), None);
    }
}
