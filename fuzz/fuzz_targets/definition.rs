//! A deployment's definition, as a client sends it: reading, judging and completing it must not panic, and what was
//! read must survive being written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tram_types::{catalog::Catalog, definition::DeploymentDefinition, status::SecretType, validate};

fuzz_target!(|data: &[u8]| {
    let Ok(definition) = serde_json::from_slice::<DeploymentDefinition>(data) else {
        return;
    };
    let written = serde_json::to_vec(&definition).expect("plain data can be written");
    let again: DeploymentDefinition = serde_json::from_slice(&written).expect("what we wrote can be read");
    assert_eq!(
        serde_json::to_vec(&again).expect("plain data can be written"),
        written,
        "writing and reading changed it"
    );

    let catalog = Catalog::local("here", "here", 4000, 8 << 30);
    let context = validate::Context {
        catalog: &catalog,
        secret_type: &|name| SecretType::ALL.get(name.len() % 4).copied(),
        volume: &|_| None,
        model: &|_| None,
        is_system_variable: &validate::is_system_variable,
    };
    let violations = validate::definition(&definition, context);
    assert!(violations.len() <= validate::VIOLATIONS_MAX);
    for violation in &violations {
        assert!(violation.field.starts_with("definition"), "{}", violation.field);
        assert!(!violation.description.is_empty());
    }
    let ports = definition.effective_ports();
    let _routes = definition.effective_routes();
    let _checks = definition.effective_health_checks();
    let _strategy = definition.effective_strategy();
    let scale = definition.effective_scale("here");
    if violations.is_empty() {
        assert!(scale.min <= scale.max, "{scale:?} of a definition that is sound");
        assert_eq!(definition.main_port(), ports.iter().map(|port| port.port).min());
    }
});
