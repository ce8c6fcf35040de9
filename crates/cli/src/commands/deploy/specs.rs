//! Short notations of arguments: ports, routes, variables, checks, scaling targets.

use std::str::FromStr;

use tram_types::egress::Destination;
use tram_types::names::check_env_key;

/// `8000` or `8000:http2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Number.
    pub number: u16,
    /// `http`, `http2` or `tcp`.
    pub protocol: String,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = text.split_once(':').unwrap_or((text, "http"));
        if !matches!(protocol, "http" | "http2" | "tcp") {
            return Err(format!("`{protocol}` is not http, http2 or tcp"));
        }
        Ok(Self {
            number: port(number)?,
            protocol: protocol.to_owned(),
        })
    }
}

/// `/api:8000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Path, with its slash.
    pub path: String,
    /// Number of the port.
    pub port: u16,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, number) = text
            .rsplit_once(':')
            .ok_or_else(|| "must be a path and a port, such as /api:8000".to_owned())?;
        if !path.starts_with('/') {
            return Err("the path must start with `/`".to_owned());
        }
        Ok(Self {
            path: path.to_owned(),
            port: port(number)?,
        })
    }
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub key: String,
    /// What follows the first `=`.
    pub value: String,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| "must be a name, `=` and a value".to_owned())?;
        check_env_key(key).map_err(|rule| format!("the name `{key}` {rule}"))?;
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// `tcp:5432` or `http:8000:/health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Connects.
    Tcp(u16),
    /// Asks for a path.
    Http(u16, String),
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refusal = || "must be like tcp:5432 or http:8000:/health".to_owned();
        let (kind, rest) = text.split_once(':').ok_or_else(refusal)?;
        match kind {
            "tcp" => Ok(Self::Tcp(port(rest)?)),
            "http" => {
                let (number, path) = rest.split_once(':').unwrap_or((rest, "/"));
                if !path.starts_with('/') {
                    return Err("the path must start with `/`".to_owned());
                }
                Ok(Self::Http(port(number)?, path.to_owned()))
            }
            _ => Err(refusal()),
        }
    }
}

/// `none`, `all`, or what may be reached: `10.0.0.0/8`, `pypi.org`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// Nothing outside.
    None,
    /// Everything.
    All,
    /// This, and nothing else that is not given too.
    To(String),
}

impl FromStr for Egress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            _ if Destination::parse(text).is_some() => Ok(Self::To(text.to_owned())),
            _ => Err(
                "must be none, all, an address, a network or a name, such as 10.0.0.0/8 or pypi.org"
                    .to_owned(),
            ),
        }
    }
}

/// `cpu=80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleOn {
    /// Percent of CPU over all instances.
    Cpu(i64),
    /// Percent of memory over all instances.
    Memory(i64),
    /// Requests a second, per instance.
    RequestsPerSecond(i64),
    /// Requests in flight, per instance.
    ConcurrentRequests(i64),
    /// Milliseconds to the head of an answer, of 95 % of the requests.
    ResponseTime(i64),
}

impl FromStr for ScaleOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, value) = text
            .split_once('=')
            .ok_or_else(|| "must be like cpu=80 or concurrent-requests=20".to_owned())?;
        let value: i64 = value
            .parse()
            .map_err(|_| format!("`{value}` is not a whole number"))?;
        match what {
            "cpu" => Ok(Self::Cpu(value)),
            "memory" => Ok(Self::Memory(value)),
            "requests-per-second" => Ok(Self::RequestsPerSecond(value)),
            "concurrent-requests" => Ok(Self::ConcurrentRequests(value)),
            "response-time" => Ok(Self::ResponseTime(value)),
            other => Err(format!(
                "`{other}` is not cpu, memory, requests-per-second, concurrent-requests or response-time"
            )),
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port from 1 to 65535")),
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: FromStr<Err = String>>(text: &str) -> Result<T, String> {
        text.parse()
    }

    #[test]
    fn notations_are_read() {
        assert_eq!(
            read("8000"),
            Ok(Port {
                number: 8000,
                protocol: "http".to_owned()
            })
        );
        assert_eq!(read::<Port>("9000:http2").unwrap().protocol, "http2");
        assert_eq!(
            read("/a:b:80"),
            Ok(Route {
                path: "/a:b".to_owned(),
                port: 80
            })
        );
        assert_eq!(
            read("A=b=c"),
            Ok(Variable {
                key: "A".to_owned(),
                value: "b=c".to_owned()
            })
        );
        assert_eq!(read("tcp:5432"), Ok(Check::Tcp(5432)));
        assert_eq!(read("http:8000"), Ok(Check::Http(8000, "/".to_owned())));
        assert_eq!(
            read("http:8000:/health"),
            Ok(Check::Http(8000, "/health".to_owned()))
        );
        assert_eq!(read("cpu=80"), Ok(ScaleOn::Cpu(80)));
        assert_eq!(read("response-time=300"), Ok(ScaleOn::ResponseTime(300)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            read::<Port>("http").unwrap_err(),
            "`http` is not a port from 1 to 65535"
        );
        assert_eq!(
            read::<Port>("0").unwrap_err(),
            "`0` is not a port from 1 to 65535"
        );
        assert_eq!(
            read::<Port>("80:udp").unwrap_err(),
            "`udp` is not http, http2 or tcp"
        );
        assert_eq!(
            read::<Route>("api:80").unwrap_err(),
            "the path must start with `/`"
        );
        assert_eq!(
            read::<Variable>("1A=b").unwrap_err(),
            "the name `1A` must start with a letter or `_` and contain only letters, digits and `_`"
        );
        assert_eq!(
            read::<Check>("grpc:1").unwrap_err(),
            "must be like tcp:5432 or http:8000:/health"
        );
        assert_eq!(
            read::<ScaleOn>("cpu=high").unwrap_err(),
            "`high` is not a whole number"
        );
    }
}
