//! From arguments to a definition, on the ground of the one that is there. Pure.

use tram_types::{
    definition::{
        DeploymentDefinition, DeploymentEnv, DeploymentHealthCheck, DeploymentInstanceType, DeploymentPort,
        DeploymentProxyPort, DeploymentRoute, DeploymentScaling, DeploymentScalingTarget, DeploymentStrategy,
        DockerSource, EgressPolicy, EgressRule, HttpHealthCheck, ScalingTargetResponseTime,
        ScalingTargetValue, TcpHealthCheck,
    },
    status::{DefinitionType, DeploymentStrategyType, EgressPolicyMode, ProxyPortProtocol},
};

use super::{Arguments, Load, Strategy, Type, specs::Check, specs::Egress, specs::ScaleOn};
use crate::error::Error;

/// Size of an instance when nothing says otherwise, as official clients have it.
const DEFAULT_INSTANCE_TYPE: &str = "micro";
/// The port of a web service when nothing says otherwise, as official clients have it.
const DEFAULT_PORT: u16 = 8000;

/// The definition that `arguments` ask for: `before` with their changes, or a new one.
pub(super) fn build(
    before: Option<DeploymentDefinition>,
    arguments: &Arguments,
) -> Result<DeploymentDefinition, Error> {
    let is_new = before.is_none();
    let mut definition = before.unwrap_or_default();
    definition.name.clone_from(&arguments.name);
    definition.git = None;
    definition.archive = None;
    definition.database = None;
    definition.model = None;
    match arguments.r#type {
        Some(Type::Web) => definition.r#type = DefinitionType::Web,
        Some(Type::Worker) => definition.r#type = DefinitionType::Worker,
        None if is_new => definition.r#type = DefinitionType::Web,
        None => {}
    }
    docker(&mut definition, arguments);
    ports(&mut definition, arguments, is_new)?;
    environment(&mut definition, arguments);
    if let Some(r#type) = &arguments.instance_type {
        definition.instance_types = vec![instance_type(r#type)];
    } else if definition.instance_types.is_empty() {
        definition.instance_types = vec![instance_type(DEFAULT_INSTANCE_TYPE)];
    }
    if !arguments.region.is_empty() {
        definition.regions.clone_from(&arguments.region);
    }
    scaling(&mut definition, &arguments.load)?;
    if !arguments.checks.is_empty() {
        definition.health_checks = arguments.checks.iter().map(check).collect();
    }
    egress(&mut definition, &arguments.egress)?;
    if let Some(strategy) = arguments.strategy {
        definition.strategy = Some(DeploymentStrategy {
            r#type: match strategy {
                Strategy::Rolling => DeploymentStrategyType::Rolling,
                Strategy::Immediate => DeploymentStrategyType::Immediate,
                Strategy::Canary => DeploymentStrategyType::Canary,
                Strategy::BlueGreen => DeploymentStrategyType::BlueGreen,
            },
        });
    }
    Ok(definition)
}

fn egress(definition: &mut DeploymentDefinition, asked: &[Egress]) -> Result<(), Error> {
    let mode = match asked {
        [] => return Ok(()),
        [Egress::All] => EgressPolicyMode::Default,
        _ => EgressPolicyMode::DenyAll,
    };
    let mut allow_list = Vec::new();
    for one in asked {
        match one {
            Egress::To(cidr) => allow_list.push(EgressRule { cidr: cidr.clone() }),
            Egress::None | Egress::All if asked.len() == 1 => {}
            Egress::None | Egress::All => {
                return Err(Error::input(
                    "--egress none and --egress all leave nothing to add",
                    "give one of them alone, or destinations",
                ));
            }
        }
    }
    definition.network_policy.get_or_insert_default().egress = Some(EgressPolicy { mode, allow_list });
    Ok(())
}

fn docker(definition: &mut DeploymentDefinition, arguments: &Arguments) {
    let docker = definition.docker.get_or_insert_with(DockerSource::default);
    docker.image.clone_from(&arguments.image);
    if let Some(command) = &arguments.command {
        docker.command.clone_from(command);
    }
    if !arguments.args.is_empty() {
        docker.args.clone_from(&arguments.args);
    }
    if !arguments.entrypoint.is_empty() {
        docker.entrypoint.clone_from(&arguments.entrypoint);
    }
    if let Some(secret) = &arguments.registry_secret {
        docker.image_registry_secret.clone_from(secret);
    }
}

