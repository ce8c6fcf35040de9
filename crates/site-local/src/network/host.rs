//! What the machine itself needs: its address in the network, forwarding, and settings of interfaces.
//!
//! Called when the network opens and closes, and for each pair of interfaces. What was changed on interfaces that
//! are not ours is written down first, in a place that all installations of a machine share and that a restart of
//! the machine empties like the setting itself: whichever closes last undoes it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::wire::{index, kernel};
use super::{Error, Ipv4Network, v6};

/// The file that says which interfaces forward because of us.
const FORWARDING_FILE: &str = "/run/tramontane/forwarding.json";
pub(super) const EEXIST: i32 = 17;
pub(super) const ESRCH: i32 = 3;
pub(super) const EADDRNOTAVAIL: i32 = 99;

/// Refuses a network that the machine already reaches by another way.
pub(super) fn refuse_conflicts(network: Ipv4Network, prefix: &str) -> Result<(), Error> {
    let table =
        fs::read_to_string("/proc/net/route").map_err(Error::files("read the routes of this machine"))?;
    for route in routes(&table) {
        let ours = route.interface.starts_with(prefix) || route.interface == "*";
        let overlaps =
            route.network.prefix() > 0 && (network.covers(route.network) || route.network.covers(network));
        if overlaps && !ours {
            return Err(Error::Conflict {
                network,
                route: format!("{} leads to {}", route.network, route.interface),
            });
        }
    }
    Ok(())
}

struct Route {
    interface: String,
    network: Ipv4Network,
}

/// Reads `/proc/net/route`: columns of hexadecimal words in the machine's byte order.
fn routes(table: &str) -> Vec<Route> {
    let word = |text: &str| {
        u32::from_str_radix(text, 16)
            .ok()
            .map(|word| Ipv4Addr::from(word.to_ne_bytes()))
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let mask = word(columns.get(7)?)?;
            let prefix = u8::try_from(mask.to_bits().leading_ones()).ok()?;
            Some(Route {
                interface: (*columns.first()?).to_owned(),
                network: Ipv4Network::containing(word(columns.get(1)?)?, prefix),
            })
        })
        .collect()
}

/// Gives the machine its address, makes the rest of the network unreachable, and lets answers from outside in.
/// Returns the interfaces that forward because we asked.
pub(super) async fn prepare(handle: &Handle, network: Ipv4Network) -> Result<Vec<String>, Error> {
    let loopback = index(handle, "lo").await?;
    let address = IpAddr::V4(network.gateway());
    match handle.address().add(loopback, address, 32).execute().await {
        Err(error) if code(&error) != Some(EEXIST) => {
            return Err(kernel("give the machine its address")(error));
        }
        _ => {}
    }
    // Without it, packets to an address nobody has would leave by the default route.
    handle
        .route()
        .add(nowhere(network))
        .replace()
        .execute()
        .await
        .map_err(kernel("close the network towards the outside"))?;
    forward()
}

fn nowhere(network: Ipv4Network) -> rtnetlink::packet_route::route::RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network.first(), network.prefix())
        .kind(RouteType::Unreachable)
        .build()
}

/// Lets the interfaces of the default routes forward: the answers to what instances ask come in there.
fn forward() -> Result<Vec<String>, Error> {
    let table =
        fs::read_to_string("/proc/net/route").map_err(Error::files("read the routes of this machine"))?;
    let file = Path::new(FORWARDING_FILE);
    let mut changed: Vec<String> = match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    for route in routes(&table)
        .into_iter()
        .filter(|route| route.network.prefix() == 0 && route.interface != "*")
    {
        let setting = forwarding(&route.interface);
        if fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
            continue;
        }
        if !changed.contains(&route.interface) {
            changed.push(route.interface.clone());
            write_list(file, &changed).map_err(Error::files("write down which interfaces forward"))?;
        }
        if let Err(error) = fs::write(&setting, "1") {
            // Instances still serve and talk to each other: that is worth more than refusing to start.
            tracing::error!(
                interface = route.interface, %error,
                "the machine does not let packets be forwarded: instances cannot reach the outside"
            );
        }
    }
    Ok(changed)
}

fn forwarding(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/forwarding")
}

pub(super) fn write_list(file: &Path, names: &[String]) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    write_whole(file, &serde_json::to_vec(names).map_err(io::Error::other)?)
}

/// A process that is killed while it writes must leave the old text or the new one.
pub(super) fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, bytes)?;
    fs::rename(beside, file)
}

/// Undoes [`prepare`].
pub(super) async fn restore(handle: &Handle, network: Ipv4Network) -> Result<(), Error> {
    match handle.route().del(nowhere(network)).execute().await {
        Err(error) if code(&error) != Some(ESRCH) => {
            return Err(kernel("remove the route of the network")(error));
        }
        _ => {}
    }
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = index(handle, "lo").await?;
    message
        .attributes
        .push(AddressAttribute::Local(IpAddr::V4(network.gateway())));
    match handle.address().del(message).execute().await {
        Err(error) if code(&error) != Some(EADDRNOTAVAIL) => {
            return Err(kernel("remove the machine's address")(error));
        }
        _ => {}
    }
    if another_installation().await {
        return Ok(());
    }
    if let Ok(bytes) = fs::read(FORWARDING_FILE) {
        let changed: Vec<String> = serde_json::from_slice(&bytes).unwrap_or_default();
        for interface in changed {
            if let Err(error) = fs::write(forwarding(&interface), "0") {
                tracing::warn!(interface, %error, "cannot turn forwarding off again");
            }
        }
        fs::remove_file(FORWARDING_FILE).map_err(Error::files("forget which interfaces forward"))?;
    }
    Ok(())
}

/// Whether another site has its table here. Ours was removed before.
async fn another_installation() -> bool {
    let listed = tokio::process::Command::new("nft")
        .args(["list", "tables"])
        .env("PATH", crate::programs::path())
        .output()
        .await;
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(" tram_"))
}

/// Names of the interfaces that begin with `prefix`.
pub(super) fn interfaces(prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Settings of the machine's end of a pair, before it is up.
pub(super) fn tune_interface(interface: &str, has_v6: bool) -> Result<(), Error> {
    fs::write(forwarding(interface), "1").map_err(Error::files(
        "let packets of instances be forwarded (net.ipv4.conf.*.forwarding must be writable)",
    ))?;
    if has_v6 {
        return v6::tune_interface(interface);
    }
    // There is no IPv6 between the machine and an instance then; a kernel without it has no such file.
    ignore_missing(fs::write(
        format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"),
        "1",
    ))
    .map_err(Error::files("turn IPv6 off on an interface"))
}

/// Settings of the namespace this thread is in, before it has an interface.
pub(super) fn tune_namespace(has_v6: bool) -> io::Result<()> {
    if has_v6 {
        v6::tune_namespace()?;
    } else {
        // Interfaces to come have no IPv6; the loopback keeps it, programs expect `::1`.
        ignore_missing(fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))?;
    }
    for (setting, value) in [
        // As Docker does: a program without privileges may listen on port 80, and may ping.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ] {
        ignore_missing(fs::write(Path::new("/proc/sys/net").join(setting), value))?;
    }
    Ok(())
}

pub(super) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table_of_routes() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let found: Vec<String> = routes(table)
            .iter()
            .map(|route| format!("{} {}", route.network, route.interface))
            .collect();
        assert_eq!(found, ["0.0.0.0/0 eth0", "192.0.2.0/24 eth0"]);
    }
}
