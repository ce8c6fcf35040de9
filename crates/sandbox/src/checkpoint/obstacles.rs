//! What stands in the way of a checkpoint, in words for whoever owns the program.
//!
//! Asked before CRIU is, of a frozen instance: CRIU would refuse most of it too, but in its own words and after some
//! work, and it would close connections without asking.
//!
//! The one design choice to know: a connection is no obstacle when it was accepted from the data plane. Those are kept
//! alive without a request, the data plane expects them to close, and every other one may be what the program lives on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::dump::Purpose;
use crate::init::again;

/// Bounds the look at open files: a program with more is looked at no further, and CRIU has the last word.
const FILES_MAX: usize = 65_536;

/// States of `include/net/tcp_states.h` in which a socket belongs to a conversation.
const TALKING: [u8; 7] = [1, 2, 3, 4, 5, 8, 11];
const LISTENING: u8 = 10;

/// The first obstacle, if there is one. `init`: the first process; `processes`: all of the instance's; `peers`: the
/// addresses of the data plane as the instance sees them.
pub(super) fn find(
    init: i32,
    processes: &[i32],
    peers: &[IpAddr],
    purpose: Purpose,
) -> io::Result<Option<String>> {
    if purpose == Purpose::Sleep
        && fs::metadata(format!("/proc/{init}/ns/user"))?.ino() != fs::metadata("/proc/self/ns/user")?.ino()
    {
        return Ok(Some("it runs in a user namespace of its own".to_owned()));
    }
    if let Some(stranger) = stranger(init, processes)? {
        return Ok(Some(format!(
            "a command that was started in it from outside still runs ({stranger})"
        )));
    }
    let mut open = BTreeSet::new();
    for pid in processes {
        if let Some(what) = look_at_files(*pid, &mut open)? {
            return Ok(Some(what.to_owned()));
        }
    }
    let mut sockets = Vec::new();
    for table in ["tcp", "tcp6"] {
        match fs::read_to_string(format!("/proc/{init}/net/{table}")) {
            Ok(text) => sockets.extend(text.lines().skip(1).filter_map(Socket::parse)),
            // A kernel without that family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // The other end may be in the same network, and of somebody else.
    sockets.retain(|socket| open.contains(&socket.inode));
    if let Some(why) = conversation(&sockets, peers) {
        return Ok(Some(why));
    }
    if purpose == Purpose::Sleep {
        return Ok(None);
    }
    for table in ["udp", "udp6"] {
        match fs::read_to_string(format!("/proc/{init}/net/{table}")) {
            Ok(text) => sockets.extend(text.lines().skip(1).filter_map(Socket::parse)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    sockets.retain(|socket| open.contains(&socket.inode));
    if let Some(why) = tied(&sockets) {
        return Ok(Some(why));
    }
    in_memory(init)
}

/// A socket that is tied to the instance's own address, which a copy does not have. Those of conversations that will be
/// cut off anyway do not count.
fn tied(sockets: &[Socket]) -> Option<String> {
    /// Of a UDP socket without a peer, in the same table of states; with one it is 1, as a conversation's.
    const UNCONNECTED: u8 = 7;
    let own = sockets.iter().find(|socket| {
        let ip = socket.local.ip();
        let bound = matches!(socket.state, LISTENING | UNCONNECTED);
        bound && !ip.is_unspecified() && !ip.is_loopback()
    });
    own.map(|socket| {
        format!(
            "it has a socket at its own address {}, which a copy does not have (0.0.0.0 would do)",
            socket.local
        )
    })
}

/// Files that are neither on the disk nor in the memory of a process: a copy would not have them.
fn in_memory(init: i32) -> io::Result<Option<String>> {
    // Through the link of /proc, so in the instance's own mounts.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{init}/root"), flags, Mode::empty())?;
    for place in ["dev/shm", "dev/mqueue"] {
        // Where the image made a link of one of these names, the instance may have it lead anywhere: but inside only.
        let opened = again(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(&root, place, flags, Mode::empty(), inside)
        });
        let directory = match opened {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            opened => opened?,
        };
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return Ok(Some(format!(
                    "it has a file in memory, /{place}/{}, which would not be copied",
                    entry.file_name().to_string_lossy()
                )));
            }
        }
    }
    Ok(None)
}

/// A process that is no descendant of the first one: its parent is outside, and would wait for it in vain.
fn stranger(init: i32, processes: &[i32]) -> io::Result<Option<String>> {
    let mut parents = BTreeMap::new();
    for pid in processes {
        match stat(*pid) {
            Ok((name, parent)) => {
                parents.insert(*pid, (name, parent));
            }
            // It has ended meanwhile, though frozen: killed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let known: BTreeSet<i32> = parents.keys().copied().collect();
    let stranger = parents
        .iter()
        .find(|(pid, (_, parent))| **pid != init && !known.contains(parent));
    Ok(stranger.map(|(_, (name, _))| name.clone()))
}

/// A process's name and its parent.
fn stat(pid: i32) -> io::Result<(String, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let odd = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat cannot be read"),
        )
    };
    let (left, right) = text.rsplit_once(')').ok_or_else(odd)?;
    let (_, name) = left.split_once('(').ok_or_else(odd)?;
    let parent = right.split_whitespace().nth(1).ok_or_else(odd)?;
    Ok((name.to_owned(), parent.parse().map_err(|_| odd())?))
}

/// Notes the numbers of a process's sockets; an open file of a kind that cannot be written down.
fn look_at_files(pid: i32, sockets: &mut BTreeSet<u64>) -> io::Result<Option<&'static str>> {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries.take(FILES_MAX) {
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let what = match target.to_str() {
            Some("anon_inode:[io_uring]") => "it uses io_uring",
            Some("anon_inode:[userfaultfd]") => "it uses userfaultfd",
            Some("anon_inode:[perf_event]") => "it uses performance counters",
            Some(name) if name.starts_with("anon_inode:bpf") => "it uses BPF programs",
            Some("/dev/fuse") => "it serves a file system",
            Some(name) => {
                let number = name
                    .strip_prefix("socket:[")
                    .and_then(|rest| rest.strip_suffix(']'));
                sockets.extend(number.and_then(|number| number.parse::<u64>().ok()));
                continue;
            }
            None => continue,
        };
        return Ok(Some(what));
    }
    Ok(None)
}

