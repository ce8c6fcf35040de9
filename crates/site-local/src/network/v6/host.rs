//! What the machine needs for IPv6 of instances: an address, forwarding, and settings of interfaces.
//!
//! Beside `super::super::host`, which does the same for IPv4. The one design choice to know: the switch that lets the
//! whole machine forward (`net.ipv6.conf.all.forwarding`) is never touched, because it makes a router of it, which no
//! longer takes its own addresses from routers. Linux 6.17 has a switch for one interface (`force_forwarding`); on an
//! older kernel the operator turns the other one on, or instances have no IPv6.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::Ipv6Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::super::host::{EADDRNOTAVAIL, EEXIST, ESRCH, code, ignore_missing, write_list};
use super::super::wire::{index, kernel};
use super::super::{Error, firewall};
use super::{Ipv6, PREFIX_BITS, Prefix, REACHABLE};

/// The file that says which interfaces forward IPv6 because of us.
const FORWARDING_FILE: &str = "/run/tramontane/forwarding6.json";
/// The kernel's tables; a kernel without IPv6 has none.
const ADDRESSES: &str = "/proc/net/if_inet6";
const ROUTES: &str = "/proc/net/ipv6_route";
/// Settings of IPv6, by interface.
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// One interface forwards, whatever the machine does.
const FORCE_FORWARDING: &str = "force_forwarding";
/// The mode in which an interface makes no address for itself (`IN6_ADDR_GEN_MODE_NONE`).
const NO_ADDRESS_OF_ITS_OWN: &str = "1";

/// What is known of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    /// The kernel knows IPv6, and it is not turned off.
    present: bool,
    /// It forwards, or single interfaces can be told to.
    forwards: bool,
    global_address: bool,
    uplinks: Vec<String>,
}

impl Machine {
    fn look() -> Self {
        let setting = |name: &str| read(&format!("all/{name}"));
        let addresses = fs::read_to_string(ADDRESSES).unwrap_or_default();
        Self {
            present: setting("disable_ipv6").is_some_and(|value| value == "0"),
            forwards: setting("forwarding").is_some_and(|value| value != "0")
                || Path::new(SETTINGS)
                    .join("default")
                    .join(FORCE_FORWARDING)
                    .exists(),
            global_address: has_global_address(&addresses),
            uplinks: uplinks(),
        }
    }

    /// What is missing before instances can have IPv6, if anything.
    fn lacks(&self) -> Option<&'static str> {
        if !self.present {
            Some("its kernel has none, or it is turned off (net.ipv6.conf.all.disable_ipv6)")
        } else if self.forwards {
            None
        } else {
            Some(
                "it does not forward IPv6, and its kernel is older than Linux 6.17 and cannot let single interfaces \
                 forward: set net.ipv6.conf.all.forwarding to 1 (and accept_ra to 2 for an interface that takes its \
                 addresses from a router)",
            )
        }
    }
}

/// Whether instances get IPv6 on this machine, as of now.
///
/// # Errors
/// When they must, and cannot.
pub(in super::super) fn decide(choice: Ipv6) -> Result<bool, Error> {
    decide_for(choice, &Machine::look())
}

fn decide_for(choice: Ipv6, machine: &Machine) -> Result<bool, Error> {
    match choice {
        Ipv6::Off => Ok(false),
        Ipv6::On => match machine.lacks() {
            Some(why) => Err(Error::NoIpv6(why)),
            None => Ok(true),
        },
        Ipv6::Auto => {
            let no_address = (!machine.global_address).then_some("it has no global address");
            let no_route = machine.uplinks.is_empty().then_some("it has no default route");
            let lacks = machine.lacks().or(no_address).or(no_route);
            if let Some(why) = lacks {
                tracing::info!("instances have no IPv6, because of this machine: {why}");
            }
            Ok(lacks.is_none())
        }
    }
}

/// Whether an earlier process of this installation gave the machine its address, and did not take it back.
pub(in super::super) fn is_left(prefix: Prefix, gateway: Ipv4Addr) -> bool {
    let own = prefix.address(gateway);
    addresses(&fs::read_to_string(ADDRESSES).unwrap_or_default()).any(|address| address == own)
}

fn read(setting: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new(SETTINGS).join(setting)).ok()?;
    Some(value.trim().to_owned())
}

/// Reads the kernel's table of addresses: one without colons comes first on each line.
fn addresses(table: &str) -> impl Iterator<Item = Ipv6Addr> {
    table
        .lines()
        .filter_map(|line| word(line.split_whitespace().next()?))
}

