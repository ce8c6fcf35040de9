//! How a service is reached, by whom, and what it may reach.

use std::collections::BTreeSet;

use super::Check;
use crate::{
    definition::SecurityPolicies,
    effective::PortProtocol,
    egress::Destination,
    interpolate::{Piece, pieces},
    status::{DefinitionType, MeshScope},
};

/// Longest password or key of a route, in bytes: with its name and the rest it must fit into the head of a request,
/// which the edge takes up to 64 KiB.
pub(super) const CREDENTIAL_MAX_BYTES: usize = 32 * 1024;

impl Check<'_> {
    pub(super) fn network(&mut self) {
        let definition = self.definition;
        let mut seen = BTreeSet::new();
        if self.bounded("ports", definition.ports.len()) {
            for (index, port) in definition.ports.iter().enumerate() {
                if !(1..=65_535).contains(&port.port) {
                    self.wrong(format!("ports.{index}.port"), "must be between 1 and 65535");
                } else if !seen.insert(port.port) {
                    self.wrong(
                        format!("ports.{index}.port"),
                        format!("port {} is declared twice", port.port),
                    );
                }
                if PortProtocol::parse(&port.protocol).is_none() {
                    self.wrong(
                        format!("ports.{index}.protocol"),
                        format!("`{}` is not one of http, http2, tcp", port.protocol),
                    );
                }
            }
            self.routes();
            self.proxy_ports(&seen);
        }
        self.network_policy();
    }

    fn proxy_ports(&mut self, declared: &BTreeSet<i64>) {
        let definition = self.definition;
        if !self.bounded("proxy_ports", definition.proxy_ports.len()) {
            return;
        }
        for (index, proxy) in definition.proxy_ports.iter().enumerate() {
            if !declared.contains(&proxy.port) {
                self.wrong(
                    format!("proxy_ports.{index}.port"),
                    format!("port {} is not one of the definition's ports", proxy.port),
                );
            }
        }
    }

    fn routes(&mut self) {
        let definition = self.definition;
        if definition.r#type == DefinitionType::Worker && !definition.routes.is_empty() {
            self.wrong(
                "routes",
                "a worker has no routes: use type WEB to receive requests",
            );
        }
        if !self.bounded("routes", definition.routes.len()) {
            return;
        }
        let ports = definition.effective_ports();
        let mut paths = BTreeSet::new();
        for (index, route) in definition.routes.iter().enumerate() {
            let declared = ports.iter().find(|port| i64::from(port.port) == route.port);
            match declared {
                None => self.wrong(
                    format!("routes.{index}.port"),
                    format!("port {} is not one of the definition's ports", route.port),
                ),
                Some(port) if port.protocol == PortProtocol::Tcp => self.wrong(
                    format!("routes.{index}.port"),
                    format!("port {} speaks tcp: a route needs http or http2", route.port),
                ),
                Some(_) => {}
            }
            if !route.path.starts_with('/') && !route.path.is_empty() {
                self.wrong(format!("routes.{index}.path"), "must start with `/`");
            }
            if !paths.insert(route.path.trim_end_matches('/')) {
                self.wrong(
                    format!("routes.{index}.path"),
                    format!("path `{}` is declared twice", route.path),
                );
            }
            if let Some(policies) = &route.security_policies {
                self.security(&format!("routes.{index}.security_policies"), policies);
            }
        }
    }

    fn security(&mut self, field: &str, policies: &SecurityPolicies) {
        if self.bounded(&format!("{field}.basic_auths"), policies.basic_auths.len()) {
            for (index, basic) in policies.basic_auths.iter().enumerate() {
                if basic.username.is_empty() || basic.username.contains(':') {
                    self.wrong(
                        format!("{field}.basic_auths.{index}.username"),
                        "must not be empty or contain `:`",
                    );
                }
                self.credential(&format!("{field}.basic_auths.{index}.password"), &basic.password);
            }
        }
        if self.bounded(&format!("{field}.api_keys"), policies.api_keys.len()) {
            for (index, key) in policies.api_keys.iter().enumerate() {
                self.credential(&format!("{field}.api_keys.{index}"), key);
            }
        }
    }

    /// What a caller of a route must know. Variables belong to instances, of which the edge that asks for it knows
    /// none: it can look up secrets alone.
    fn credential(&mut self, field: &str, template: &str) {
        if template.len() > CREDENTIAL_MAX_BYTES {
            self.wrong(
                field,
                format!(
                    "may have at most {CREDENTIAL_MAX_BYTES} bytes: a longer one does not fit into a request"
                ),
            );
            return;
        }
        for piece in pieces(template) {
            if self.is_full() {
                return;
            }
            match piece {
                Piece::Text(_) => {}
                Piece::Secret(name) if (self.context.is_bound)(name) => self.wrong(
                    field,
                    format!(
                        "secret `{name}` is bound to hosts, and goes into requests to them alone: name another one"
                    ),
                ),
                Piece::Secret(name) => self.simple_secret(field, name),
                Piece::Variable(name) => self.wrong(
                    field,
                    format!(
                        "`{name}` is a variable, and only secrets can be used here: put the value into a secret \
                         and write `{{{{ secret.NAME }}}}`"
                    ),
                ),
            }
        }
    }

    fn network_policy(&mut self) {
        let Some(policy) = &self.definition.network_policy else {
            return;
        };
        if let Some(egress) = &policy.egress
            && self.bounded("network_policy.egress.allow_list", egress.allow_list.len())
        {
            for (index, rule) in egress.allow_list.iter().enumerate() {
                if Destination::parse(&rule.cidr).is_none() {
                    self.wrong(
                        format!("network_policy.egress.allow_list.{index}.cidr"),
                        format!(
                            "`{}` is no address, no network and no name: write it like `192.0.2.7`, `10.0.0.0/8`, \
                             `pypi.org` or `*.example.org`",
                            rule.cidr
                        ),
                    );
                }
            }
        }
        if let Some(mesh) = &policy.mesh {
            if !matches!(mesh.scope, MeshScope::Unspecified | MeshScope::Organization) {
                self.wrong(
                    "network_policy.mesh.scope",
                    format!(
                        "{} is not available on this installation, where all services of an organization in the \
                         private network reach each other: use {}, and `mesh` DEPLOYMENT_MESH_DISABLED for a \
                         service that others must not reach",
                        mesh.scope,
                        MeshScope::Organization,
                    ),
                );
            } else if !mesh.name.is_empty() {
                self.wrong(
                    "network_policy.mesh.name",
                    format!("goes with scope {} only: leave it out", MeshScope::Custom),
                );
            }
        }
    }
}
