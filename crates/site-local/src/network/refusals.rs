//! What instances were refused, in words for their owners.
//!
//! The firewall counts packets by instance and keeps a sample of where they went; the name server tells of names. The
//! site reads both every few seconds and writes one line to the log of each instance it concerns. The one design choice
//! to know: one line at a time, whatever the instance does, so that a scan of everything does not become a flood of
//! lines; the count in it is exact.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::Error;
use super::firewall::{Firewall, REFUSALS_SET, REFUSED_SET, v6};
use super::v6::Prefix;

/// Between two looks: soon enough for whoever watches the log, and one run of nftables' tool costs milliseconds.
pub(crate) const INTERVAL: Duration = Duration::from_secs(3);
/// Destinations and names in one line; the rest is only counted.
const TOLD_MAX: usize = 6;
/// Names of one instance that are kept between two looks.
const NAMES_MAX: usize = 32;

/// Where packets went: address, protocol, port.
type Flow = (IpAddr, String, u16);

/// How often instances were refused something on their way out, since the site was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// Packets that the firewall sent back.
    pub packets: u64,
    /// Names that the name server did not look up.
    pub names: u64,
}

/// What was read last, and what the name server told since.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since the site was opened.
    all: Refused,
    /// Names refused since the last look, by instance, and how often.
    names: HashMap<Ipv4Addr, BTreeMap<String, u64>>,
    /// What the guard of bound secrets refused since the last look, by instance, and how often.
    guarded: HashMap<Ipv4Addr, BTreeMap<String, u64>>,
    /// The counters as they were at the last look.
    totals: Totals,
    flows: HashMap<(Ipv4Addr, Flow), u64>,
}

/// Packets by the instance and the address they came from: it has a counter for each of its addresses.
type Totals = HashMap<(Ipv4Addr, IpAddr), u64>;

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts only: what a panic leaves is at worst a line too few.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name was refused.
    pub(super) fn name(&self, instance: Ipv4Addr, name: &str) {
        let mut state = self.lock();
        state.all.names += 1;
        let names = state.names.entry(instance).or_default();
        if names.len() < NAMES_MAX || names.contains_key(name) {
            *names.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// Something to a host of bound secrets was refused.
    pub(super) fn guarded(&self, instance: Ipv4Addr, why: &str) {
        let mut state = self.lock();
        let reasons = state.guarded.entry(instance).or_default();
        if reasons.len() < NAMES_MAX || reasons.contains_key(why) {
            *reasons.entry(why.to_owned()).or_default() += 1;
        }
    }

    /// How often since the site was opened; packets as of the last look.
    pub(super) fn all(&self) -> Refused {
        self.lock().all
    }

    /// What is new since the last look: at most three lines for each instance.
    pub(super) async fn look(
        &self,
        firewall: &Firewall,
        prefix: Option<Prefix>,
    ) -> Result<Vec<(Ipv4Addr, String)>, Error> {
        let read = async |v4: &str, v6: &str| {
            let mut elements = firewall.list(v4).await?;
            if prefix.is_some() {
                elements.extend(firewall.list(v6).await?);
            }
            Ok::<_, Error>(elements)
        };
        let totals = read_totals(&read(REFUSALS_SET, v6::REFUSALS_SET).await?, prefix);
        let changed = totals != self.lock().totals;
        let flows = if changed {
            read_flows(&read(REFUSED_SET, v6::REFUSED_SET).await?, prefix)
        } else {
            self.lock().flows.clone()
        };
        Ok(self.lock().news(totals, flows))
    }
}

impl State {
    fn news(&mut self, totals: Totals, flows: HashMap<(Ipv4Addr, Flow), u64>) -> Vec<(Ipv4Addr, String)> {
        let mut lines = Vec::new();
        for (instance, names) in std::mem::take(&mut self.names) {
            let told = list(names.into_iter().map(|(name, count)| (count, name)).collect());
            lines.push((
                instance,
                format!("the network policy does not list these names, and they were not looked up: {told}"),
            ));
        }
        for (instance, reasons) in std::mem::take(&mut self.guarded) {
            let told = list(reasons.into_iter().map(|(why, count)| (count, why)).collect());
            lines.push((
                instance,
                format!("requests to hosts that secrets are bound to were refused: {told}"),
            ));
        }
        let mut refused: HashMap<Ipv4Addr, u64> = HashMap::new();
        for (key @ (instance, _), total) in &totals {
            *refused.entry(*instance).or_default() += since(self.totals.get(key), *total);
        }
        for (instance, before) in refused {
            if before == 0 {
                continue;
            }
            self.all.packets += before;
            let places = flows
                .iter()
                .filter(|((source, _), _)| *source == instance)
                .filter_map(|(key @ (_, (address, protocol, port)), count)| {
                    let new = since(self.flows.get(key), *count);
                    (new > 0).then(|| (new, format!("{protocol} {}", SocketAddr::new(*address, *port))))
                })
                .collect::<Vec<_>>();
            let packets = if before == 1 { "packet was" } else { "packets were" };
            let line = if places.is_empty() {
                format!("{before} {packets} refused on the way out")
            } else {
                format!("{before} {packets} refused on the way out: {}", list(places))
            };
            lines.push((instance, line));
        }
        self.totals = totals;
        self.flows = flows;
        lines
    }
}

/// How far a counter went; one that is lower than before was begun anew.
fn since(before: Option<&u64>, now: u64) -> u64 {
    match before {
        Some(before) if *before <= now => now - before,
        _ => now,
    }
}

/// The most frequent first, then by name, so that the same refusals read the same.
fn list(mut counted: Vec<(u64, String)>) -> String {
    counted.sort_by(|(left, a), (right, b)| right.cmp(left).then_with(|| a.cmp(b)));
    let more = counted.len().saturating_sub(TOLD_MAX);
    let mut told: Vec<String> = counted
        .into_iter()
        .take(TOLD_MAX)
        .map(|(count, what)| {
            if count > 1 {
                format!("{what} ({count} times)")
            } else {
                what
            }
        })
        .collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join(", ")
}

fn packets(element: &Value) -> Option<u64> {
    element.pointer("/elem/counter/packets")?.as_u64()
}

/// Which instance has an address.
fn owner(address: IpAddr, prefix: Option<Prefix>) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => prefix?.beside(address),
    }
}

