//! Documents as registries send them, and documents made to confuse.

use proptest::prelude::*;

use super::*;

fn digest(seed: &str) -> Digest {
    Digest::of(seed.as_bytes())
}

fn entry(os: &str, architecture: &str, variant: Option<&str>) -> String {
    let variant = variant
        .map(|variant| format!(r#","variant":"{variant}""#))
        .unwrap_or_default();
    format!(
        r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":7,"platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}}}"#,
        digest(&format!("{os}{architecture}{variant}"))
    )
}

fn index(entries: &[String]) -> Vec<IndexEntry> {
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
        entries.join(",")
    );
    match parse_manifest(text.as_bytes(), Some(OCI_INDEX)).expect("a valid index") {
        Manifest::Index(entries) => entries,
        Manifest::Image(_) => panic!("read as an image"),
    }
}

fn image(config_type: &str, layers: usize) -> String {
    let layer = format!(
        r#"{{"mediaType":"{OCI_LAYER}","digest":"{}","size":10}}"#,
        digest("layer")
    );
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{}","size":2}},"layers":[{}]}}"#,
        digest("config"),
        vec![layer; layers].join(",")
    )
}

fn host() -> Platform {
    Platform {
        os: "linux".into(),
        architecture: "amd64".into(),
        variant: None,
    }
}

#[test]
fn the_plainest_variant_of_this_architecture_is_chosen() {
    let entries = index(&[
        entry("linux", "arm64", Some("v8")),
        entry("windows", "amd64", None),
        entry("linux", "amd64", Some("v3")),
        entry("linux", "amd64", None),
        entry("unknown", "unknown", None),
    ]);
    assert_eq!(
        choose(&entries, &host()).expect("one fits").descriptor.digest,
        entries[3].descriptor.digest
    );
}

#[test]
fn another_architecture_names_what_there_is() {
    let entries = index(&[
        entry("linux", "arm64", Some("v8")),
        entry("unknown", "unknown", None),
    ]);
    let available = choose(&entries, &host()).expect_err("none fits");
    assert_eq!(
        available.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["linux/arm64/v8"]
    );
}

#[test]
fn documents_that_could_be_two_things_are_refused() {
    let both = format!(
        r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{0}","size":1}},"layers":[]}}"#,
        digest("x")
    );
    assert!(matches!(
        parse_manifest(both.as_bytes(), None),
        Err(ManifestError::Kind(_))
    ));
    let text = image(OCI_CONFIG, 1);
    assert!(matches!(
        parse_manifest(text.as_bytes(), Some(DOCKER_INDEX)),
        Err(ManifestError::Kind(_))
    ));
    assert!(matches!(
        parse_manifest(
            text.as_bytes(),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")
        ),
        Ok(Manifest::Image(_))
    ));
    assert!(matches!(parse_manifest(b"{}", None), Err(ManifestError::Kind(_))));
    assert!(matches!(
        parse_manifest(br#"{"schemaVersion":1,"fsLayers":[]}"#, None),
        Err(ManifestError::SchemaOne)
    ));
}

#[test]
fn artifacts_and_floods_are_refused() {
    let chart = image("application/vnd.cncf.helm.config.v1+json", 1);
    let refused = parse_manifest(chart.as_bytes(), None).expect_err("a chart");
    assert!(refused.to_string().contains("helm"), "{refused}");
    assert!(matches!(
        parse_manifest(image(OCI_CONFIG, MAX_LAYERS + 1).as_bytes(), None),
        Err(ManifestError::TooManyLayers(257))
    ));
    let padding = vec![b' '; usize::try_from(MAX_MANIFEST_BYTES).unwrap() + 1];
    assert!(matches!(
        parse_manifest(&padding, None),
        Err(ManifestError::TooLarge { .. })
    ));
    let deep = "[".repeat(100_000);
    assert!(matches!(
        parse_manifest(deep.as_bytes(), None),
        Err(ManifestError::Json { .. })
    ));
}

#[test]
fn configurations_with_nulls_and_old_spellings_are_read() {
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=1"],"Entrypoint":"/bin/app","Cmd":null,
        "ExposedPorts":{{"8080/tcp":{{}},"53/udp":{{}},"80":{{}},"x/tcp":{{}}}},"Volumes":{{"/data":{{}}}},"Labels":null,
        "WorkingDir":"/srv","User":"app:app","StopSignal":"SIGQUIT"}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest("d")
    );
    let config = parse_config(text.as_bytes()).expect("a valid configuration");
    assert_eq!(config.entrypoint, ["/bin/app"]);
    assert!(config.cmd.is_empty());
    let ports: Vec<_> = config
        .exposed_ports
        .iter()
        .map(|port| (port.port, port.protocol.as_str()))
        .collect();
    assert_eq!(ports, [(53, "udp"), (80, "tcp"), (8080, "tcp")]);
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(config.diff_ids, [digest("d")]);
    assert_eq!(
        parse_config(b"{}").expect("empty is allowed"),
        ImageConfig::default()
    );
}

proptest! {
    /// No bytes make the parsers panic, and what they accept is within bounds.
    #[test]
    fn hostile_documents_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[\\[\\]{}\",:a-zA-Z0-9]{0,200}") {
        for input in [&bytes[..], text.as_bytes()] {
            if let Ok(Manifest::Image(image)) = parse_manifest(input, None) {
                prop_assert!(image.layers.len() <= MAX_LAYERS);
            }
            let _ = parse_config(input);
        }
    }
}

#[test]
fn a_working_directory_is_a_path_from_the_root() {
    let read = |path: &str| {
        let document = serde_json::json!({ "config": { "WorkingDir": path } });
        parse_config(document.to_string().as_bytes()).map(|config| config.working_dir)
    };
    assert_eq!(read("").unwrap(), "");
    assert_eq!(read("/srv").unwrap(), "/srv");
    assert_eq!(read("srv/app").unwrap(), "/srv/app");
    for bad in ["/srv\0", &"/a".repeat(4096)] {
        let refused = read(bad);
        assert!(
            matches!(refused, Err(ManifestError::WorkingDirectory(_))),
            "{refused:?}"
        );
    }
}
