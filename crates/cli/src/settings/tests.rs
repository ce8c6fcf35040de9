//! Precedence, refusals and defaults of settings.

use std::{collections::BTreeMap, fs, path::Path};

use super::*;

struct Case {
    folder: tempfile::TempDir,
    flags: Flags,
    variables: BTreeMap<String, String>,
}

impl Case {
    fn new(file: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tram.toml"), file).unwrap();
        Self {
            folder,
            flags: Flags::default(),
            variables: BTreeMap::new(),
        }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn resolve(&self) -> Result<Settings, Error> {
        Settings::resolve_from(
            &self.flags,
            &self.variables,
            &self.folder.path().join("tram.toml"),
        )
    }

    fn refusal(&self) -> (String, Option<String>) {
        let error = self.resolve().unwrap_err();
        let text = error
            .to_string()
            .replace(&self.folder.path().display().to_string(), "FOLDER");
        (text, error.hint())
    }
}

#[test]
fn nothing_given_is_the_default() {
    let none = Settings::resolve_from(&Flags::default(), &BTreeMap::new(), Path::new("/does/not/exist"));
    assert_eq!(none.unwrap(), Settings::default());
    assert_eq!(Case::new("").resolve().unwrap(), Settings::default());
}

#[test]
fn the_default_api_is_where_clients_look() {
    assert_eq!(
        format!("http://{}", Settings::default().api_listen),
        crate::context::DEFAULT_URL
    );
}

#[test]
fn arguments_go_before_variables_before_the_file() {
    let file = "http_port = 1\nhttps_port = 2\nregion = \"file\"\nhttp_listen = [\"0.0.0.0\", \"::\"]\n";
    let mut case = Case::new(file)
        .variable("TRAM_HTTPS_PORT", "20")
        .variable("TRAM_REGION", "variable");
    case.flags.region = Some("flag".to_owned());
    let settings = case.resolve().unwrap();
    assert_eq!(
        settings,
        Settings {
            http_port: 1,
            https_port: 20,
            region: "flag".to_owned(),
            http_listen: vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()],
            ..Settings::default()
        }
    );
}

#[test]
fn a_named_file_must_be_there() {
    let mut case = Case::new("");
    case.flags.config = Some(case.folder.path().join("other.toml"));
    assert_eq!(case.refusal().0, "cannot read the settings in FOLDER/other.toml");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    assert_eq!(
        Case::new("http_prot = 80\n").refusal(),
        (
            "FOLDER/tram.toml: there is no setting `http_prot`".to_owned(),
            Some("did you mean `http_port`?".to_owned())
        )
    );
    assert_eq!(
        Case::new("data-dir = \"/x\"\n").refusal().1,
        Some("did you mean `data_dir`?".to_owned())
    );
    assert_eq!(
        Case::new("[kubernetes]\n").refusal(),
        (
            "FOLDER/tram.toml: there is no setting `kubernetes`".to_owned(),
            Some("`tram up --help` lists the settings".to_owned())
        )
    );
    assert_eq!(
        Case::new("").variable("TRAM_HTTP_PROT", "80").refusal(),
        (
            "environment: there is no setting `TRAM_HTTP_PROT`".to_owned(),
            Some("did you mean `TRAM_HTTP_PORT`?".to_owned())
        )
    );
    let client = Case::new("")
        .variable("TRAM_URL", "http://x")
        .variable("TRAM_TEST_SEED", "1");
    assert!(client.resolve().is_ok());
}

#[test]
fn values_that_make_no_sense_name_their_place() {
    for (file, expected) in [
        (
            "http_port = 70000",
            "FOLDER/tram.toml: http_port: `70000` is not a port from 1 to 65535",
        ),
        (
            "https_port = 0",
            "FOLDER/tram.toml: https_port: `0` is not a port from 1 to 65535",
        ),
        (
            "name_servers = [\"dns.example.org\"]",
            "FOLDER/tram.toml: name_servers: `dns.example.org` is not the address of a name server, such as 9.9.9.9 or \
             [2620:fe::fe]:53",
        ),
        (
            "denied_networks = [\"10.0.0.0/33\"]",
            "FOLDER/tram.toml: denied_networks: `10.0.0.0/33` is not a block of addresses, such as 192.168.0.0/16 \
             or 2001:db8::/32",
        ),
        (
            "denied_networks = [\"2001:db8::/129\"]",
            "FOLDER/tram.toml: denied_networks: `2001:db8::/129` is not a block of addresses, such as 192.168.0.0/16 \
             or 2001:db8::/32",
        ),
        (
            "network_v6 = \"yes\"",
            "FOLDER/tram.toml: network_v6: `yes` is neither `off`, `auto` nor `on`",
        ),
        (
            "image_aliases = [\"koyeb/sandbox\"]",
            "FOLDER/tram.toml: image_aliases: `koyeb/sandbox=` is not a name and its target, such as \
             koyeb/sandbox=registry.example.org/sandbox",
        ),
        (
            "http_port = \"80\"",
            "FOLDER/tram.toml: http_port: must be a number, is a string",
        ),
        (
            "region = 3",
            "FOLDER/tram.toml: region: must be a string, is a integer",
        ),
        (
            "http_listen = []",
            "FOLDER/tram.toml: http_listen: must name at least one address",
        ),
        (
            "log_format = \"xml\"",
            "FOLDER/tram.toml: log_format: `xml` is neither `text` nor `json`",
        ),
        (
            "proxy_ports = \"9-3\"",
            "FOLDER/tram.toml: proxy_ports: `9-3` is not a range of ports, such as 30000-30999",
        ),
    ] {
        assert_eq!(Case::new(file).refusal().0, expected);
    }
    for (file, expected) in [
        (
            "organization = \"Acme\"",
            "organization: `Acme` may only contain lower-case letters, digits and dashes",
        ),
        (
            "base_domain = \"a..b\"",
            "base_domain: part `` must have 1 to 63 characters, has 0",
        ),
        ("http_port = 443", "https_port: 443 is the port for HTTP already"),
    ] {
        assert_eq!(Case::new(file).refusal().0, expected);
    }
    let mut case = Case::new("");
    case.flags.api_listen = Some("localhost".to_owned());
    assert_eq!(
        case.refusal().0,
        "--api-listen: `localhost` is not an address with a port, such as 127.0.0.1:7080 or [::1]:7080"
    );
    assert_eq!(
        Case::new("").variable("TRAM_HTTP_PORT", "").refusal().0,
        "TRAM_HTTP_PORT: `` is not a port from 1 to 65535"
    );
}

