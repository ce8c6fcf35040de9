//! The members of enumerations, by their name in the document, as they are on the wire.
//!
//! The schemas that are derived for them carry the names of the Rust variants, since the derive does not see a
//! rename that comes out of a macro. This table puts the wire's strings in their place; a test holds it complete.

use std::collections::BTreeMap;

use serde_json::Value;
use tram_types::status;
use utoipa::{
    ToSchema as _,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use crate::wire::{account, helper, organization};

macro_rules! members {
    ($($module:ident::{$($name:ident),+ $(,)?})+) => {
        /// The strings of every enumeration.
        pub(super) fn members() -> BTreeMap<String, Vec<&'static str>> {
            BTreeMap::from([$($((
                $module::$name::name().into_owned(),
                $module::$name::ALL.iter().map(|member| member.as_str()).collect(),
            ),)+)+])
        }
    };
}

members! {
    status::{
        AppStatus, ServiceStatus, DeploymentStatus, RegionalDeploymentStatus, InstanceStatus, DomainStatus,
        DomainType, DeploymentRole, RegionalDeploymentRole, DefinitionType, RegionalDefinitionType, ServiceType,
        DeploymentStrategyType, DeploymentMesh, RegionalDeploymentMesh, MeshScope, EgressPolicyMode,
        ProxyPortProtocol, SecretType, CredentialType, StageStatus, TriggerType, ActorType, GitProvider,
        MetricName, AvailabilityLevel,
    }
    account::{UserFlags, LoginMethodReplyMethod}
    helper::{VerifyDockerImageReplyErrCode}
    organization::{
        Plan, OrganizationStatus, OrganizationDetailedStatus, OrganizationDeactivationReason,
        OrganizationMemberStatus, UserRoleRole,
    }
}

/// The schema of an enumeration with these strings.
pub(super) fn schema(strings: &[&'static str]) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(strings.iter().map(|text| Value::from(*text))))
        .into()
}
