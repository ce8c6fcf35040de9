//! Why a deployment has as many instances as it has, for `GET /v1/deployment/{id}/scaling`.
//!
//! What the load decided is told by whoever decides ([`ScalingSource`]). Where the load has no say, the reason is in
//! the store: a number set by hand, sleep, or the definition.

use std::fmt::Debug;

use tram_store::record;
use tram_types::{
    DeploymentId, ServiceId, Timestamp,
    catalog::Catalog,
    definition::{DeploymentDefinition, scoped_to},
    status::DeploymentStatus,
};

use crate::wire::deployment::DeploymentScalingDecision;

/// Knows what the load decided.
pub trait ScalingSource: Send + Sync + Debug {
    /// The decisions for a deployment, one a region in which its load has a say.
    fn decisions(&self, service: ServiceId, deployment: DeploymentId) -> Vec<ScalingDecision>;
}

/// What the load decided for one region.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingDecision {
    /// Which region.
    pub region: String,
    /// How many instances there should be.
    pub wanted: u32,
    /// How many are healthy.
    pub ready: u32,
    /// Fewest.
    pub min: u32,
    /// Most.
    pub max: u32,
    /// Why, for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
    /// What decided, as the definition calls its target; empty: nothing measured did.
    pub signal: &'static str,
    /// What it was seen to be for one instance, in the target's unit.
    pub observed: f64,
    /// The target.
    pub target: u32,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// The last change of the number, for people; empty: there was none.
    pub last_change: String,
    /// When that was.
    pub changed_at: Option<Timestamp>,
}

/// Nobody decides on load: every number comes from the store.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoScaling;

impl ScalingSource for NoScaling {
    fn decisions(&self, _service: ServiceId, _deployment: DeploymentId) -> Vec<ScalingDecision> {
        Vec::new()
    }
}

/// As the wire has it.
pub(crate) fn told(decision: ScalingDecision) -> DeploymentScalingDecision {
    DeploymentScalingDecision {
        region: decision.region,
        wanted: i64::from(decision.wanted),
        ready: i64::from(decision.ready),
        min: i64::from(decision.min),
        max: i64::from(decision.max),
        reason: decision.reason.to_owned(),
        message: decision.message,
        signal: decision.signal.to_owned(),
        observed: decision.observed,
        target: i64::from(decision.target),
        decided_at: Some(decision.decided_at),
        last_change: decision.last_change,
        changed_at: decision.changed_at,
    }
}

/// The decision for a region in which the load has no say; `None`: the deployment does not run.
pub(crate) fn without_load(
    service: &record::Service,
    deployment: &record::Deployment,
    definition: &DeploymentDefinition,
    catalog: &Catalog,
    region: &str,
    ready: i64,
) -> Option<DeploymentScalingDecision> {
    let status = deployment.status;
    if !status.is_serving() && !status.is_starting_up() {
        return None;
    }
    // Scopes may name the region as the definition does, such as `na`, or as it was resolved.
    let is_here = |written: &String| catalog.region(written).is_some_and(|it| it.id == region);
    let written = definition.regions.iter().find(|written| is_here(written));
    let written = written.map_or(region, String::as_str);
    let scale = definition.effective_scale(written);
    let manual = service
        .manual_scaling
        .iter()
        .find(|scaling| scoped_to(&scaling.scopes, written) || scoped_to(&scaling.scopes, region))
        .map(|scaling| scaling.instances);
    let asleep = status == DeploymentStatus::Sleeping;
    let (wanted, reason, words) = match manual {
        _ if asleep => (0, "asleep", "asleep".to_owned()),
        Some(manual) => (manual, "manual", format!("stays at {manual}: set by hand")),
        None => {
            let wanted = scale.min.max(1);
            let words = format!("stays at {wanted}: fixed by the definition");
            (wanted, "fixed", words)
        }
    };
    Some(DeploymentScalingDecision {
        region: region.to_owned(),
        wanted: i64::from(wanted),
        ready,
        min: i64::from(scale.min),
        max: i64::from(scale.max),
        reason: reason.to_owned(),
        message: words,
        ..DeploymentScalingDecision::default()
    })
}