#[test]
fn paths_begin_where_they_were_written() {
    let mut case = Case::new("data_dir = \"state\"\ncertificates_dir = \"./certificates\"\n")
        .variable("TRAM_REGISTRIES_DIR", "registries");
    let settings = case.resolve().unwrap();
    assert_eq!(settings.data_dir, case.folder.path().join("state"));
    assert_eq!(settings.certificates_dir, case.folder.path().join("certificates"));
    let here = std::env::current_dir().unwrap();
    assert_eq!(settings.registries_dir, here.join("registries"));
    case.flags.data_dir = Some("other".to_owned());
    assert_eq!(case.resolve().unwrap().data_dir, here.join("other"));
}

#[test]
fn lists_are_read_from_the_file_and_from_words() {
    let file = "name_servers = [\"9.9.9.9\", \"[2620:fe::fe]:5353\"]\n\
                denied_networks = [\"192.168.0.0/16\", \"10.1.2.3\", \"2001:db8::/32\", \"2001:db8::1\"]\n\
                [image_aliases]\n\"koyeb/sandbox\" = \"registry.example.org/sandbox\"\n";
    let settings = Case::new(file).resolve().unwrap();
    let servers = ["9.9.9.9:53", "[2620:fe::fe]:5353"].map(|text| text.parse().unwrap());
    assert_eq!(settings.name_servers, Servers(servers.to_vec()));
    let blocks: Vec<String> = settings
        .denied_networks
        .0
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        blocks,
        [
            "192.168.0.0/16",
            "10.1.2.3/32",
            "2001:db8::/32",
            "2001:db8::1/128"
        ]
    );
    let words = Case::new("").variable(
        "TRAM_IMAGE_ALIASES",
        "koyeb/sandbox=registry.example.org/sandbox, nginx=registry.example.org/nginx:1",
    );
    let aliases = words.resolve().unwrap().image_aliases.0;
    assert_eq!(
        settings.image_aliases.0.get("koyeb/sandbox"),
        aliases.get("koyeb/sandbox")
    );
    assert_eq!(aliases.get("nginx").unwrap(), "registry.example.org/nginx:1");
}

#[test]
fn a_file_that_may_not_be_read_is_told_of_and_the_rest_holds() {
    let case = Case::new("").variable("TRAM_HTTP_PORT", "8080");
    let denied = |_: &Path| Err(std::io::ErrorKind::PermissionDenied.into());
    let (settings, unread) = Settings::resolve_what_reads(&case.flags, &case.variables, &denied).unwrap();
    assert_eq!(settings.http_port, 8080);
    let unread = unread.unwrap();
    assert_eq!(
        unread.to_string(),
        "cannot read the settings in /etc/tram/tram.toml"
    );
    assert_eq!(
        unread.hint().unwrap(),
        "run it with sudo, or name a file of yours with `--config`"
    );
}

#[test]
fn origins_are_what_browsers_send() {
    let case = Case::new("allowed_origins = [\"https://panel.example.org\", \"http://[::1]:3000\"]\n");
    let expected = vec![
        "https://panel.example.org".to_owned(),
        "http://[::1]:3000".to_owned(),
    ];
    assert_eq!(case.resolve().unwrap().allowed_origins, Origins(expected));
    let case = Case::new("").variable("TRAM_ALLOWED_ORIGINS", "http://localhost:5173, https://a.b");
    let expected = vec!["http://localhost:5173".to_owned(), "https://a.b".to_owned()];
    assert_eq!(case.resolve().unwrap().allowed_origins, Origins(expected));
    for bad in [
        "*",
        "https://*.example.org",
        "panel.example.org",
        "ftp://panel.example.org",
        "https://panel.example.org/",
        "https://Panel.example.org",
        "https://panel.example.org:443",
        "http://panel.example.org:80",
        "https://panel.example.org:0",
        "https://panel.example.org:",
        "https://user@panel.example.org",
        "https://",
        "null",
    ] {
        let (refusal, _) = Case::new(&format!("allowed_origins = [{bad:?}]\n")).refusal();
        assert!(
            refusal.starts_with(&format!(
                "FOLDER/tram.toml: allowed_origins: `{bad}` is not an origin"
            )),
            "{refusal}"
        );
    }
}

#[test]
fn every_default_reads_back_as_itself() {
    let file: String = KEYS
        .iter()
        .map(|key| format!("{} = {}\n", key.name, (key.default)()))
        .collect();
    assert_eq!(Case::new(&file).resolve().unwrap(), Settings::default());
}
