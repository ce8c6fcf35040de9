//! One namespace with its pair of interfaces.
//!
//! Called by the pool. `make` leaves all of it or says what failed (the caller then removes); `remove` succeeds
//! when there is nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use tram_sandbox::netns;

use super::v6::Prefix;
use super::{Error, host};

/// The instance's end, inside its namespace.
const GUEST_INTERFACE: &str = "eth0";
/// The machine's ends all have this hardware address: each is alone on its link.
const HOST_HARDWARE: [u8; 6] = [0x02, 0x54, 0xff, 0xff, 0xff, 0xfe];
/// The kernel's number for "no such device".
const ENODEV: i32 = 19;

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) interface: String,
    pub(super) namespace: PathBuf,
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    /// Of the IPv6 addresses, if there are to be any.
    pub(super) prefix: Option<Prefix>,
}

/// A connection to the kernel about the links of the namespace this thread is in. Needs a runtime around it.
pub(super) fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

pub(super) async fn make(host: &Handle, plan: &Plan) -> Result<(), Error> {
    let guest = enter(&plan.namespace, plan.prefix.is_some()).await?;
    let file = std::fs::File::open(&plan.namespace).map_err(Error::files("open a namespace"))?;
    let guest_hardware = hardware(plan.address);
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(GUEST_INTERFACE)
        .address(guest_hardware.to_vec())
        .setns_by_fd(file.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(&plan.interface, GUEST_INTERFACE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(HOST_HARDWARE.to_vec())
        .build();
    host.link()
        .add(pair)
        .execute()
        .await
        .map_err(kernel("make a pair of interfaces"))?;
    drop(file);

    host::tune_interface(&plan.interface, plan.prefix.is_some())?;
    let outer = index(host, &plan.interface).await?;
    up(host, outer).await?;
    neighbour(host, outer, plan.address.into(), guest_hardware).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(plan.address, 32)
        .output_interface(outer)
        .scope(RouteScope::Link)
        .pref_source(plan.gateway)
        .build();
    host.route()
        .add(route)
        .replace()
        .execute()
        .await
        .map_err(kernel("add the route to an instance"))?;

    let inner = index(&guest, GUEST_INTERFACE).await?;
    let address = IpAddr::V4(plan.address);
    guest
        .address()
        .add(inner, address, 32)
        .execute()
        .await
        .map_err(kernel("give an instance its address"))?;
    up(&guest, inner).await?;
    neighbour(&guest, inner, plan.gateway.into(), HOST_HARDWARE).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(inner)
        .gateway(plan.gateway)
        .pref_source(plan.address)
        .onlink()
        .build();
    guest
        .route()
        .add(route)
        .execute()
        .await
        .map_err(kernel("add the default route of an instance"))?;
    if let Some(prefix) = plan.prefix {
        wire_v6(host, outer, &guest, inner, plan, prefix).await?;
    }
    Ok(())
}

/// The same for IPv6: both ends know each other, so there is nothing to be asked for or announced on the link.
async fn wire_v6(
    host: &Handle,
    outer: u32,
    guest: &Handle,
    inner: u32,
    plan: &Plan,
    prefix: Prefix,
) -> Result<(), Error> {
    let (address, gateway) = (prefix.address(plan.address), prefix.address(plan.gateway));
    neighbour(host, outer, address.into(), hardware(plan.address)).await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(address, 128)
        .output_interface(outer)
        .pref_source(gateway)
        .build();
    host.route()
        .add(route)
        .replace()
        .execute()
        .await
        .map_err(kernel("add the IPv6 route to an instance"))?;
    let mut add = guest.address().add(inner, IpAddr::V6(address), 128);
    // Nobody else is on the link: it is good at once.
    add.message_mut().header.flags = AddressHeaderFlags::Nodad;
    add.execute()
        .await
        .map_err(kernel("give an instance its IPv6 address"))?;
    neighbour(guest, inner, gateway.into(), HOST_HARDWARE).await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .output_interface(inner)
        .gateway(gateway)
        .pref_source(address)
        .onlink()
        .build();
    guest
        .route()
        .add(route)
        .execute()
        .await
        .map_err(kernel("add the default IPv6 route of an instance"))
}

/// Makes the namespace, sets what must be set before its interface appears, and connects to its kernel side.
async fn enter(path: &Path, has_v6: bool) -> Result<Handle, Error> {
    let path = path.to_owned();
    let runtime = tokio::runtime::Handle::current();
    let made = tokio::task::spawn_blocking(move || {
        netns::create(&path)?;
        let connected = netns::run_in(&path, move || {
            host::tune_namespace(has_v6)?;
            let _runtime = runtime.enter();
            connect()
        })?;
        connected.map_err(Error::files("set up a network namespace"))
    });
    made.await.map_err(|_| Error::Closed)?
}

/// Removes the pair and the namespace, whatever is there of them.
pub(super) async fn remove(host: &Handle, interface: &str, path: &Path) -> Result<(), Error> {
    remove_link(host, interface).await?;
    let path = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || netns::delete(&path)).await;
    Ok(removed.map_err(|_| Error::Closed)??)
}

/// Removes an interface; one that is gone is fine. Its other end and its routes go with it.
pub(super) async fn remove_link(host: &Handle, interface: &str) -> Result<(), Error> {
    let link = match find(host, interface).await {
        Ok(Some(link)) => link,
        Ok(None) => return Ok(()),
        Err(error) => return Err(kernel("look for an interface")(error)),
    };
    match host.link().del(link.header.index).execute().await {
        Err(error) if !is_gone(&error) => Err(kernel("remove an interface")(error)),
        _ => Ok(()),
    }
}

async fn find(handle: &Handle, interface: &str) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    match handle
        .link()
        .get()
        .match_name(interface)
        .execute()
        .try_next()
        .await
    {
        Err(error) if is_gone(&error) => Ok(None),
        other => other,
    }
}

pub(super) async fn index(handle: &Handle, interface: &str) -> Result<u32, Error> {
    match find(handle, interface).await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(Error::Files {
            what: format!("use the interface {interface}"),
            source: io::Error::from_raw_os_error(ENODEV),
        }),
        Err(error) => Err(kernel("look for an interface")(error)),
    }
}

async fn up(handle: &Handle, index: u32) -> Result<(), Error> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(kernel("bring an interface up"))
}

async fn neighbour(handle: &Handle, index: u32, address: IpAddr, hardware: [u8; 6]) -> Result<(), Error> {
    let add = handle
        .neighbours()
        .add(index, address)
        .link_layer_address(&hardware);
    add.replace()
        .execute()
        .await
        .map_err(kernel("tell an interface who is at its other end"))
}

/// An instance's hardware address: locally administered, and unique because its address is.
fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x54, a, b, c, d]
}

pub(super) fn kernel(what: &str) -> impl FnOnce(rtnetlink::Error) -> Error + use<> {
    let what = what.to_owned();
    move |source| Error::Kernel { what, source }
}

fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -ENODEV)
}
