//! How the health of an instance is told.

use super::{Check, LIST_MAX};
use crate::definition::HttpHealthCheck;

impl Check<'_> {
    pub(super) fn health_checks(&mut self) {
        let definition = self.definition;
        // Too many ports were told about already.
        if definition.ports.len() > LIST_MAX || !self.bounded("health_checks", definition.health_checks.len())
        {
            return;
        }
        let ports = definition.effective_ports();
        for (index, check) in definition.health_checks.iter().enumerate() {
            let at = |member: &str| format!("health_checks.{index}.{member}");
            for (name, value, most) in [
                ("grace_period", check.grace_period, 3600),
                ("interval", check.interval, 3600),
                ("restart_limit", check.restart_limit, 100),
                ("timeout", check.timeout, 600),
            ] {
                if !(0..=most).contains(&value) {
                    self.wrong(
                        at(name),
                        format!("must be between 0 and {most}; 0 means the default"),
                    );
                }
            }
            let (kind, port) = match (&check.http, &check.tcp) {
                (Some(http), None) => ("http", http.port),
                (None, Some(tcp)) => ("tcp", tcp.port),
                _ => {
                    self.wrong(
                        format!("health_checks.{index}"),
                        "must set exactly one of `http` and `tcp`",
                    );
                    continue;
                }
            };
            if !ports.iter().any(|declared| i64::from(declared.port) == port) {
                self.wrong(
                    at(&format!("{kind}.port")),
                    format!("port {port} is not one of the definition's ports"),
                );
            }
            if let Some(http) = &check.http {
                self.http_probe(&format!("health_checks.{index}.http"), http);
            }
        }
    }

    fn http_probe(&mut self, field: &str, http: &HttpHealthCheck) {
        if !http.path.is_empty() && !http.path.starts_with('/') {
            self.wrong(format!("{field}.path"), "must start with `/`");
        }
        if !http.method.is_empty() && !is_token(&http.method) {
            self.wrong(
                format!("{field}.method"),
                "must be a method of HTTP, such as `GET` or `HEAD`",
            );
        }
        if !self.bounded(&format!("{field}.headers"), http.headers.len()) {
            return;
        }
        for (index, header) in http.headers.iter().enumerate() {
            if !is_token(&header.key) {
                self.wrong(
                    format!("{field}.headers.{index}.key"),
                    "must be the name of a header: letters, digits and dashes, such as `X-Probe`",
                );
            }
            if header.value.chars().any(|c| c.is_ascii_control() && c != '\t') {
                self.wrong(
                    format!("{field}.headers.{index}.value"),
                    "must not contain line ends or other control characters",
                );
            }
        }
    }
}

/// Whether HTTP takes this as a word: the name of a method or of a header (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
