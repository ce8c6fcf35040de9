//! Host files as containerd documents them.

use super::*;

fn write(directory: &Path, registry: &str, file: &str, text: &str) {
    std::fs::create_dir_all(directory.join(registry)).unwrap();
    std::fs::write(directory.join(registry).join(file), text).unwrap();
}

fn bases(config: &RegistryConfig, registry: &str) -> Vec<String> {
    config
        .endpoints(registry)
        .unwrap()
        .iter()
        .map(|endpoint| endpoint.base.to_string())
        .collect()
}

#[test]
fn without_files_the_registry_is_its_own_address() {
    let config = RegistryConfig::default().allow_plain_http("registry.lan");
    assert_eq!(bases(&config, "docker.io"), ["https://registry-1.docker.io/v2"]);
    assert_eq!(bases(&config, "ghcr.io"), ["https://ghcr.io/v2"]);
    assert_eq!(bases(&config, "registry.lan"), ["http://registry.lan/v2"]);
    for loopback in [
        "localhost:5000",
        "127.0.0.1:5000",
        "127.1.2.3",
        "[::1]:5000",
        "registry.localhost",
    ] {
        assert_eq!(bases(&config, loopback), [format!("http://{loopback}/v2")]);
    }
    assert_eq!(bases(&config, "localhost:443"), ["https://localhost/v2"]);
    assert_eq!(
        bases(&config, "127.0.0.1.example.com"),
        ["https://127.0.0.1.example.com/v2"]
    );
}

#[test]
fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
    let directory = tempfile::tempdir().unwrap();
    write(
        directory.path(),
        "docker.io",
        "hosts.toml",
        r#"
server = "https://hub.example"
ca = "server.pem"
[host."https://zebra.example"]
  capabilities = ["pull"]
  skip_verify = true
[host."http://aardvark.example:8080/proxy"]
  capabilities = ["pull", "resolve"]
  ca = ["/a.pem", "b.pem"]
  [host."http://aardvark.example:8080/proxy".header]
    x-one = "1"
    x-two = ["a", "b"]
[host."https://other.example/v2/mirror"]
  override_path = true
"#,
    );
    write(
        directory.path(),
        "docker.io",
        "credentials.toml",
        "[host.\"aardvark.example:8080\"]\nusername = \"u\"\npassword = \"p\"\n[host.\"docker.io\"]\ntoken = \"t\"\n",
    );
    let endpoints = RegistryConfig::from_directory(directory.path())
        .endpoints("docker.io")
        .unwrap();
    let bases: Vec<_> = endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect();
    assert_eq!(
        bases,
        [
            "https://zebra.example/v2",
            "http://aardvark.example:8080/proxy/v2",
            "https://other.example/v2/mirror",
            "https://hub.example/v2"
        ]
    );
    assert!(endpoints[0].skip_verify && endpoints[0].pull && !endpoints[0].resolve);
    assert_eq!(
        endpoints[1].authorities,
        [PathBuf::from("/a.pem"), directory.path().join("docker.io/b.pem")]
    );
    assert_eq!(endpoints[1].headers.get_all("x-two").iter().count(), 2);
    assert_eq!(endpoints[1].credentials, Some(Credentials::basic("u", "p")));
    assert!(endpoints[3].is_server && endpoints[3].resolve);
    assert_eq!(
        endpoints[3].authorities,
        [directory.path().join("docker.io/server.pem")]
    );
    assert_eq!(
        endpoints[3].credentials,
        Some(Credentials::Bearer { token: "t".into() })
    );
}

#[test]
fn the_default_directory_serves_registries_without_one() {
    let directory = tempfile::tempdir().unwrap();
    write(
        directory.path(),
        "_default",
        "hosts.toml",
        "[host.\"https://mirror.example\"]\n",
    );
    write(
        directory.path(),
        "registry.lan_5000_",
        "hosts.toml",
        "server = \"http://registry.lan:5000\"\n",
    );
    let config = RegistryConfig::from_directory(directory.path());
    assert_eq!(
        bases(&config, "quay.io"),
        ["https://mirror.example/v2", "https://quay.io/v2"]
    );
    assert_eq!(
        bases(&config, "registry.lan:5000"),
        ["http://registry.lan:5000/v2"]
    );
}

#[test]
fn mistakes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    write(
        directory.path(),
        "a.example",
        "hosts.toml",
        "[host.\"https://m.example\"]\nskip_verfy = true\n",
    );
    write(
        directory.path(),
        "b.example",
        "hosts.toml",
        "[host.\"ftp://m.example\"]\n",
    );
    write(directory.path(), "c.example", "hosts.toml", "server = \n");
    let config = RegistryConfig::from_directory(directory.path());
    let refused = |registry: &str| config.endpoints(registry).expect_err(registry).to_string();
    assert!(
        refused("a.example").contains("skip_verfy"),
        "{}",
        refused("a.example")
    );
    assert!(refused("b.example").contains("ftp://m.example"));
    assert!(refused("c.example").contains("hosts.toml"));
}

#[test]
fn client_certificates_and_time_outs_as_containerd_writes_them() {
    let directory = tempfile::tempdir().unwrap();
    let read = |lines: &str| {
        write(directory.path(), "c.example", "hosts.toml", lines);
        RegistryConfig::from_directory(directory.path())
            .endpoints("c.example")
            .map(|mut endpoints| endpoints.remove(0))
            .map_err(|error| error.to_string())
    };
    let place = directory.path().join("c.example");
    let pair = |certificate: &str, key: Option<&str>| {
        Some(ClientCertificate {
            certificate: place.join(certificate),
            key: key.map(|key| place.join(key)),
        })
    };
    for (client, expected) in [
        ("\"one.pem\"", pair("one.pem", None)),
        ("[\"one.pem\"]", pair("one.pem", None)),
        ("[[\"one.cert\", \"one.key\"]]", pair("one.cert", Some("one.key"))),
        ("[[\"one.pem\", \"\"]]", pair("one.pem", None)),
        ("[]", None),
    ] {
        let own = read(&format!("client = {client}\n")).unwrap();
        assert_eq!(own.client, expected, "{client}");
        let mirror = read(&format!("[host.\"https://m.example\"]\nclient = {client}\n")).unwrap();
        assert_eq!((mirror.client, mirror.is_server), (expected, false), "{client}");
    }
    let several = read("client = [\"one.pem\", \"two.pem\"]\n").unwrap_err();
    assert!(several.contains("several client certificates"), "{several}");

    let dial = |text: &str| read(&format!("dial_timeout = \"{text}\"\n")).map(|host| host.dial_timeout);
    assert_eq!(dial("3s").unwrap(), Some(Duration::from_secs(3)));
    assert_eq!(dial("1m30.5s").unwrap(), Some(Duration::from_millis(90_500)));
    assert_eq!(dial("200ms").unwrap(), Some(Duration::from_millis(200)));
    for bad in ["", "0s", "5", "-1s", "5 s", "s", "1e999h"] {
        let error = dial(bad).unwrap_err();
        assert!(error.contains("dial_timeout"), "{bad}: {error}");
    }
}