fn read_totals(elements: &[Value], prefix: Option<Prefix>) -> Totals {
    elements
        .iter()
        .filter_map(|element| {
            let address: IpAddr = element.pointer("/elem/val")?.as_str()?.parse().ok()?;
            Some(((owner(address, prefix)?, address), packets(element)?))
        })
        .collect()
}

fn read_flows(elements: &[Value], prefix: Option<Prefix>) -> HashMap<(Ipv4Addr, Flow), u64> {
    elements
        .iter()
        .filter_map(|element| {
            let part = |index: usize| element.pointer(&format!("/elem/val/concat/{index}"));
            let instance = owner(part(0)?.as_str()?.parse().ok()?, prefix)?;
            let address = part(1)?.as_str()?.parse().ok()?;
            let protocol = part(2)?.as_str()?.to_ascii_uppercase();
            let port = u16::try_from(part(3)?.as_u64()?).ok()?;
            Some(((instance, (address, protocol, port)), packets(element)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INSTANCE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

    fn counted(address: &str, count: u64) -> Value {
        json!({"elem": {"val": address, "timeout": 9, "counter": {"packets": count, "bytes": 1}}})
    }

    fn total(count: u64) -> Totals {
        read_totals(&[counted("10.1.0.2", count)], None)
    }

    fn read_flows(elements: &[Value]) -> HashMap<(Ipv4Addr, Flow), u64> {
        super::read_flows(elements, None)
    }

    #[test]
    fn both_families_of_an_instance_are_one_line() {
        let prefix = Prefix::of(std::path::Path::new("/state"));
        let (own, strange) = (prefix.address(INSTANCE).to_string(), "fd00::a01:2");
        let totals = |v4, v6| {
            let listed = [counted("10.1.0.2", v4), counted(&own, v6), counted(strange, 9)];
            read_totals(&listed, Some(prefix))
        };
        let seen = json!({"elem": {"val": {"concat": [own, "2001:db8::1", "udp", 53]},
                          "counter": {"packets": 2, "bytes": 1}}});
        let flows = super::read_flows(&[flow(80, 1), seen], Some(prefix));
        let mut state = State::default();
        let lines = state.news(totals(1, 2), flows);
        let said = "3 packets were refused on the way out: UDP [2001:db8::1]:53 (2 times), TCP 192.0.2.1:80";
        assert_eq!(lines, [(INSTANCE, said.to_owned())]);
        let lines = state.news(totals(1, 3), HashMap::new());
        assert_eq!(
            lines,
            [(INSTANCE, "1 packet was refused on the way out".to_owned())]
        );
    }

    fn flow(port: u16, count: u64) -> Value {
        json!({"elem": {"val": {"concat": ["10.1.0.2", "192.0.2.1", "tcp", port]},
               "counter": {"packets": count, "bytes": 1}}})
    }

    #[test]
    fn only_what_is_new_is_told_and_in_one_line() {
        let mut state = State::default();
        let first = state.news(total(3), read_flows(&[flow(80, 2), flow(443, 1)]));
        assert_eq!(
            first,
            [(
                INSTANCE,
                "3 packets were refused on the way out: TCP 192.0.2.1:80 (2 times), TCP 192.0.2.1:443"
                    .to_owned()
            )]
        );
        assert!(
            state
                .news(total(3), read_flows(&[flow(80, 2), flow(443, 1)]))
                .is_empty()
        );
        let more = state.news(total(4), read_flows(&[flow(80, 3)]));
        assert_eq!(more[0].1, "1 packet was refused on the way out: TCP 192.0.2.1:80");
        assert_eq!(state.all.packets, 4);
        // Begun anew, and something that has no ports.
        assert_eq!(
            state.news(total(1), HashMap::new())[0].1,
            "1 packet was refused on the way out"
        );
    }

    #[test]
    fn a_scan_of_everything_is_one_line() {
        let flows: Vec<Value> = (1..=1000).map(|port| flow(port, 1)).collect();
        let lines = State::default().news(total(5000), read_flows(&flows));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].1.starts_with("5000 packets were refused") && lines[0].1.ends_with("and 994 more"));
        assert!(lines[0].1.len() < 300, "{}", lines[0].1);
    }

    #[test]
    fn names_are_told_once_with_their_count() {
        let refusals = Refusals::default();
        for number in 0..100 {
            refusals.name(INSTANCE, "example.org");
            refusals.name(INSTANCE, &format!("{number}.example.org"));
        }
        let lines = refusals.lock().news(HashMap::new(), HashMap::new());
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].1.contains("example.org (100 times)") && lines[0].1.ends_with("and 26 more"),
            "{lines:?}"
        );
        assert!(refusals.lock().news(HashMap::new(), HashMap::new()).is_empty());
        assert_eq!(
            refusals.all(),
            Refused {
                packets: 0,
                names: 200
            }
        );
    }
}
