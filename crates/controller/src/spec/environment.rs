//! The environment of an instance: what the platform sets (digest, section 6.8), what the user sets, expanded.

use std::collections::BTreeMap;

use tram_store::record;
use tram_types::{
    catalog::InstanceType,
    interpolate::{self, UnknownName},
    status::DefinitionType,
};

use super::{Problem, Secrets, Subject, in_scope};

/// What the platform is called where upstream names the hypervisor.
const HYPERVISOR: &str = "tramontane";

pub(super) fn build(
    subject: &Subject<'_>,
    instance: &record::Instance,
    kind: &InstanceType,
    organization_name: &str,
    public_domain: &str,
    secrets: &Secrets,
) -> Result<BTreeMap<String, String>, Problem> {
    let system = system(subject, instance, kind, organization_name, public_domain);
    let mut env = system.clone();
    let in_region = |entry: &&tram_types::definition::DeploymentEnv| {
        in_scope(subject.catalog, &entry.scopes, &instance.region)
    };
    let own: BTreeMap<&str, &str> = subject
        .definition
        .env
        .iter()
        .filter(in_region)
        .map(|entry| (entry.key.as_str(), entry.value.as_deref().unwrap_or("")))
        .collect();
    // A variable in a template stands for the other's text as it was written: an expansion is not expanded again.
    let variable = |name: &str| {
        system
            .get(name)
            .cloned()
            .or_else(|| own.get(name).map(|value| (*value).to_owned()))
    };
    for entry in subject.definition.env.iter().filter(in_region) {
        let value = match entry.secret.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => secrets
                .shown(name)
                .ok_or_else(|| UnknownName::Secret(name.to_owned()))?,
            None => interpolate::expand(
                entry.value.as_deref().unwrap_or(""),
                |name| secrets.shown(name),
                // A variable that is itself a template is expanded once, with secrets alone: no cycles.
                |name| variable(name).map(|text| expand_once(&text, secrets, &system)),
            )?,
        };
        env.insert(entry.key.clone(), value);
    }
    Ok(env)
}

/// Expands what can be expanded without looking at other variables of the user; leaves the rest as it is.
fn expand_once(text: &str, secrets: &Secrets, system: &BTreeMap<String, String>) -> String {
    interpolate::expand(text, |name| secrets.shown(name), |name| system.get(name).cloned())
        .unwrap_or_else(|_| text.to_owned())
}

fn system(
    subject: &Subject<'_>,
    instance: &record::Instance,
    kind: &InstanceType,
    organization_name: &str,
    public_domain: &str,
) -> BTreeMap<String, String> {
    let (app, service, definition) = (subject.app, subject.service, subject.definition);
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        env.insert(name.to_owned(), value);
    };
    // The ports of a sandbox are its executor's; a server inside must not take them for its own.
    let main_port = definition
        .main_port()
        .filter(|_| definition.r#type != DefinitionType::Sandbox);
    if let Some(port) = main_port {
        set("PORT", port.to_string());
    }
    for port in definition.effective_ports() {
        set(
            &format!("KOYEB_PORT_{}_PROTOCOL", port.port),
            port.protocol.as_str().to_owned(),
        );
    }
    set("HOSTNAME", instance.id.short());
    set("KOYEB_APP_NAME", app.name.clone());
    set("KOYEB_APP_ID", app.id.to_string());
    set("KOYEB_SERVICE_NAME", service.name.clone());
    set("KOYEB_SERVICE_ID", service.id.to_string());
    set(
        "KOYEB_SERVICE_PRIVATE_DOMAIN",
        format!("{}.{}.internal", service.name, app.name),
    );
    set("KOYEB_ORGANIZATION_NAME", organization_name.to_owned());
    set("KOYEB_ORGANIZATION_ID", service.organization_id.to_string());
    set("KOYEB_PUBLIC_DOMAIN", public_domain.to_owned());
    set("KOYEB_REGION", instance.region.clone());
    set("KOYEB_DC", instance.datacenter.clone());
    set(
        "KOYEB_REGIONAL_DEPLOYMENT_ID",
        instance.regional_deployment_id.to_string(),
    );
    set("KOYEB_INSTANCE_ID", instance.id.to_string());
    set("KOYEB_INSTANCE_TYPE", instance.instance_type.clone());
    set("KOYEB_INSTANCE_MEMORY_MB", kind.memory_mib().to_string());
    set("KOYEB_REPLICA_INDEX", instance.replica_index.to_string());
    set("KOYEB_HYPERVISOR_ID", HYPERVISOR.to_owned());
    let docker = definition.docker.as_ref();
    set(
        "KOYEB_PRIVILEGED",
        docker.is_some_and(|docker| docker.privileged).to_string(),
    );
    if let Some(docker) = docker {
        set("KOYEB_DOCKER_REF", docker.image.clone());
    }
    env
}
