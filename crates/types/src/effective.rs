//! What a definition comes to once the defaults are applied: what planner, sites and edge work with.
//!
//! The stored definition keeps what the user wrote; these functions are the one place where a default is decided
//! (digest, sections 3 to 3.3).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    catalog::DEFAULT_INSTANCE_TYPE,
    definition::{DeploymentDefinition, DeploymentHealthCheck, DeploymentScaling, scoped_to},
    engine::Engine,
    status::{DefinitionType, DeploymentStrategyType},
};

mod targets;

pub use targets::{DEFAULT_QUANTILE, ResponseTimeTarget, Targets};

/// The port of a web service that declares none.
pub const DEFAULT_WEB_PORT: u16 = 8000;
/// Idle time before a service that may sleep does, when the definition does not say.
pub const DEFAULT_DEEP_SLEEP: Duration = Duration::from_secs(300);
/// From light to deep sleep when the definition only asks for light sleep: what Koyeb's control panel sends.
pub const DEFAULT_DEEP_AFTER_LIGHT: Duration = Duration::from_secs(3600);
/// Grace before a failing probe counts.
pub const DEFAULT_GRACE_PERIOD: Duration = Duration::from_secs(5);
/// Grace of a model: 60 GB from a slow disk take this long to load, and an engine that cannot load ends by itself.
pub const MODEL_GRACE_PERIOD: Duration = Duration::from_secs(600);
/// Time between probes of a healthy instance.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// Failures in a row before an instance is replaced.
pub const DEFAULT_RESTART_LIMIT: u32 = 3;
/// Time a probe may take.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// HTTP/1.1 and WebSocket.
    Http,
    /// HTTP/2 without TLS, gRPC included.
    Http2,
    /// Anything; reached from the private network or a proxy port only.
    Tcp,
}

impl PortProtocol {
    /// Reads `http`, `http2` or `tcp`; empty means `http`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "http" | "" => Some(Self::Http),
            "http2" => Some(Self::Http2),
            "tcp" => Some(Self::Tcp),
            _ => None,
        }
    }

    /// As the definition writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

/// A port with its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Number.
    pub port: u16,
    /// What it speaks.
    pub protocol: PortProtocol,
}

/// A path with its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Prefix, starting with `/`.
    pub path: String,
    /// Where it leads.
    pub port: u16,
    /// What that port speaks.
    pub protocol: PortProtocol,
}

/// How many instances, on what load, and when to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Fewest; 0 lets it sleep.
    pub min: u32,
    /// Most.
    pub max: u32,
    /// What one instance should carry.
    pub targets: Targets,
    /// Idle time before deep sleep; only with `min` 0.
    pub deep_sleep: Option<Duration>,
    /// Idle time before light sleep; only with `min` 0.
    pub light_sleep: Option<Duration>,
}

/// How one probe is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// Connect.
    Tcp {
        /// Where to.
        port: u16,
    },
    /// Ask and expect 2xx or 3xx.
    Http {
        /// Where to.
        port: u16,
        /// What for.
        path: String,
        /// How.
        method: String,
        /// With what headers.
        headers: Vec<(String, String)>,
    },
}

/// How an instance's health is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Before this much time a failure does not count.
    pub grace_period: Duration,
    /// Between probes of a healthy instance.
    pub interval: Duration,
    /// Failures in a row before the instance is replaced.
    pub restart_limit: u32,
    /// A probe may take so long.
    pub timeout: Duration,
    /// What is done.
    pub probe: Probe,
}

fn port_number(port: i64) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn seconds_or(given: i64, default: Duration) -> Duration {
    u64::try_from(given)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map_or(default, Duration::from_secs)
}

