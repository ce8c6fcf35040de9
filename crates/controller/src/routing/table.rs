//! One service as the data plane sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;
use tram_planner::Takeover;
use tram_store::{
    RoutedService, Store,
    record::{Desired, Instance},
};
use tram_types::{
    AppId, DeploymentId, InstanceId, ServiceId, Timestamp,
    definition::DeploymentDefinition,
    effective::PortProtocol,
    engine::Engine,
    routing::{Endpoint, Protocol, Route, RoutingKey, Service, State, TcpPort},
    status::{DeploymentStatus, InstanceStatus},
};

use super::security::{self, Hasher};
use crate::{error::Error, spec::takeover};

/// Of the requests of a service, how many hundredths a canary takes: enough to see what it does with them, few enough
/// to be forgiven.
const CANARY_PERCENT: u32 = 10;

/// What a service adds to the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) id: ServiceId,
    pub(super) app_id: AppId,
    pub(super) created_at: Timestamp,
    /// `None`: it is on its way out and not served.
    pub(super) service: Option<Service>,
    pub(super) routes: Vec<Route>,
    pub(super) routing_key: Option<RoutingKey>,
    pub(super) tcp_ports: Vec<TcpPort>,
    /// Since when it sleeps: every sleep is another entry.
    pub(super) sleeping_since: Option<Timestamp>,
}

impl Entry {
    /// Whether some route asks who comes.
    pub(super) fn is_guarded(&self) -> bool {
        self.routes.iter().any(|route| !route.security.is_open())
    }

    pub(super) fn endpoints(&self) -> BTreeSet<InstanceId> {
        let endpoints = self.service.iter().flat_map(|service| &service.endpoints);
        endpoints
            .map(|endpoint| InstanceId::from_uuid(endpoint.instance_id))
            .collect()
    }
}

/// The part of a deployment's metadata that routing needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    sandbox: Option<Sandbox>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sandbox {
    routing_key: String,
}

/// What a service adds to the table.
pub(super) async fn entry(service: &RoutedService, hasher: &Hasher, store: &Store) -> Result<Entry, Error> {
    let mut entry = Entry {
        id: service.id,
        app_id: service.app_id,
        created_at: service.created_at,
        service: None,
        routes: Vec::new(),
        routing_key: None,
        tcp_ports: Vec::new(),
        sleeping_since: service.sleeping_since,
    };
    if service.desired == Desired::Delete {
        return Ok(entry);
    }
    let name = format!("{}/{}", service.app_name, service.name);
    let mut routed = Service::new(service.id.uuid(), name, state(service));
    let Some(deployment) = &service.deployment else {
        entry.service = Some(routed);
        return Ok(entry);
    };
    let definition: DeploymentDefinition =
        Deserialize::deserialize(&deployment.definition).map_err(|source| Error::Definition {
            deployment: deployment.id,
            source,
        })?;
    routed.endpoints = endpoints(service, &definition)?;
    routed.engine = definition
        .model
        .as_ref()
        .map(|model| match model.engine.as_str() {
            "" => Engine::Tram.facts().name.to_owned(),
            other => other.to_owned(),
        });
    let secrets = security::secrets(service, &definition, store).await?;
    let policy = |path: &str| {
        let route = definition
            .routes
            .iter()
            .find(|route| route.path == path || (route.path.is_empty() && path == "/"));
        route.and_then(|route| route.security_policies.as_ref())
    };
    entry.routes = definition
        .effective_routes()
        .into_iter()
        .map(|route| Route {
            security: security::security(service, policy(&route.path), &secrets, hasher),
            prefix: route.path,
            service_id: service.id.uuid(),
            port: route.port,
            protocol: match route.protocol {
                PortProtocol::Http2 => Protocol::Http2,
                PortProtocol::Http | PortProtocol::Tcp => Protocol::Http,
            },
        })
        .collect();
    let metadata = Metadata::deserialize(&deployment.metadata).unwrap_or_default();
    entry.routing_key = metadata
        .sandbox
        .filter(|sandbox| !sandbox.routing_key.is_empty())
        .map(|sandbox| RoutingKey {
            key: sandbox.routing_key,
            routes: entry.routes.clone(),
        });
    entry.tcp_ports = service
        .proxy_ports
        .iter()
        .map(|port| TcpPort {
            public_port: port.public_port,
            service_id: service.id.uuid(),
            port: port.port,
        })
        .collect();
    entry.service = Some(routed);
    Ok(entry)
}

/// What is served for a service whose own data cannot be read: what is known of it, for as long as that leads to
/// instances that are there; else its name and the words that something is wrong. Nothing can be reached by it that
/// could not before.
pub(super) fn unreadable(service: &RoutedService, known: Option<&Entry>) -> Entry {
    let runs = |entry: &&Entry| {
        let endpoints = entry.endpoints();
        service.desired == Desired::Run
            && !endpoints.is_empty()
            && endpoints.iter().all(|id| {
                let healthy = |it: &Instance| it.id == *id && it.status == InstanceStatus::Healthy;
                service.instances.iter().any(healthy)
            })
    };
    if let Some(known) = known.filter(runs) {
        return known.clone();
    }
    let state = match (&service.deployment, service.desired) {
        (_, Desired::Pause) => State::Paused,
        (None, _) => State::Deploying,
        (Some(deployment), _) => State::Failed {
            message: UNREADABLE.to_owned(),
            deployment_id: deployment.id.uuid(),
        },
    };
    let name = format!("{}/{}", service.app_name, service.name);
    Entry {
        id: service.id,
        app_id: service.app_id,
        created_at: service.created_at,
        service: Some(Service::new(service.id.uuid(), name, state)),
        routes: known.map(|known| known.routes.clone()).unwrap_or_default(),
        routing_key: known.and_then(|known| known.routing_key.clone()),
        tcp_ports: known.map(|known| known.tcp_ports.clone()).unwrap_or_default(),
        sleeping_since: service.sleeping_since,
    }
}

