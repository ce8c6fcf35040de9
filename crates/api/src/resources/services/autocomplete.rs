//! Names that editors offer while a definition is written.

use crate::{
    definition::all_secrets,
    endpoint::Call,
    error::Error,
    query::Nothing,
    wire::service::{AutocompleteReply, AutocompleteRequest},
};

/// Names that may stand between `{{` and `}}` in a definition.
pub(super) async fn autocomplete(
    call: Call<Nothing, AutocompleteRequest>,
) -> Result<AutocompleteReply, Error> {
    const SYSTEM: [&str; 25] = [
        "KOYEB_APP_ID",
        "KOYEB_APP_NAME",
        "KOYEB_DC",
        "KOYEB_DOCKER_REF",
        "KOYEB_GIT_BRANCH",
        "KOYEB_GIT_COMMIT_AUTHOR",
        "KOYEB_GIT_COMMIT_MESSAGE",
        "KOYEB_GIT_REPOSITORY",
        "KOYEB_GIT_SHA",
        "KOYEB_HYPERVISOR_ID",
        "KOYEB_INSTANCE_ID",
        "KOYEB_INSTANCE_MEMORY_MB",
        "KOYEB_INSTANCE_TYPE",
        "KOYEB_ORGANIZATION_ID",
        "KOYEB_ORGANIZATION_NAME",
        "KOYEB_PRIVILEGED",
        "KOYEB_PUBLIC_DOMAIN",
        "KOYEB_REGION",
        "KOYEB_REGIONAL_DEPLOYMENT_ID",
        "KOYEB_REPLICA_INDEX",
        "KOYEB_SERVICE_ID",
        "KOYEB_SERVICE_NAME",
        "KOYEB_SERVICE_PRIVATE_DOMAIN",
        "HOSTNAME",
        "PORT",
    ];
    let definition = call.body.definition.unwrap_or_default();
    let secrets = all_secrets(&call.api, call.caller.organization).await?;
    let mut system_env: Vec<String> = SYSTEM.map(str::to_owned).to_vec();
    let ports = definition.effective_ports();
    system_env.extend(
        ports
            .iter()
            .map(|port| format!("KOYEB_PORT_{}_PROTOCOL", port.port)),
    );
    Ok(AutocompleteReply {
        secrets: secrets.into_iter().map(|secret| secret.name).collect(),
        user_env: definition.env.into_iter().map(|entry| entry.key).collect(),
        system_env,
    })
}