fn has_global_address(table: &str) -> bool {
    let global = REACHABLE.parse::<Ipv6Net>();
    global.is_ok_and(|global| addresses(table).any(|address| global.contains(&address)))
}

fn word(text: &str) -> Option<Ipv6Addr> {
    u128::from_str_radix(text, 16).ok().map(Ipv6Addr::from)
}

struct Route {
    interface: String,
    network: Ipv6Net,
}

/// Reads the kernel's table of routes: destination, its bits, and eight more columns of which the last is the interface.
fn routes(table: &str) -> Vec<Route> {
    table
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let bits = u8::from_str_radix(columns.get(1)?, 16).ok()?;
            let network = Ipv6Net::new(word(columns.first()?)?, bits).ok()?.trunc();
            Some(Route {
                interface: (*columns.get(9)?).to_owned(),
                network,
            })
        })
        .collect()
}

fn read_routes() -> Vec<Route> {
    routes(&fs::read_to_string(ROUTES).unwrap_or_default())
}

/// Interfaces of the default routes: the answers to what instances ask come in there.
fn uplinks() -> Vec<String> {
    let mut names: Vec<String> = read_routes()
        .into_iter()
        // The kernel's own last resort, "unreachable", is on the loopback.
        .filter(|route| route.network.prefix_len() == 0 && route.interface != "lo")
        .map(|route| route.interface)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Gives the machine its address in the prefix, makes the rest of it unreachable, and lets answers from outside in.
/// Returns the interfaces that forward because we asked.
pub(in super::super) async fn prepare(
    handle: &Handle,
    prefix: Prefix,
    gateway: Ipv4Addr,
    ours: &str,
) -> Result<Vec<String>, Error> {
    let network = prefix.network();
    if let Some(route) = read_routes().into_iter().find(|route| {
        let theirs = route.interface != "lo" && !route.interface.starts_with(ours);
        theirs
            && route.network.prefix_len() > 0
            && (network.contains(&route.network) || route.network.contains(&network))
    }) {
        return Err(Error::ConflictV6 {
            network,
            route: format!("{} leads to {}", route.network, route.interface),
        });
    }
    let loopback = index(handle, "lo").await?;
    let address = IpAddr::V6(prefix.address(gateway));
    match handle.address().add(loopback, address, 128).execute().await {
        Err(error) if code(&error) != Some(EEXIST) => {
            return Err(kernel("give the machine its IPv6 address")(error));
        }
        _ => {}
    }
    // Without it, packets to an address nobody has would leave by the default route.
    handle
        .route()
        .add(nowhere(prefix))
        .replace()
        .execute()
        .await
        .map_err(kernel("close the IPv6 network towards the outside"))?;
    forward()
}

fn nowhere(prefix: Prefix) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.address(Ipv4Addr::UNSPECIFIED), PREFIX_BITS)
        .kind(RouteType::Unreachable)
        .build()
}

fn forward() -> Result<Vec<String>, Error> {
    let file = Path::new(FORWARDING_FILE);
    let mut changed: Vec<String> = match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    if read("all/forwarding").is_some_and(|value| value != "0") {
        return Ok(changed);
    }
    for interface in uplinks() {
        let setting = Path::new(SETTINGS).join(&interface).join(FORCE_FORWARDING);
        if fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
            continue;
        }
        if !changed.contains(&interface) {
            changed.push(interface.clone());
            write_list(file, &changed).map_err(Error::files("write down which interfaces forward IPv6"))?;
        }
        if let Err(error) = fs::write(&setting, "1") {
            tracing::error!(
                interface, %error,
                "the machine does not let IPv6 packets be forwarded: instances cannot reach the outside by IPv6"
            );
        }
    }
    Ok(changed)
}

/// Undoes [`prepare`], also after an earlier process. The table without IPv6, or none, is in place before.
pub(in super::super) async fn restore(
    handle: &Handle,
    prefix: Prefix,
    gateway: Ipv4Addr,
) -> Result<(), Error> {
    match handle.route().del(nowhere(prefix)).execute().await {
        Err(error) if code(&error) != Some(ESRCH) => {
            return Err(kernel("remove the route of the IPv6 network")(error));
        }
        _ => {}
    }
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = index(handle, "lo").await?;
    let address = IpAddr::V6(prefix.address(gateway));
    message.attributes.push(AddressAttribute::Local(address));
    match handle.address().del(message).execute().await {
        Err(error) if code(&error) != Some(EADDRNOTAVAIL) => {
            return Err(kernel("remove the machine's IPv6 address")(error));
        }
        _ => {}
    }
    // What they let in is theirs to guard: whichever goes last turns it off.
    if !Path::new(FORWARDING_FILE).exists() || firewall::another_has_ipv6().await {
        return Ok(());
    }
    let bytes = fs::read(FORWARDING_FILE).map_err(Error::files("read which interfaces forward IPv6"))?;
    let changed: Vec<String> = serde_json::from_slice(&bytes).unwrap_or_default();
    for interface in changed {
        let setting = Path::new(SETTINGS).join(&interface).join(FORCE_FORWARDING);
        if let Err(error) = ignore_missing(fs::write(setting, "0")) {
            tracing::warn!(interface, %error, "cannot turn forwarding of IPv6 off again");
        }
    }
    fs::remove_file(FORWARDING_FILE).map_err(Error::files("forget which interfaces forward IPv6"))
}