/// One line of `/proc/net/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    /// Zero: no process has it open; the kernel keeps those for a while after they were closed.
    inode: u64,
}

impl Socket {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace().skip(1);
        let local = address(fields.next()?)?;
        let remote = address(fields.next()?)?;
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        // Queues, timer, retransmits, user and time-out come between.
        let inode: u64 = fields.nth(5)?.parse().ok()?;
        Some(Self {
            local,
            remote,
            state,
            inode,
        })
    }
}

/// `0100007F:1F90`: each 32 bits of the address in the machine's own order.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for index in 0..4 {
            bytes
                .get_mut(index * 4..index * 4 + 4)?
                .copy_from_slice(&word(index)?);
        }
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

/// A conversation that would be cut off.
fn conversation(sockets: &[Socket], peers: &[IpAddr]) -> Option<String> {
    let served: BTreeSet<u16> = sockets
        .iter()
        .filter(|socket| socket.state == LISTENING)
        .map(|socket| socket.local.port())
        .collect();
    for socket in sockets.iter().filter(|socket| TALKING.contains(&socket.state)) {
        let accepted = served.contains(&socket.local.port());
        if accepted && peers.contains(&socket.remote.ip()) {
            continue;
        }
        return Some(if accepted {
            format!(
                "{} is connected to its port {}",
                socket.remote.ip(),
                socket.local.port()
            )
        } else {
            format!("it has an open connection to {}", socket.remote)
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(local: &str, remote: &str, state: u8) -> Socket {
        Socket {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state,
            inode: 24_251_775,
        }
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let four = "   0: 0100007F:1F90 0A00000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 24251775 1 0";
        let read = Socket::parse(four).unwrap();
        assert_eq!(read, socket("127.0.0.1:8080", "10.0.0.10:54321", 1));
        let six = "   1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000001000000:0016 0A \
                   00000000:00000000 00:00000000 00000000     0        0 0 1 0";
        let read = Socket::parse(six).unwrap();
        assert_eq!(read.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(read.remote, "[::1]:22".parse().unwrap());
        assert_eq!(read.inode, 0);
        assert_eq!(Socket::parse("  sl  local_address rem_address"), None);
    }

    #[test]
    fn only_what_the_data_plane_opened_may_be_cut_off() {
        let peers: [IpAddr; 1] = ["10.0.0.1".parse().unwrap()];
        let listens = socket("0.0.0.0:8000", "0.0.0.0:0", LISTENING);
        let kept_alive = socket("10.0.0.9:8000", "10.0.0.1:40000", 1);
        assert_eq!(conversation(&[listens, kept_alive], &peers), None);
        let neighbour = socket("10.0.0.9:8000", "10.0.0.7:40000", 8);
        let said = conversation(&[listens, neighbour], &peers).unwrap();
        assert!(said.contains("10.0.0.7 is connected to its port 8000"), "{said}");
        // The program's own connection, even to the data plane's address.
        let database = socket("10.0.0.9:40000", "10.0.0.1:5432", 1);
        let said = conversation(&[listens, database], &peers).unwrap();
        assert!(said.contains("10.0.0.1:5432"), "{said}");
        // Over already, and waiting for stragglers.
        let waits = socket("10.0.0.9:8000", "10.0.0.7:40000", 6);
        assert_eq!(conversation(&[listens, waits], &peers), None);
    }

    #[test]
    fn a_socket_of_an_address_that_a_copy_lacks_is_an_obstacle() {
        let anywhere = socket("0.0.0.0:8000", "0.0.0.0:0", LISTENING);
        let inside = socket("127.0.0.1:9000", "0.0.0.0:0", LISTENING);
        let kept_alive = socket("10.0.0.9:8000", "10.0.0.1:40000", 1);
        assert_eq!(tied(&[anywhere, inside, kept_alive]), None);
        let own = socket("10.0.0.9:8000", "0.0.0.0:0", LISTENING);
        assert!(tied(&[anywhere, own]).unwrap().contains("10.0.0.9:8000"));
        let datagrams = socket("10.0.0.9:5353", "0.0.0.0:0", 7);
        assert!(tied(&[datagrams]).unwrap().contains("10.0.0.9:5353"));
    }

    #[test]
    fn a_process_of_another_parent_is_a_stranger() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(stranger(own, &[own]).unwrap(), None);
        // Its parent, the runner of the tests, is not in the list.
        assert!(stranger(1, &[1, own]).unwrap().is_some());
    }
}
