//! One broken rule at a time, and definitions that are as large as they come.

use super::*;
use crate::catalog::unlimited;

fn violations(json: &str) -> Vec<String> {
    let given: DeploymentDefinition = serde_json::from_str(json).unwrap();
    let catalog = unlimited();
    let context = Context {
        catalog: &catalog,
        is_bound: &|name| name == "bound",
        secret_type: &|name| match name {
            "known" | "bound" => Some(SecretType::Simple),
            "hub" => Some(SecretType::Registry),
            _ => None,
        },
        volume: &|_| None,
        model: &|source| {
            (source.source == "here").then(|| KnownModel {
                is_adapter: false,
                adapters: source.adapters.iter().map(|_| KnownAdapter::Fits).collect(),
                draft: match source.draft.as_str() {
                    "gone" => KnownDraft::Missing,
                    "tone" => KnownDraft::Adapter,
                    "vectors" => KnownDraft::Embedding,
                    _ => KnownDraft::Fits,
                },
                needed_bytes: 600 * crate::units::MIB
                    + source.context_length.unsigned_abs() * crate::units::MIB,
                context_length: 8192,
            })
        },
        is_system_variable: &is_system_variable,
    };
    definition(&given, context)
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

const GOOD: &str = r#""type":"WEB","regions":["fra"],"docker":{"image":"nginx"}"#;

#[test]
fn the_least_definition_is_good() {
    assert_eq!(violations(&format!("{{{GOOD}}}")), Vec::<String>::new());
}

#[test]
fn each_violated_rule_names_its_field() {
    for (members, field) in [
        (r#""env":[{"key":"1"}]"#, "definition.env.0.key"),
        (
            r#""env":[{"key":"A","value":"{{ secret.no }}"}]"#,
            "definition.env.0.value",
        ),
        (
            r#""env":[{"key":"A","value":"{{ B }}"}]"#,
            "definition.env.0.value",
        ),
        (r#""env":[{"key":"A"},{"key":"A"}]"#, "definition.env.1.key"),
        (
            r#""ports":[{"port":0,"protocol":"http"}]"#,
            "definition.ports.0.port",
        ),
        (
            r#""ports":[{"port":80,"protocol":"udp"}]"#,
            "definition.ports.0.protocol",
        ),
        (r#""routes":[{"port":99,"path":"/"}]"#, "definition.routes.0.port"),
        (
            r#""ports":[{"port":80}],"routes":[{"port":80,"path":"x"}]"#,
            "definition.routes.0.path",
        ),
        (r#""scalings":[{"min":3,"max":1}]"#, "definition.scalings.0.max"),
        (r#""scalings":[{"min":-1,"max":1}]"#, "definition.scalings.0.min"),
        (
            r#""scalings":[{"min":1,"max":3}]"#,
            "definition.scalings.0.targets",
        ),
        (
            r#""scalings":[{"min":1,"max":3,"targets":[{"average_cpu":{"value":5}},{"average_cpu":{"value":6}}]}]"#,
            "definition.scalings.0.targets.1.average_cpu",
        ),
        (
            r#""scalings":[{"min":1,"max":3,"targets":[{"concurrent_requests":{"value":0}}]}]"#,
            "definition.scalings.0.targets.0.concurrent_requests.value",
        ),
        (
            r#""scalings":[{"min":1,"max":3,"targets":[{"average_mem":{"value":101}}]}]"#,
            "definition.scalings.0.targets.0.average_mem.value",
        ),
        (
            r#""scalings":[{"min":1,"max":3,"targets":[{"requests_response_time":{"value":0}}]}]"#,
            "definition.scalings.0.targets.0.requests_response_time.value",
        ),
        (
            r#""scalings":[{"min":1,"max":3,"targets":[{"requests_response_time":{"value":9,"quantile":101}}]}]"#,
            "definition.scalings.0.targets.0.requests_response_time.quantile",
        ),
        (
            r#""scalings":[{"min":0,"max":1,"targets":[{"sleep_idle_delay":{"deep_sleep_value":-1}}]}]"#,
            "definition.scalings.0.targets.0.sleep_idle_delay.deep_sleep_value",
        ),
        (
            r#""scalings":[{"min":0,"max":1,"targets":[{"sleep_idle_delay":{"deep_sleep_value":60,"light_sleep_value":61}}]}]"#,
            "definition.scalings.0.targets.0.sleep_idle_delay.light_sleep_value",
        ),
        (
            r#""instance_types":[{"type":"enormous"}]"#,
            "definition.instance_types.0.type",
        ),
        (
            r#""config_files":[{"path":"etc/x"}]"#,
            "definition.config_files.0.path",
        ),
        (
            r#""config_files":[{"path":"/x","permissions":"777"}]"#,
            "definition.config_files.0.permissions",
        ),
        (
            r#""health_checks":[{"tcp":{"port":99}}]"#,
            "definition.health_checks.0.tcp.port",
        ),
        (r#""health_checks":[{}]"#, "definition.health_checks.0"),
        (
            r#""health_checks":[{"http":{"port":8000,"method":"GET /"}}]"#,
            "definition.health_checks.0.http.method",
        ),
        (
            r#""health_checks":[{"http":{"port":8000,"headers":[{"key":"A:"}]}}]"#,
            "definition.health_checks.0.http.headers.0.key",
        ),
        (
            r#""health_checks":[{"http":{"port":8000,"headers":[{"key":"A","value":"1\r\nB: 2"}]}}]"#,
            "definition.health_checks.0.http.headers.0.value",
        ),
        (
            r#""env":[{"key":"A","value":"{{ secret.hub }}"}]"#,
            "definition.env.0.value",
        ),
        (r#""env":[{"key":"A","secret":"hub"}]"#, "definition.env.0.secret"),
        (
            r#""config_files":[{"path":"/a","content":"{{ secret.hub }}"}]"#,
            "definition.config_files.0.content",
        ),
        (
            r#""env":[{"key":"A"}],"routes":[{"port":8000,"path":"/",
                "security_policies":{"basic_auths":[{"username":"u","password":"{{ A }}"}]}}]"#,
            "definition.routes.0.security_policies.basic_auths.0.password",
        ),
        (
            r#""routes":[{"port":8000,"path":"/","security_policies":{"api_keys":["{{ PORT }}"]}}]"#,
            "definition.routes.0.security_policies.api_keys.0",
        ),
        (
            r#""routes":[{"port":8000,"path":"/","security_policies":{"api_keys":["{{ secret.bound }}"]}}]"#,
            "definition.routes.0.security_policies.api_keys.0",
        ),
        (
            r#""routes":[{"port":8000,"path":"/","security_policies":{"api_keys":["{{ secret.hub }}"]}}]"#,
            "definition.routes.0.security_policies.api_keys.0",
        ),
        (
            r#""network_policy":{"mesh":{"scope":"MESH_SCOPE_APP"}}"#,
            "definition.network_policy.mesh.scope",
        ),
        (
            r#""network_policy":{"mesh":{"scope":"MESH_SCOPE_CUSTOM","name":"a"}}"#,
            "definition.network_policy.mesh.scope",
        ),
        (
            r#""network_policy":{"mesh":{"scope":"MESH_SCOPE_ORGANIZATION","name":"a"}}"#,
            "definition.network_policy.mesh.name",
        ),
    ] {
        assert_eq!(violations(&format!("{{{GOOD},{members}}}")), [field], "{members}");
    }
}

#[test]
fn all_violations_come_at_once() {
    let found = violations(r#"{"type":"WEB"}"#);
    assert_eq!(found, ["definition.docker", "definition.regions"]);
}

#[test]
fn a_known_secret_and_system_variables_are_fine() {
    let found = violations(&format!(
        r#"{{{GOOD},"env":[{{"key":"A","value":"{{{{ secret.known }}}} {{{{ KOYEB_APP_NAME }}}} {{{{PORT}}}}"}}]}}"#
    ));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_entry_of_a_region_wins() {
    let given: DeploymentDefinition = serde_json::from_str(
        r#"{"env":[{"key":"A","value":"all"},{"key":"A","value":"fra","scopes":["region:fra"]}]}"#,
    )
    .unwrap();
    assert_eq!(scoped_env(&given, "fra")[0].value.as_deref(), Some("fra"));
    assert_eq!(scoped_env(&given, "was")[0].value.as_deref(), Some("all"));
}

#[test]
fn a_registry_is_logged_in_to_with_a_registry_secret() {
    let with = |secret: &str| {
        violations(&format!(
            r#"{{"type":"WEB","regions":["fra"],"docker":{{"image":"nginx","image_registry_secret":"{secret}"}}}}"#
        ))
    };
    assert_eq!(with("hub"), Vec::<String>::new());
    for wrong in ["known", "nothing"] {
        assert_eq!(
            with(wrong),
            ["definition.docker.image_registry_secret"],
            "{wrong}"
        );
    }
}

#[test]
fn what_may_be_reached_is_addresses_networks_and_names() {
    let with = |cidr: &str| {
        violations(&format!(
            r#"{{{GOOD},"network_policy":{{"mesh":{{}},"egress":{{"mode":"EGRESS_POLICY_MODE_DENY_ALL",
                "allow_list":[{{"cidr":"{cidr}"}}]}}}}}}"#
        ))
    };
    for good in [
        "10.0.0.0/8",
        "192.0.2.7",
        "0.0.0.0/0",
        "2001:db8::/32",
        "2001:db8::1",
        "example.org",
        "*.example.org",
    ] {
        assert_eq!(with(good), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "",
        "example",
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.0/",
        "2001:db8::/129",
        "fe80::1%eth0",
    ] {
        assert_eq!(
            with(bad),
            ["definition.network_policy.egress.allow_list.0.cidr"],
            "{bad}"
        );
    }
}

#[test]
fn a_worker_scales_on_what_it_has() {
    for (target, wrong) in [
        (r#""average_cpu":{"value":50}"#, None),
        (
            r#""requests_per_second":{"value":50}"#,
            Some("requests_per_second"),
        ),
        (
            r#""concurrent_requests":{"value":50}"#,
            Some("concurrent_requests"),
        ),
        (
            r#""requests_response_time":{"value":50}"#,
            Some("requests_response_time"),
        ),
    ] {
        let found = violations(&format!(
            r#"{{"type":"WORKER","regions":["fra"],"docker":{{"image":"i"}},
                "scalings":[{{"min":1,"max":2,"targets":[{{{target}}}]}}]}}"#
        ));
        let field = wrong.map(|name| format!("definition.scalings.0.targets.0.{name}"));
        assert_eq!(found, field.into_iter().collect::<Vec<_>>(), "{target}");
    }
}

/// A list that is one too long, in place of `LIST` in some members.
fn too_long(members: &str, entry: &str) -> String {
    let entries = vec![entry; LIST_MAX + 1].join(",");
    members.replace("LIST", &format!("[{entries}]"))
}

#[test]
fn lists_that_are_too_long_are_refused_and_not_cut() {
    for (members, entry, field) in [
        (r#""instance_types":LIST"#, "{}", "instance_types"),
        (
            r#""instance_types":[{"scopes":LIST}]"#,
            r#""region:fra""#,
            "instance_types.0.scopes",
        ),
        (
            r#""scalings":[{"scopes":LIST}]"#,
            r#""region:fra""#,
            "scalings.0.scopes",
        ),
        (
            r#""scalings":[{"min":1,"max":1,"targets":LIST}]"#,
            r#"{"average_cpu":{"value":50}}"#,
            "scalings.0.targets",
        ),
        (r#""proxy_ports":LIST"#, r#"{"port":1}"#, "proxy_ports"),
        (r#""ports":LIST"#, r#"{"port":1}"#, "ports"),
        (
            r#""routes":[{"port":8000,"path":"/","security_policies":{"basic_auths":LIST}}]"#,
            r#"{"username":"u"}"#,
            "routes.0.security_policies.basic_auths",
        ),
        (
            r#""routes":[{"port":8000,"path":"/","security_policies":{"api_keys":LIST}}]"#,
            r#""k""#,
            "routes.0.security_policies.api_keys",
        ),
        (
            r#""health_checks":[{"http":{"port":8000,"headers":LIST}}]"#,
            r#"{"key":"A"}"#,
            "health_checks.0.http.headers",
        ),
        (
            r#""network_policy":{"egress":{"allow_list":LIST}}"#,
            r#"{"cidr":"10.0.0.1"}"#,
            "network_policy.egress.allow_list",
        ),
    ] {
        let found = violations(&format!("{{{GOOD},{}}}", too_long(members, entry)));
        assert!(
            found.contains(&format!("definition.{field}")),
            "{members} {found:?}"
        );
        if field != "scalings.0.scopes" {
            assert_eq!(found.len(), 1, "{members} {found:?}");
        }
    }
    for list in ["args", "entrypoint"] {
        let docker = too_long(
            &format!(r#""docker":{{"image":"nginx","{list}":LIST}}"#),
            r#""a""#,
        );
        let found = violations(&format!(r#"{{"type":"WEB","regions":["fra"],{docker}}}"#));
        assert_eq!(found, [format!("definition.docker.{list}")]);
    }
}

#[test]
fn templates_that_are_too_long_are_not_read() {
    let unknown = "{{ NOTHING }}".repeat(ENV_VALUE_MAX_BYTES / 13 + 1);
    let found = violations(&format!(
        r#"{{{GOOD},"env":[{{"key":"A","value":"{unknown}"}}]}}"#
    ));
    assert_eq!(found, ["definition.env.0.value"]);
    let unknown = "{{ NOTHING }}".repeat(CONFIG_FILE_MAX_BYTES / 13 + 1);
    let found = violations(&format!(
        r#"{{{GOOD},"config_files":[{{"path":"/a","content":"{unknown}"}}]}}"#
    ));
    assert_eq!(found, ["definition.config_files.0.content"]);
    let unknown = "{{ NOTHING }}".repeat(network::CREDENTIAL_MAX_BYTES / 13 + 1);
    let found = violations(&format!(
        r#"{{{GOOD},"routes":[{{"port":8000,"path":"/","security_policies":{{"api_keys":["{unknown}"]}}}}]}}"#
    ));
    assert_eq!(found, ["definition.routes.0.security_policies.api_keys.0"]);
}

#[test]
fn no_more_is_told_than_anybody_reads() {
    let unknown = "{{ NOTHING }}".repeat(VIOLATIONS_MAX * 2);
    let found = violations(&format!(
        r#"{{{GOOD},"env":[{{"key":"A","value":"{unknown}"}}]}}"#
    ));
    assert_eq!(found.len(), VIOLATIONS_MAX);
}

#[test]
fn a_model_must_be_here_and_fit() {
    let check = |model: &str, rest: &str| {
        violations(&format!(
            r#"{{"type":"WEB","regions":["fra"],"model":{model}{rest}}}"#
        ))
    };
    let small = r#","instance_types":[{"type":"small"}]"#;
    let none: [&str; 0] = [];
    assert_eq!(check(r#"{"source":"here"}"#, small), none);
    assert_eq!(
        check(
            r#"{"source":"here","engine":"tram-engine","context_length":16,"parallel":2}"#,
            small
        ),
        none
    );
    for foreign in [
        r#"{"source":"here","engine":"llama-server","image":"x","args":["--jinja"]}"#,
        // What is in the image is not weighed.
        r#"{"source":"/models/a","engine":"vllm","image":"x"}"#,
        r#"{"source":"/models/a","engine":"openai","image":"x","served_name":"a"}"#,
    ] {
        assert_eq!(check(foreign, small), none, "{foreign}");
    }
    for (model, rest, field) in [
        (r#"{"source":"gone"}"#, small, "model.source"),
        (r#"{"source":" "}"#, small, "model.source"),
        (r#"{"source":"here","engine":"ollama"}"#, small, "model.engine"),
        (r#"{"source":"here","engine":"vllm"}"#, small, "model.image"),
        (r#"{"source":"here","image":"x"}"#, small, "model.image"),
        (
            r#"{"source":"here","engine":"llama-server","image":"x","adapters":[{"name":"tone","source":"a"}]}"#,
            small,
            "model.adapters",
        ),
        (
            r#"{"source":"here","adapters":[{"name":"a/b","source":"a"}]}"#,
            small,
            "model.adapters.0.name",
        ),
        (
            r#"{"source":"here","adapters":[{"name":"tone","source":"a"},{"name":"tone","source":"b"}]}"#,
            small,
            "model.adapters.1.name",
        ),
        (
            r#"{"source":"here","engine":"llama-server","image":"x","draft":"here"}"#,
            small,
            "model.draft",
        ),
        (r#"{"source":"here","draft":"gone"}"#, small, "model.draft"),
        (r#"{"source":"here","draft":"tone"}"#, small, "model.draft"),
        (r#"{"source":"here","draft":"vectors"}"#, small, "model.draft"),
        (r#"{"source":"/models/a"}"#, small, "model.source"),
        (
            r#"{"source":"here","engine":"vllm","image":"x","served_name":"a"}"#,
            small,
            "model.served_name",
        ),
        (
            r#"{"source":"here","engine":"openai","image":"x","image_registry_secret":"none"}"#,
            small,
            "model.image_registry_secret",
        ),
        (
            r#"{"source":"here","context_length":-1}"#,
            small,
            "model.context_length",
        ),
        (r#"{"source":"here","parallel":129}"#, small, "model.parallel"),
        (r#"{"source":"here"}"#, "", "instance_types"),
        (
            r#"{"source":"here"}"#,
            r#","instance_types":[{"type":"nano"}]"#,
            "instance_types.0.type",
        ),
        (
            r#"{"source":"here"}"#,
            r#","instance_types":[{"type":"small"}],"docker":{"image":"x"}"#,
            "docker",
        ),
    ] {
        assert_eq!(
            check(model, rest),
            [format!("definition.{field}")],
            "{model} {rest}"
        );
    }
    let far = r#","instance_types":[{"type":"5xlarge"}]"#;
    assert_eq!(
        check(r#"{"source":"here","context_length":9000}"#, far),
        ["definition.model.context_length"]
    );
    assert_eq!(
        violations(
            r#"{"type":"SANDBOX","regions":["fra"],"model":{"source":"here"},"instance_types":[{"type":"small"}]}"#
        ),
        ["definition.type"]
    );
}