impl DeploymentDefinition {
    /// The ports it listens on: those declared, or 8000/http for a web service that declares none.
    #[must_use]
    pub fn effective_ports(&self) -> Vec<Port> {
        let declared: Vec<Port> = self
            .ports
            .iter()
            .filter_map(|port| {
                Some(Port {
                    port: port_number(port.port)?,
                    protocol: PortProtocol::parse(&port.protocol)?,
                })
            })
            .collect();
        if declared.is_empty() && self.r#type == DefinitionType::Web {
            return vec![Port {
                port: DEFAULT_WEB_PORT,
                protocol: PortProtocol::Http,
            }];
        }
        declared
    }

    /// Whether instances of both can take requests for the same addresses side by side: they listen on the same ports
    /// and are reached by the same paths.
    #[must_use]
    pub fn is_interchangeable_with(&self, other: &Self) -> bool {
        self.effective_ports() == other.effective_ports()
            && self.effective_routes() == other.effective_routes()
    }

    /// The paths that lead to it: those declared, or `/` on the first HTTP port of a web service or sandbox.
    #[must_use]
    pub fn effective_routes(&self) -> Vec<Route> {
        let ports = self.effective_ports();
        let protocol = |number: u16| {
            ports
                .iter()
                .find(|port| port.port == number)
                .map_or(PortProtocol::Http, |port| port.protocol)
        };
        let declared: Vec<Route> = self
            .routes
            .iter()
            .filter_map(|route| {
                let port = port_number(route.port)?;
                let path = if route.path.is_empty() {
                    "/".to_owned()
                } else {
                    route.path.clone()
                };
                Some(Route {
                    path,
                    port,
                    protocol: protocol(port),
                })
            })
            .collect();
        if !declared.is_empty() || self.r#type != DefinitionType::Web {
            return declared;
        }
        ports
            .iter()
            .find(|port| port.protocol != PortProtocol::Tcp)
            .map(|port| Route {
                path: "/".to_owned(),
                port: port.port,
                protocol: port.protocol,
            })
            .into_iter()
            .collect()
    }

    /// The port in `PORT`: the lowest one declared.
    #[must_use]
    pub fn main_port(&self) -> Option<u16> {
        self.effective_ports().iter().map(|port| port.port).min()
    }

    /// How many instances `region` gets.
    #[must_use]
    pub fn effective_scale(&self, region: &str) -> Scale {
        let chosen = self
            .scalings
            .iter()
            .find(|scaling| !scaling.scopes.is_empty() && scoped_to(&scaling.scopes, region))
            .or_else(|| self.scalings.iter().find(|scaling| scaling.scopes.is_empty()));
        chosen.map_or(
            Scale {
                min: 1,
                max: 1,
                targets: Targets::default(),
                deep_sleep: None,
                light_sleep: None,
            },
            scale,
        )
    }

    /// The instance type `region` gets.
    #[must_use]
    pub fn effective_instance_type(&self, region: &str) -> &str {
        self.instance_types
            .iter()
            .find(|kind| !kind.scopes.is_empty() && scoped_to(&kind.scopes, region))
            .or_else(|| self.instance_types.iter().find(|kind| kind.scopes.is_empty()))
            .map(|kind| kind.r#type.as_str())
            .filter(|kind| !kind.is_empty())
            .unwrap_or(DEFAULT_INSTANCE_TYPE)
    }

    /// How health is told: the checks declared, or one TCP check for each port. A model is asked whether it is loaded.
    #[must_use]
    pub fn effective_health_checks(&self) -> Vec<HealthCheck> {
        let declared: Vec<HealthCheck> = self.health_checks.iter().filter_map(health_check).collect();
        if !declared.is_empty() {
            return declared;
        }
        if let Some(model) = &self.model {
            let engine = Engine::named(&model.engine).unwrap_or(Engine::OpenAi);
            let check = |port| model_check(port, engine.facts().ready_path);
            return self.main_port().map(check).into_iter().collect();
        }
        self.effective_ports()
            .iter()
            .map(|port| HealthCheck {
                grace_period: DEFAULT_GRACE_PERIOD,
                interval: DEFAULT_INTERVAL,
                restart_limit: DEFAULT_RESTART_LIMIT,
                timeout: DEFAULT_TIMEOUT,
                probe: Probe::Tcp { port: port.port },
            })
            .collect()
    }

    /// The strategy, with the default resolved.
    #[must_use]
    pub fn effective_strategy(&self) -> DeploymentStrategyType {
        match self.strategy.as_ref().map(|strategy| strategy.r#type) {
            None | Some(DeploymentStrategyType::Invalid | DeploymentStrategyType::Default) => {
                DeploymentStrategyType::Rolling
            }
            Some(strategy) => strategy,
        }
    }
}

/// An engine does not answer with 200 on this path while it loads its model.
fn model_check(port: u16, path: &str) -> HealthCheck {
    HealthCheck {
        grace_period: MODEL_GRACE_PERIOD,
        interval: DEFAULT_INTERVAL,
        restart_limit: DEFAULT_RESTART_LIMIT,
        timeout: DEFAULT_TIMEOUT,
        probe: Probe::Http {
            port,
            path: path.to_owned(),
            method: "GET".to_owned(),
            headers: Vec::new(),
        },
    }
}