/// Settings of the machine's end of a pair, before it is up: it has IPv6 without an address of its own, takes nothing
/// from routers, and forwards.
pub(in super::super) fn tune_interface(interface: &str) -> Result<(), Error> {
    let write = |setting: &str, value: &str| {
        fs::write(Path::new(SETTINGS).join(interface).join(setting), value)
            .map_err(Error::files(format!("set {setting} of an interface for IPv6")))
    };
    write("addr_gen_mode", NO_ADDRESS_OF_ITS_OWN)?;
    write("accept_ra", "0")?;
    write("accept_redirects", "0")?;
    write("disable_ipv6", "0")?;
    // A kernel without it was asked to forward as a whole.
    let forwarding = Path::new(SETTINGS).join(interface).join(FORCE_FORWARDING);
    ignore_missing(fs::write(forwarding, "1"))
        .map_err(Error::files("let IPv6 packets of instances be forwarded"))
}

/// Settings of the namespace this thread is in, before it has an interface: the address that it is given, and no other.
pub(in super::super) fn tune_namespace() -> io::Result<()> {
    for (setting, value) in [
        ("addr_gen_mode", NO_ADDRESS_OF_ITS_OWN),
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("autoconf", "0"),
        ("accept_dad", "0"),
        ("disable_ipv6", "0"),
    ] {
        fs::write(Path::new(SETTINGS).join("default").join(setting), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES_TABLE: &str = "\
        00000000000000000000000000000001 01 80 10 80       lo\n\
        fd000000000000000000000000000002 04 40 00 82     eth0\n\
        fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n";
    const GLOBAL: &str = "20010db8000000000000000000000002 04 40 00 80     eth0\n";
    const ROUTES_TABLE: &str = "\
        fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
        00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
        fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth0\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
        00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";

    #[test]
    fn reads_the_kernels_tables() {
        let found: Vec<String> = routes(ROUTES_TABLE)
            .iter()
            .map(|route| format!("{} {}", route.network, route.interface))
            .collect();
        assert_eq!(found, ["fd00::/64 eth0", "::/0 eth0", "::/0 lo"]);
        assert!(!has_global_address(ADDRESSES_TABLE), "a unique local one is none");
        assert!(has_global_address(&format!("{ADDRESSES_TABLE}{GLOBAL}")));
    }

    #[test]
    fn a_machine_without_it_leaves_instances_without_it() {
        let whole = Machine {
            present: true,
            forwards: true,
            global_address: true,
            uplinks: vec!["eth0".to_owned()],
        };
        let decided = |choice, change: fn(&mut Machine)| {
            let mut machine = whole.clone();
            change(&mut machine);
            decide_for(choice, &machine).map_err(|error| error.to_string())
        };
        let same: fn(&mut Machine) = |_| {};
        assert_eq!(decided(Ipv6::Off, same), Ok(false));
        assert_eq!(decided(Ipv6::Auto, same), Ok(true));
        let alone: fn(&mut Machine) = |machine| {
            machine.global_address = false;
            machine.uplinks.clear();
        };
        assert_eq!(decided(Ipv6::On, alone), Ok(true));
        for lacks in [
            alone,
            |machine| machine.global_address = false,
            |machine| machine.uplinks.clear(),
        ] {
            assert_eq!(decided(Ipv6::Auto, lacks), Ok(false));
        }
        for lacks in [
            (|machine| machine.present = false) as fn(&mut Machine),
            |machine| machine.forwards = false,
        ] {
            assert_eq!(decided(Ipv6::Auto, lacks), Ok(false));
            let said = decided(Ipv6::On, lacks).unwrap_err();
            assert!(said.contains("net.ipv6.conf.all"), "{said}");
        }
    }
}
