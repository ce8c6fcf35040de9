use std::path::PathBuf;

use super::*;
use tram_types::catalog::unlimited;

/// Devices `0` and `1`, each by a second name, and `all` of them.
fn devices() -> Devices {
    let directory = tempfile::tempdir().unwrap();
    let node = |number: u32| format!(r#"{{"path":"/dev/acme{number}"}}"#);
    let device = |name: &str, nodes: &[String]| {
        format!(
            r#"{{"name":"{name}","containerEdits":{{"deviceNodes":[{}]}}}}"#,
            nodes.join(",")
        )
    };
    let text = [
        device("0", &[node(0)]),
        device("1", &[node(1)]),
        device("GPU-a", &[node(0)]),
        device("GPU-b", &[node(1)]),
        device("all", &[node(0), node(1)]),
    ]
    .join(",");
    std::fs::write(
        directory.path().join("acme.json"),
        format!(r#"{{"cdiVersion":"0.6.0","kind":"acme.com/gpu","devices":[{text}]}}"#),
    )
    .unwrap();
    let devices = Devices::read(&[PathBuf::from(directory.path())]);
    assert_eq!(devices.problems, []);
    devices
}

fn declared(id: &str) -> GpuType {
    GpuType {
        id: id.to_owned(),
        kind: "acme.com/gpu".to_owned(),
        size: Some("nano".to_owned()),
        ..GpuType::default()
    }
}

#[test]
fn a_type_is_made_of_what_there_is() {
    let (catalog, devices) = (unlimited(), devices());
    let kind = of(&declared("2-gpu-nvidia-l4"), &catalog, &devices).unwrap();
    let gpu = kind.gpu.clone().unwrap();
    assert_eq!(gpu.devices, ["acme.com/gpu=0", "acme.com/gpu=1"]);
    assert_eq!(
        (gpu.count, gpu.brand.as_str(), gpu.name.as_str()),
        (2, "NVIDIA", "L4")
    );
    assert_eq!(kind.display_name, "2 × L4");
    let nano = catalog.instance_type("nano").unwrap();
    assert_eq!(
        (kind.cpu_millis, kind.memory_bytes, kind.disk_bytes),
        (nano.cpu_millis, nano.memory_bytes, nano.disk_bytes)
    );
    let own = of(&declared("mine"), &catalog, &devices).unwrap();
    let gpu = own.gpu.unwrap();
    assert_eq!((gpu.brand.as_str(), gpu.name.as_str()), ("ACME", "mine"));
    assert_eq!(gpu.memory_bytes, None);
}

#[test]
fn what_cannot_be_had_is_not_offered() {
    let (catalog, devices) = (unlimited(), devices());
    let why = |declared: GpuType| of(&declared, &catalog, &devices).unwrap_err();
    let mut many = declared("mine");
    many.count = Some(3);
    assert!(why(many).contains("it needs 3 devices, and specifications tell of 2"));
    let mut named = declared("mine");
    named.devices = vec!["7".to_owned()];
    assert!(why(named).contains("no specification tells of the device `acme.com/gpu=7`"));
    let mut other = declared("mine");
    other.kind = "nvidia.com/gpu".to_owned();
    assert!(why(other).contains("nvidia-ctk cdi generate"));
    let small = Catalog::local("fra", "Frankfurt", 250, 256 * MIB);
    let mut large = declared("mine");
    large.size = Some("5xlarge".to_owned());
    assert!(
        of(&large, &small, &devices)
            .unwrap_err()
            .contains("size `5xlarge` does not fit")
    );
}
