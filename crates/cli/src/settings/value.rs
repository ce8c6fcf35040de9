//! Kinds of settings: how each is read from text and from TOML, and how it is shown.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

/// A kind of setting.
pub(super) trait Setting: Sized {
    /// What its values look like.
    const KIND: &'static str;

    /// Reads the text of an argument or a variable, or a string of the file.
    fn parse(text: &str) -> Result<Self, String>;

    /// Reads a value of the file.
    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Self::parse(text),
            other => Err(format!("must be a string, is a {}", other.type_str())),
        }
    }

    /// With what is relative made to begin at this folder.
    fn in_folder(self, _folder: &Path) -> Self {
        self
    }

    /// As it would be written in the file.
    fn show(&self) -> String;
}

/// The strings of a list in the file, as an argument would have them.
pub(super) fn listed(value: &toml::Value) -> Result<String, String> {
    let toml::Value::Array(items) = value else {
        return Err(format!("must be a list of strings, is a {}", value.type_str()));
    };
    let texts = items
        .iter()
        .map(|item| {
            item.as_str()
                .ok_or_else(|| "must be a list of strings".to_owned())
        })
        .collect::<Result<Vec<&str>, String>>()?;
    Ok(texts.join(","))
}

/// The parts of a list in an argument, or a string of the file.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

pub(super) fn show_list(items: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = items.map(|item| quoted(&item)).collect();
    format!("[{}]", texts.join(", "))
}

pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Setting for String {
    const KIND: &'static str = "TEXT";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        quoted(self)
    }
}

impl Setting for PathBuf {
    const KIND: &'static str = "PATH";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }

    fn in_folder(self, folder: &Path) -> Self {
        if self.as_os_str().is_empty() {
            return self;
        }
        let joined = folder.join(self);
        std::path::absolute(&joined).unwrap_or(joined)
    }

    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for SocketAddr {
    const KIND: &'static str = "ADDRESS:PORT";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!("`{text}` is not an address with a port, such as 127.0.0.1:7080 or [::1]:7080")
        })
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Setting for u16 {
    const KIND: &'static str = "PORT";

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            // What others are told to open must be known before it is opened.
            Ok(0) | Err(_) => Err(format!("`{text}` is not a port from 1 to 65535")),
            Ok(port) => Ok(port),
        }
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(number) => Self::parse(&number.to_string()),
            other => Err(format!("must be a number, is a {}", other.type_str())),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for Vec<IpAddr> {
    const KIND: &'static str = "ADDRESS,…";

    fn parse(text: &str) -> Result<Self, String> {
        let addresses = parts(text)
            .map(|part| {
                part.trim_start_matches('[')
                    .trim_end_matches(']')
                    .parse()
                    .map_err(|_| format!("`{part}` is not an address, such as 127.0.0.1 or ::1"))
            })
            .collect::<Result<Self, String>>()?;
        if addresses.is_empty() {
            return Err("must name at least one address".to_owned());
        }
        Ok(addresses)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        Self::parse(&listed(value)?)
    }

    fn show(&self) -> String {
        show_list(self.iter().map(ToString::to_string))
    }
}

/// Name servers, each with its port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Servers(pub Vec<SocketAddr>);

impl Setting for Servers {
    const KIND: &'static str = "ADDRESS[:PORT],…";

    fn parse(text: &str) -> Result<Self, String> {
        /// Where name servers listen.
        const PORT: u16 = 53;
        parts(text)
            .map(|part| {
                part.parse::<SocketAddr>()
                    .or_else(|_| part.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT)))
                    .map_err(|_| {
                        format!("`{part}` is not the address of a name server, such as 9.9.9.9 or [2620:fe::fe]:53")
                    })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        Self::parse(&listed(value)?)
    }

    fn show(&self) -> String {
        show_list(self.0.iter().map(ToString::to_string))
    }
}

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// One of its addresses.
    pub address: IpAddr,
    /// How many bits its addresses share.
    pub prefix: u8,
}

impl fmt::Display for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// Blocks of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks(pub Vec<Block>);

impl Setting for Blocks {
    const KIND: &'static str = "ADDRESS/BITS,…";

