//! Kinds of settings: how each is read from text and from TOML, and how it is shown.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
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

    /// As it would be written in the file.
    fn show(&self) -> String;
}

fn quoted(text: &str) -> String {
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
        text.parse()
            .map_err(|_| format!("`{text}` is not a port from 0 to 65535"))
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
        let addresses = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
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
        Self::parse(&texts.join(","))
    }

    fn show(&self) -> String {
        let texts: Vec<String> = self.iter().map(|address| quoted(&address.to_string())).collect();
        format!("[{}]", texts.join(", "))
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Setting for LogFormat {
    const KIND: &'static str = "text|json";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is neither `text` nor `json`")),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
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