fn ports(definition: &mut DeploymentDefinition, arguments: &Arguments, is_new: bool) -> Result<(), Error> {
    let is_web = definition.r#type == DefinitionType::Web;
    if !arguments.ports.is_empty() {
        definition.ports = arguments
            .ports
            .iter()
            .map(|port| DeploymentPort {
                port: port.number.into(),
                protocol: port.protocol.clone(),
            })
            .collect();
    } else if is_new && is_web && arguments.proxy_ports.is_empty() {
        definition.ports = vec![DeploymentPort {
            port: DEFAULT_PORT.into(),
            protocol: "http".to_owned(),
        }];
    }
    if !arguments.routes.is_empty() {
        definition.routes = arguments
            .routes
            .iter()
            .map(|route| DeploymentRoute {
                port: route.port.into(),
                path: route.path.clone(),
                security_policies: None,
            })
            .collect();
    } else if !arguments.ports.is_empty() || is_new {
        // Routes to ports that are no longer there go; the first HTTP port is reached at `/` when nothing else is.
        let ports = &definition.ports;
        definition
            .routes
            .retain(|route| ports.iter().any(|port| port.port == route.port));
        if definition.routes.is_empty()
            && is_web
            && let Some(port) = ports.iter().find(|port| port.protocol != "tcp")
        {
            definition.routes = vec![DeploymentRoute {
                port: port.port,
                path: "/".to_owned(),
                security_policies: None,
            }];
        }
    }
    for route in &definition.routes {
        if !definition.ports.iter().any(|port| port.port == route.port) {
            return Err(Error::input(
                format!(
                    "route {} leads to port {}, which is not declared",
                    route.path, route.port
                ),
                format!("add `--port {}`", route.port),
            ));
        }
    }
    if !arguments.proxy_ports.is_empty() {
        for number in &arguments.proxy_ports {
            if !definition
                .ports
                .iter()
                .any(|port| port.port == i64::from(*number))
            {
                definition.ports.push(DeploymentPort {
                    port: (*number).into(),
                    protocol: "tcp".to_owned(),
                });
            }
        }
        definition.proxy_ports = arguments
            .proxy_ports
            .iter()
            .map(|number| DeploymentProxyPort {
                port: (*number).into(),
                protocol: ProxyPortProtocol::Tcp,
            })
            .collect();
    }
    Ok(())
}

fn environment(definition: &mut DeploymentDefinition, arguments: &Arguments) {
    definition
        .env
        .retain(|variable| !arguments.unset_env.contains(&variable.key));
    let plain = arguments
        .env
        .iter()
        .map(|variable| (&variable.key, variable.value.clone()));
    let secret = arguments
        .secret
        .iter()
        .map(|variable| (&variable.key, format!("{{{{ secret.{} }}}}", variable.value)));
    for (key, value) in plain.chain(secret) {
        let variable = DeploymentEnv {
            scopes: Vec::new(),
            key: key.clone(),
            value: Some(value),
            secret: None,
        };
        match definition.env.iter_mut().find(|existing| existing.key == *key) {
            Some(existing) => *existing = variable,
            None => definition.env.push(variable),
        }
    }
}