    fn parse(text: &str) -> Result<Self, String> {
        let block = |part: &str| {
            let (address, prefix) = match part.split_once('/') {
                Some((address, prefix)) => (address, Some(prefix)),
                None => (part, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Some(most), |prefix| prefix.parse().ok())?;
            (prefix <= most).then_some(Block { address, prefix })
        };
        parts(text)
            .map(|part| {
                block(part).ok_or_else(|| {
                    format!("`{part}` is not a block of addresses, such as 192.168.0.0/16 or 2001:db8::/32")
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        Self::parse(&listed(value)?)
    }

    fn show(&self) -> String {
        show_list(self.0.iter().map(ToString::to_string))
    }
}

/// Image names and what is taken instead. The store of images reads the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases(pub BTreeMap<String, String>);

impl Aliases {
    fn add(&mut self, name: &str, target: &str) -> Result<(), String> {
        let (name, target) = (name.trim(), target.trim());
        if name.is_empty() || target.is_empty() {
            return Err(format!(
                "`{name}={target}` is not a name and its target, such as koyeb/sandbox=registry.example.org/sandbox"
            ));
        }
        match self.0.insert(name.to_owned(), target.to_owned()) {
            Some(_) => Err(format!("`{name}` is there twice")),
            None => Ok(()),
        }
    }
}

impl Setting for Aliases {
    const KIND: &'static str = "NAME=TARGET,…";

    fn parse(text: &str) -> Result<Self, String> {
        let mut aliases = Self::default();
        for part in parts(text) {
            let (name, target) = part.split_once('=').unwrap_or((part, ""));
            aliases.add(name, target)?;
        }
        Ok(aliases)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        let toml::Value::Table(table) = value else {
            return Self::parse(&listed(value)?);
        };
        let mut aliases = Self::default();
        for (name, target) in table {
            let target = target
                .as_str()
                .ok_or_else(|| format!("the target of `{name}` must be a string"))?;
            aliases.add(name, target)?;
        }
        Ok(aliases)
    }

    fn show(&self) -> String {
        show_list(self.0.iter().map(|(name, target)| format!("{name}={target}")))
    }
}

/// Origins of web pages, as browsers write them: scheme, host and, where it is not the scheme's own, port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(pub Vec<String>);

impl Setting for Origins {
    const KIND: &'static str = "ORIGIN,…";

    fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(origin)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        Self::parse(&listed(value)?)
    }

    fn show(&self) -> String {
        let texts: Vec<String> = self.0.iter().map(|origin| quoted(origin)).collect();
        format!("[{}]", texts.join(", "))
    }
}

/// Browsers compare origins letter by letter, so one that none of them sends is refused.
fn origin(text: &str) -> Result<String, String> {
    let refusal = || {
        Err(format!(
            "`{text}` is not an origin: write scheme, host and port as a browser does, in lower case and without a \
             slash at the end, such as https://panel.example.org or http://localhost:3000"
        ))
    };
    let (usual_port, authority) = match text.split_once("://") {
        Some(("https", authority)) => (":443", authority),
        Some(("http", authority)) => (":80", authority),
        _ => return refusal(),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._[]:".contains(c);
    let is_port = |port: &str| {
        port.parse::<u16>()
            .is_ok_and(|number| number.to_string() == port && number > 0)
    };
    if host.is_empty()
        || !host.chars().all(fits)
        || (host.contains(':') && !host.starts_with('['))
        || port.is_some_and(|port| !is_port(port))
        || authority.ends_with(usual_port)
    {
        return refusal();
    }
    Ok(text.to_owned())
}

/// Ports from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refusal = || format!("`{text}` is not a range of ports, such as 30000-30999");
        let (first, last) = text.split_once('-').ok_or_else(refusal)?;
        let range = Self {
            first: first.trim().parse().map_err(|_| refusal())?,
            last: last.trim().parse().map_err(|_| refusal())?,
        };
        if range.first == 0 || range.first > range.last {
            return Err(refusal());
        }
        Ok(range)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

impl Setting for PortRange {
    const KIND: &'static str = "FIRST-LAST";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is neither `text` nor `json`")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl Setting for LogFormat {
    const KIND: &'static str = "text|json";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// What becomes of instances when the control plane is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// They end.
    Stop,
    /// They and the edge go on; the next start adopts them.
    Keep,
}

impl Setting for OnStop {
    const KIND: &'static str = "stop|keep";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "stop" => Ok(Self::Stop),
            "keep" => Ok(Self::Keep),
            other => Err(format!("`{other}` is neither `stop` nor `keep`")),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Stop => "stop",
            Self::Keep => "keep",
        })
    }
}

/// Minutes of an awake service that one slow wake is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Minutes(pub u16);

impl Minutes {
    /// Most that makes sense: with so many hardly anything sleeps.
    const MAX: u16 = 1000;
}

impl Setting for Minutes {
    const KIND: &'static str = "MINUTES";

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(minutes) if minutes <= Self::MAX => Ok(Self(minutes)),
            _ => Err(format!(
                "`{text}` is not a number of minutes from 0 to {}",
                Self::MAX
            )),
        }
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(number) => Self::parse(&number.to_string()),
            other => Err(format!("must be a number, is a {}", other.type_str())),
        }
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// How many of something an organization may have; none at all with 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count(pub u32);

impl Count {
    /// Most that anybody can look after.
    const MAX: u32 = 1_000_000;
}

impl Setting for Count {
    const KIND: &'static str = "NUMBER";

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count) if count <= Self::MAX => Ok(Self(count)),
            _ => Err(format!("`{text}` is not a number from 0 to {}", Self::MAX)),
        }
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(number) => Self::parse(&number.to_string()),
            other => Err(format!("must be a number, is a {}", other.type_str())),
        }
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// What becomes of the memory of an instance in light sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepMemory {
    /// It stays, and a wake takes a millisecond.
    Keep,
    /// The machine gets back what the kernel can take, and a wake waits for what the program needs of it.
    Reclaim,
}

impl Setting for SleepMemory {
    const KIND: &'static str = "keep|reclaim";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "reclaim" => Ok(Self::Reclaim),
            other => Err(format!("`{other}` is neither `keep` nor `reclaim`")),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Keep => "keep",
            Self::Reclaim => "reclaim",
        })
    }
}

/// Which instances get user and group ids of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespaces {
    /// None.
    None,
    /// Sandboxes.
    Sandboxes,
    /// Every instance.
    All,
}

impl Setting for UserNamespaces {
    const KIND: &'static str = "none|sandboxes|all";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "sandboxes" => Ok(Self::Sandboxes),
            "all" => Ok(Self::All),
            other => Err(format!("`{other}` is neither `none`, `sandboxes` nor `all`")),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::None => "none",
            Self::Sandboxes => "sandboxes",
            Self::All => "all",
        })
    }
}