fn scale(scaling: &DeploymentScaling) -> Scale {
    let count = |number: i64| u32::try_from(number).unwrap_or(0);
    let min = count(scaling.min);
    let max = count(scaling.max).max(min).max(1);
    let delay = scaling
        .targets
        .iter()
        .find_map(|target| target.sleep_idle_delay.as_ref());
    let some = |seconds: i64| {
        u64::try_from(seconds)
            .ok()
            .filter(|s| *s > 0)
            .map(Duration::from_secs)
    };
    let light_sleep = delay.and_then(|delay| some(delay.light_sleep_value));
    let deep_sleep = delay
        .and_then(|delay| some(delay.deep_sleep_value).or_else(|| some(delay.value)))
        .or_else(|| light_sleep.map(|light| light.saturating_add(DEFAULT_DEEP_AFTER_LIGHT)))
        .or(Some(DEFAULT_DEEP_SLEEP));
    let targets = Targets::of(&scaling.targets);
    if min == 0 {
        Scale {
            min,
            max,
            targets,
            deep_sleep,
            light_sleep,
        }
    } else {
        Scale {
            min,
            max,
            targets,
            deep_sleep: None,
            light_sleep: None,
        }
    }
}

fn health_check(check: &DeploymentHealthCheck) -> Option<HealthCheck> {
    let or_default = |text: &str, default: &str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    };
    let probe = match (&check.http, &check.tcp) {
        (Some(http), _) => Probe::Http {
            port: port_number(http.port)?,
            path: or_default(&http.path, "/"),
            method: or_default(&http.method, "GET"),
            headers: http
                .headers
                .iter()
                .map(|header| (header.key.clone(), header.value.clone()))
                .collect(),
        },
        (None, Some(tcp)) => Probe::Tcp {
            port: port_number(tcp.port)?,
        },
        (None, None) => return None,
    };
    Some(HealthCheck {
        grace_period: seconds_or(check.grace_period, DEFAULT_GRACE_PERIOD),
        interval: seconds_or(check.interval, DEFAULT_INTERVAL),
        restart_limit: u32::try_from(check.restart_limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(DEFAULT_RESTART_LIMIT),
        timeout: seconds_or(check.timeout, DEFAULT_TIMEOUT),
        probe,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(json: &str) -> DeploymentDefinition {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_web_service_listens_on_8000_and_answers_on_the_root() {
        let web = definition(r#"{"type":"WEB"}"#);
        assert_eq!(web.main_port(), Some(8000));
        assert_eq!(
            web.effective_routes(),
            [Route {
                path: "/".to_owned(),
                port: 8000,
                protocol: PortProtocol::Http
            }]
        );
        assert_eq!(web.effective_health_checks().len(), 1);
        assert!(definition(r#"{"type":"WORKER"}"#).effective_ports().is_empty());
    }

    #[test]
    fn sleep_only_with_a_minimum_of_zero() {
        let sleeper = definition(r#"{"scalings":[{"min":0,"max":2}]}"#).effective_scale("fra");
        assert_eq!(sleeper.deep_sleep, Some(DEFAULT_DEEP_SLEEP));
        let light = definition(
            r#"{"scalings":[{"min":0,"max":1,"targets":[{"sleep_idle_delay":{"light_sleep_value":600}}]}]}"#,
        )
        .effective_scale("fra");
        assert_eq!(light.light_sleep, Some(Duration::from_secs(600)));
        assert_eq!(light.deep_sleep, Some(Duration::from_secs(4200)));
        let awake = definition(
            r#"{"scalings":[{"min":1,"max":2,"targets":[{"sleep_idle_delay":{"deep_sleep_value":5}}]}]}"#,
        )
        .effective_scale("fra");
        assert_eq!((awake.min, awake.max, awake.deep_sleep), (1, 2, None));
    }

    #[test]
    fn a_region_of_its_own_wins_over_the_general_entry() {
        let scaled =
            definition(r#"{"scalings":[{"min":1,"max":1},{"min":2,"max":3,"scopes":["region:fra"]}]}"#);
        assert_eq!(scaled.effective_scale("fra").min, 2);
        assert_eq!(scaled.effective_scale("was").min, 1);
    }

    #[test]
    fn zeros_in_a_health_check_mean_the_default() {
        let checks = definition(r#"{"health_checks":[{"http":{"port":80}}]}"#).effective_health_checks();
        assert_eq!(checks[0].interval, DEFAULT_INTERVAL);
        assert_eq!(checks[0].restart_limit, DEFAULT_RESTART_LIMIT);
        assert!(
            matches!(&checks[0].probe, Probe::Http { path, method, .. } if path == "/" && method == "GET")
        );
    }
}