fn seconds(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) fn scaling(definition: &mut DeploymentDefinition, load: &Load) -> Result<(), Error> {
    if definition.scalings.is_empty() {
        definition.scalings = vec![DeploymentScaling {
            min: 1,
            max: 1,
            ..DeploymentScaling::default()
        }];
    }
    let sleeps = [
        (load.sleep_after, "--sleep-after"),
        (load.light_sleep_after, "--light-sleep-after"),
    ];
    let asked = sleeps.iter().find(|(after, _)| after.is_some());
    if let (Some((_, flag)), Some(min @ 1..)) = (asked, load.min) {
        return Err(Error::input(
            format!("a service with at least {min} instances never sleeps"),
            format!("give `--min 0` or leave `{flag}` out"),
        ));
    }
    if let (Some(min), Some(max)) = (load.min, load.max)
        && min > max
    {
        return Err(Error::input(
            format!("--min {min} is more than --max {max}"),
            "give --min the smaller number",
        ));
    }
    for scaling in &mut definition.scalings {
        if let Some(max) = load.max {
            scaling.max = max.into();
            scaling.min = scaling.min.min(scaling.max);
        }
        if let Some(min) = load.min {
            scaling.min = min.into();
            scaling.max = scaling.max.max(scaling.min).max(1);
        }
        if asked.is_some() {
            scaling.min = 0;
            let known = scaling
                .targets
                .iter()
                .find_map(|target| target.sleep_idle_delay.clone());
            let mut delay = known.unwrap_or_default();
            if let Some(idle) = load.sleep_after {
                delay.deep_sleep_value = seconds(idle);
                delay.value = 0;
            }
            if let Some(idle) = load.light_sleep_after {
                delay.light_sleep_value = seconds(idle);
            }
            scaling.targets.retain(|target| target.sleep_idle_delay.is_none());
            scaling.targets.push(DeploymentScalingTarget {
                sleep_idle_delay: Some(delay),
                ..DeploymentScalingTarget::default()
            });
        }
        if scaling.min > 0 {
            scaling.targets.retain(|target| target.sleep_idle_delay.is_none());
        }
        if !load.scale_on.is_empty() {
            scaling.targets.retain(|target| target.sleep_idle_delay.is_some());
            scaling.targets.extend(load.scale_on.iter().copied().map(target));
        }
    }
    Ok(())
}

fn target(scale_on: ScaleOn) -> DeploymentScalingTarget {
    let mut target = DeploymentScalingTarget::default();
    match scale_on {
        ScaleOn::Cpu(value) => target.average_cpu = Some(ScalingTargetValue { value }),
        ScaleOn::Memory(value) => target.average_mem = Some(ScalingTargetValue { value }),
        ScaleOn::RequestsPerSecond(value) => target.requests_per_second = Some(ScalingTargetValue { value }),
        ScaleOn::ConcurrentRequests(value) => target.concurrent_requests = Some(ScalingTargetValue { value }),
        ScaleOn::ResponseTime(value) => {
            target.requests_response_time = Some(ScalingTargetResponseTime {
                value,
                ..ScalingTargetResponseTime::default()
            });
        }
    }
    target
}

pub(crate) fn instance_type(r#type: &str) -> DeploymentInstanceType {
    DeploymentInstanceType {
        scopes: Vec::new(),
        r#type: r#type.to_owned(),
    }
}

