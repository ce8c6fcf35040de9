//! What the tests of this crate share.

use std::collections::BTreeMap;

use tram_site::spec::Limits;
use tram_site::{ImageSpec, InstanceSpec};
use tram_types::units::MIB;
use tram_types::{AppId, DeploymentId, InstanceId, OrganizationId, RegionalDeploymentId, ServiceId};

/// An instance without ports of a service.
pub(crate) fn instance_spec(app: &str, service: &str) -> InstanceSpec {
    let deployment_id = DeploymentId::random();
    InstanceSpec {
        id: InstanceId::random(),
        organization_id: OrganizationId::random(),
        app_id: AppId::random(),
        app_name: app.to_owned(),
        service_id: ServiceId::random(),
        service_name: service.to_owned(),
        deployment_id,
        regional_deployment_id: RegionalDeploymentId::random(),
        replica_index: 0,
        image: ImageSpec {
            reference: "test".to_owned(),
            credentials: None,
            model: None,
            adapters: Vec::new(),
            draft: None,
            keeps: false,
            deployment: deployment_id,
        },
        entrypoint: Vec::new(),
        command: String::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        files: Vec::new(),
        ports: Vec::new(),
        health_checks: Vec::new(),
        isolation: Default::default(),
        devices: None,
        volumes: Vec::new(),
        limits: Limits {
            cpu_millis: 500,
            memory_bytes: 64 * MIB,
            disk_bytes: 1024 * MIB,
        },
        mesh: true,
        egress_allow: None,
        bound_secrets: Vec::new(),
        untrusted: false,
        snapshot: None,
        executor: None,
    }
}
