//! What an entry of an egress allow list says: an address, a network, or a name.
//!
//! Koyeb's list holds addresses and networks. Names are ours: the site's own name server answers them, and what it
//! answers is let through, so that a rule follows the name wherever it leads. The one design choice to know: an entry
//! that is neither is an error, never skipped, because a rule that was misread is a hole or an outage.

use std::fmt;
use std::net::IpAddr;

/// The longest name of DNS, as text.
const NAME_BYTES_MAX: usize = 253;
/// The longest part between two dots.
const LABEL_BYTES_MAX: usize = 63;

/// One entry of an allow list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// An address, or an address and how many of its bits count.
    Network {
        /// Any address of the block.
        address: IpAddr,
        /// How many bits count: at most 32 or 128.
        bits: u8,
    },
    /// Wherever a name leads.
    Name(NamePattern),
}

/// A name of the outside, or all names below one (`*.example.org`, which `example.org` itself is not).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    /// In lower case, without the dot at the end and without `*.`.
    name: String,
    below: bool,
}

impl Destination {
    /// Reads an entry; `None` for what is neither address, network nor name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            return NamePattern::parse(text).map(Self::Name);
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most)?,
            None => most,
        };
        Some(Self::Network { address, bits })
    }
}

impl NamePattern {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text.as_str(), false),
        };
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= LABEL_BYTES_MAX
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        // Without a dot it is a service or a slip; a last part of digits alone is a mistyped address.
        let last = name.rsplit_once('.').map(|(_, last)| last)?;
        let valid = name.len() <= NAME_BYTES_MAX
            && name.split('.').all(is_label)
            && !last.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| Self {
            name: name.to_owned(),
            below,
        })
    }

    /// Whether a name, in lower case and without the dot at the end, is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if !self.below {
            return name == self.name;
        }
        name.strip_suffix(self.name.as_str())
            .and_then(|front| front.strip_suffix('.'))
            .is_some_and(|front| !front.is_empty())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.below {
            formatter.write_str("*.")?;
        }
        formatter.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> NamePattern {
        match Destination::parse(text) {
            Some(Destination::Name(name)) => name,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn addresses_networks_and_names_are_told_apart() {
        for (text, bits) in [
            ("192.0.2.7", 32),
            ("10.0.0.0/8", 8),
            ("2001:db8::1", 128),
            ("::/0", 0),
        ] {
            let Some(Destination::Network { bits: read, .. }) = Destination::parse(text) else {
                panic!("{text}");
            };
            assert_eq!(read, bits, "{text}");
        }
        assert_eq!(name("PyPI.org.").to_string(), "pypi.org");
        assert_eq!(name("*.example.org").to_string(), "*.example.org");
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in [
            "",
            "*",
            "*.",
            "nonsense",
            "*.org.",
            "10.0.0.300",
            "10.0.0.0/33",
            "10.0.0.0/",
            "pypi.org/24",
            "a..b",
            "-a.b",
            "a.*.b",
            "exa mple.org",
            "https://pypi.org",
            "pypi.org:443",
        ] {
            assert_eq!(Destination::parse(text), None, "{text}");
        }
        assert_eq!(Destination::parse(&format!("{}.org", "a".repeat(64))), None);
    }

    #[test]
    fn a_star_means_what_is_below() {
        let below = name("*.example.org");
        assert!(below.matches("a.example.org") && below.matches("a.b.example.org"));
        for other in [
            "example.org",
            "aexample.org",
            ".example.org",
            "example.org.evil.net",
        ] {
            assert!(!below.matches(other), "{other}");
        }
        let one = name("example.org");
        assert!(one.matches("example.org") && !one.matches("a.example.org"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_reads_back(text in ".{0,80}") {
            if let Some(Destination::Name(name)) = Destination::parse(&text) {
                prop_assert_eq!(Destination::parse(&name.to_string()), Some(Destination::Name(name)));
            }
        }
    }
}