fn check(check: &Check) -> DeploymentHealthCheck {
    let mut written = DeploymentHealthCheck::default();
    match check {
        Check::Tcp(port) => written.tcp = Some(TcpHealthCheck { port: (*port).into() }),
        Check::Http(port, path) => {
            written.http = Some(HttpHealthCheck {
                port: (*port).into(),
                path: path.clone(),
                ..HttpHealthCheck::default()
            });
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn built(before: Option<DeploymentDefinition>, line: &str) -> Result<DeploymentDefinition, Error> {
        let words = format!("deploy {line}");
        build(before, &Line::try_parse_from(words.split(' ')).unwrap().arguments)
    }

    #[test]
    fn a_new_service_is_web_on_8000() {
        let definition = built(None, "nginx --name web").unwrap();
        assert_eq!(definition.r#type, DefinitionType::Web);
        assert_eq!(
            definition.ports,
            [DeploymentPort {
                port: 8000,
                protocol: "http".to_owned()
            }]
        );
        assert_eq!(
            (definition.routes[0].path.as_str(), definition.routes[0].port),
            ("/", 8000)
        );
        assert_eq!((definition.scalings[0].min, definition.scalings[0].max), (1, 1));
        assert_eq!(definition.instance_types[0].r#type, "micro");
    }

    #[test]
    fn a_worker_has_no_port() {
        let definition = built(None, "job --name job --type worker").unwrap();
        assert!(definition.ports.is_empty() && definition.routes.is_empty());
    }

    #[test]
    fn an_update_changes_what_is_given_alone() {
        let before = built(
            None,
            "app:1 -n web -p 80 -e A=1 -e B=2 --check http:80:/h --sleep-after 5m --instance-type small",
        )
        .unwrap();
        assert_eq!((before.scalings[0].min, before.scalings[0].max), (0, 1));
        let after = built(
            Some(before.clone()),
            "app:2 -n web -e B=3 --secret C=token --unset-env A",
        )
        .unwrap();
        let env: Vec<(&str, Option<&str>)> = after
            .env
            .iter()
            .map(|variable| (variable.key.as_str(), variable.value.as_deref()))
            .collect();
        assert_eq!(env, [("B", Some("3")), ("C", Some("{{ secret.token }}"))]);
        let expected = DeploymentDefinition {
            env: after.env.clone(),
            docker: Some(DockerSource {
                image: "app:2".to_owned(),
                ..DockerSource::default()
            }),
            ..before
        };
        assert_eq!(after, expected);
    }

    #[test]
    fn a_new_port_takes_the_route_along() {
        let before = built(None, "app -n web -p 80").unwrap();
        let after = built(Some(before), "app -n web -p 81:http2 -p 5432:tcp").unwrap();
        assert_eq!((after.routes.len(), after.routes[0].port), (1, 81));
        let error = built(None, "app -n web -p 80 --route /api:81").unwrap_err();
        assert_eq!(
            error.to_string(),
            "route /api leads to port 81, which is not declared"
        );
        assert_eq!(error.hint().unwrap(), "add `--port 81`");
    }

    #[test]
    fn bounds_follow_each_other() {
        let bounds = |line: &str| {
            built(None, &format!("app -n web {line}"))
                .map(|definition| (definition.scalings[0].min, definition.scalings[0].max))
        };
        assert_eq!(bounds("--min 3").unwrap(), (3, 3));
        assert_eq!(bounds("--min 0").unwrap(), (0, 1));
        assert_eq!(bounds("--min 1 --max 4 --scale-on cpu=70").unwrap(), (1, 4));
        assert!(bounds("--min 5 --max 4").is_err());
        assert!(bounds("--min 1 --sleep-after 5m").is_err());
        assert!(bounds("--min 1 --light-sleep-after 5m").is_err());
    }

    #[test]
    fn each_kind_of_sleep_keeps_what_was_said_of_the_other() {
        let delay = |definition: &DeploymentDefinition| {
            let delay = definition.scalings[0].targets[0]
                .sleep_idle_delay
                .clone()
                .unwrap();
            (delay.light_sleep_value, delay.deep_sleep_value)
        };
        let light = built(None, "app -n web --light-sleep-after 30s").unwrap();
        assert_eq!((light.scalings[0].min, delay(&light)), (0, (30, 0)));
        let both = built(Some(light), "app -n web --sleep-after 1h").unwrap();
        assert_eq!(delay(&both), (30, 3600));
        assert_eq!(both.scalings[0].targets.len(), 1);
    }

    #[test]
    fn what_may_be_reached_is_changed_when_it_is_said() {
        let listed = built(None, "nginx --name a --egress pypi.org --egress 10.0.0.0/8").unwrap();
        let policy = |definition: &DeploymentDefinition| {
            let egress = definition.network_policy.clone().unwrap().egress.unwrap();
            let list: Vec<String> = egress.allow_list.into_iter().map(|rule| rule.cidr).collect();
            (egress.mode, list)
        };
        let kept = built(Some(listed), "nginx --name a").unwrap();
        let names = vec!["pypi.org".to_owned(), "10.0.0.0/8".to_owned()];
        assert_eq!(policy(&kept), (EgressPolicyMode::DenyAll, names));
        let shut = built(Some(kept), "nginx --name a --egress none").unwrap();
        assert_eq!(policy(&shut), (EgressPolicyMode::DenyAll, Vec::new()));
        let open = built(Some(shut), "nginx --name a --egress all").unwrap();
        assert_eq!(policy(&open), (EgressPolicyMode::Default, Vec::new()));
        assert!(built(None, "nginx --name a --egress none --egress pypi.org").is_err());
        assert_eq!(built(None, "nginx --name a").unwrap().network_policy, None);
    }

    #[test]
    fn a_proxied_port_is_declared_by_itself() {
        let definition = built(None, "redis -n cache --proxy-port 6379 -p 6379:tcp").unwrap();
        assert_eq!((definition.ports.len(), definition.proxy_ports.len()), (1, 1));
        assert!(definition.routes.is_empty());
        assert_eq!(
            built(None, "redis -n cache --proxy-port 6379").unwrap(),
            definition
        );
    }
}