/// For whoever calls a service whose own data cannot be read. What exactly is wrong is for the operator, in the log.
const UNREADABLE: &str = "the service's definition or one of its secrets cannot be read: write the secret anew or \
                          deploy the service again; the log of the control plane tells which";

/// Whether an instance takes requests: a healthy one, and of a deployment that sleeps one that was kept for light
/// sleep. The latter's gate is closed, and opens without a new table.
fn serves(deployment: DeploymentStatus, instance: InstanceStatus) -> bool {
    instance == InstanceStatus::Healthy
        || (deployment == DeploymentStatus::Sleeping && instance == InstanceStatus::Sleeping)
}

/// The instances that take requests: those of the active deployment, or of the first one while there is none, and of newer
/// ones that share them already. Besides
/// the one that comes up these are ones that gave up half way and stand in until the active one is whole again.
fn endpoints(service: &RoutedService, definition: &DeploymentDefinition) -> Result<Vec<Endpoint>, Error> {
    let Some(deployment) = &service.deployment else {
        return Ok(Vec::new());
    };
    if !deployment.is_active {
        // Its first one, on its way up: shown HEALTHY only once requests are sent to it.
        return Ok(match deployment.status {
            DeploymentStatus::Allocating | DeploymentStatus::Starting => {
                serving(service, deployment.id, deployment.status, definition)
            }
            _ => Vec::new(),
        });
    }
    let mut stable = serving(service, deployment.id, deployment.status, definition);
    if deployment.status == DeploymentStatus::Sleeping || stable.is_empty() {
        return Ok(stable);
    }
    let mut canaries = Vec::new();
    for upcoming in &service.upcoming {
        let its: DeploymentDefinition =
            Deserialize::deserialize(&upcoming.definition).map_err(|source| Error::Definition {
                deployment: upcoming.id,
                source,
            })?;
        let shared = match takeover(&its, Some(definition)) {
            Takeover::Rolling => &mut stable,
            Takeover::Canary => &mut canaries,
            Takeover::BlueGreen | Takeover::Immediate | Takeover::StopFirst => continue,
        };
        shared.extend(serving(service, upcoming.id, DeploymentStatus::Starting, &its));
    }
    if !canaries.is_empty() {
        let count = |endpoints: &[Endpoint]| u32::try_from(endpoints.len()).unwrap_or(1);
        let (old_ones, new_ones) = (count(&stable), count(&canaries));
        for endpoint in &mut stable {
            endpoint.weight = new_ones * (100 - CANARY_PERCENT);
        }
        for endpoint in &mut canaries {
            endpoint.weight = old_ones * CANARY_PERCENT;
            endpoint.canary = true;
        }
    }
    stable.extend(canaries);
    Ok(stable)
}

/// The instances of a deployment that take requests.
fn serving(
    service: &RoutedService,
    deployment: DeploymentId,
    status: DeploymentStatus,
    definition: &DeploymentDefinition,
) -> Vec<Endpoint> {
    let ports = definition.effective_ports();
    service
        .instances
        .iter()
        .filter(|instance| instance.deployment_id == deployment && serves(status, instance.status))
        .filter_map(|instance| {
            let address: IpAddr = instance.address.parse().ok()?;
            let addresses: BTreeMap<u16, SocketAddr> = ports
                .iter()
                .map(|port| (port.port, SocketAddr::new(address, port.port)))
                .collect();
            Some(Endpoint {
                instance_id: instance.id.uuid(),
                addresses,
                weight: 1,
                canary: false,
                deployment_id: Some(deployment.uuid()),
            })
        })
        .collect()
}

fn state(service: &RoutedService) -> State {
    use DeploymentStatus as D;
    if service.desired == Desired::Pause {
        return State::Paused;
    }
    let Some(deployment) = &service.deployment else {
        return State::Deploying;
    };
    let failed = |otherwise: &str| State::Failed {
        message: if deployment.messages.is_empty() {
            otherwise.to_owned()
        } else {
            deployment.messages.join("; ")
        },
        deployment_id: deployment.id.uuid(),
    };
    let own = |instance: &&Instance| instance.deployment_id == deployment.id;
    let own = || service.instances.iter().filter(own);
    // Frozen ones are the shorter way, whatever else is on its way up.
    let kept = own().any(|instance| serves(deployment.status, instance.status));
    // The first instance of this deployment that is on its way up.
    let waking = own().find(|instance| {
        !kept
            && matches!(
                instance.status,
                InstanceStatus::Allocating | InstanceStatus::Starting
            )
    });
    match deployment.status {
        D::Healthy | D::Degraded => State::Ready,
        D::Sleeping => waking.map_or(State::Sleeping, |instance| State::Starting {
            since: instance.created_at.jiff(),
        }),
        D::Unhealthy => failed("no instance is healthy"),
        D::Erroring | D::Error => failed("the deployment failed"),
        // The first one is waited for no longer once somebody answers; the table then is as it will be.
        D::Allocating | D::Starting if kept => State::Ready,
        D::Pending | D::Provisioning | D::Scheduled | D::Allocating | D::Starting => State::Deploying,
        // The one that served is gone or on its way out, and a newer one has not come up yet.
        D::Stopping | D::Stopped | D::Canceling | D::Canceled | D::Stashed => match service.status {
            tram_types::status::ServiceStatus::Starting | tram_types::status::ServiceStatus::Resuming => {
                State::Deploying
            }
            _ => failed("no deployment of the service is running"),
        },
    }
}
