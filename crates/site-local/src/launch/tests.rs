//! The rules of what is run.

use tram_site::spec::{ExecutorAccess, ExecutorSpec, FileSpec};

use super::*;
use crate::testing::instance_spec;

fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    ImageConfig {
        entrypoint: owned(entrypoint),
        cmd: owned(cmd),
        ..ImageConfig::default()
    }
}

fn run(entrypoint: &[&str], command: &str, args: &[&str], image: &ImageConfig) -> String {
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let spec = InstanceSpec {
        entrypoint: owned(entrypoint),
        command: command.to_owned(),
        args: owned(args),
        ..instance_spec("app", "web")
    };
    match words(&spec, image) {
        Ok(words) => words.join("|"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_overridden_drops_the_images_command() {
    let nginx = image(&["/entry.sh"], &["nginx", "-g", "daemon off;"]);
    assert_eq!(run(&[], "", &[], &nginx), "/entry.sh|nginx|-g|daemon off;");
    assert_eq!(
        run(&["python3", "-c"], "print(1); print(2)", &[], &nginx),
        "python3|-c|print(1); print(2)"
    );
    assert_eq!(
        run(&[], "nginx-debug", &["-g", "x"], &nginx),
        "/entry.sh|nginx-debug|-g|x"
    );
    assert_eq!(run(&["/bin/sh"], "", &["-c", "true"], &nginx), "/bin/sh|-c|true");
    let alpine = image(&[], &["/bin/sh"]);
    assert_eq!(run(&[], "", &["-c", "true"], &alpine), "/bin/sh|-c|true");
    assert!(run(&[], "", &[], &image(&[], &[])).starts_with("there is nothing to run"));
}

#[test]
fn the_definition_wins_over_the_image_and_the_image_over_the_defaults() {
    let mut spec = instance_spec("app", "web");
    spec.env = BTreeMap::from([("MODE".to_owned(), "mine".to_owned())]);
    let image = ImageConfig {
        env: vec![
            "MODE=image".to_owned(),
            "PATH=/opt".to_owned(),
            "EMPTY=".to_owned(),
            "broken".to_owned(),
        ],
        ..ImageConfig::default()
    };
    let environment = environment(&spec, &image, Some("/home/app"));
    let expected = [
        ("EMPTY", ""),
        ("HOME", "/home/app"),
        ("HOSTNAME", &spec.id.short()),
        ("MODE", "mine"),
        ("PATH", "/opt"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(environment, BTreeMap::from(expected));
}

#[test]
fn a_file_of_the_definition_replaces_the_platforms() {
    let mut spec = instance_spec("app", "web");
    spec.files = vec![FileSpec {
        path: "/etc/hosts".to_owned(),
        content: "mine".to_owned(),
        mode: 0o600,
    }];
    let launch = launched_by_root(&spec, &Config::new("/nowhere")).unwrap();
    let content = |path: &str| {
        let found: Vec<_> = launch
            .files
            .iter()
            .filter(|file| file.path.as_os_str() == path)
            .collect();
        assert_eq!(found.len(), 1, "{path}");
        String::from_utf8(found[0].content.clone()).unwrap()
    };
    assert_eq!(content("/etc/hosts"), "mine");
    assert!(content("/etc/resolv.conf").starts_with("nameserver 10.201.0.1\n"));
    assert_eq!(
        (launch.cwd.as_str(), launch.generation, launch.stop_signal),
        ("/", 3, 15)
    );
    let without_layers = launched_from(&[], &spec, &Config::new("/"));
    assert!(without_layers.is_err());
}

#[test]
fn a_sandbox_begins_with_its_executor() {
    let config = ImageConfig {
        stop_signal: Some("SIGQUIT".to_owned()),
        ..image(&["/entry.sh"], &["/bin/sh"])
    };
    let layers = ["/layers/1".into()];
    let account = Account {
        user: User {
            uid: 1000,
            gid: 1000,
            groups: Vec::new(),
        },
        home: None,
    };
    let place = Place {
        address: "10.201.0.2".parse().unwrap(),
        gateway: "10.201.0.1".parse().unwrap(),
        namespace: "/run/x".into(),
        number: 1,
    };
    let view = ImageView {
        config: &config,
        layers: &layers,
    };
    let mut spec = InstanceSpec {
        executor: Some(ExecutorSpec {
            port: 3030,
            proxy_port: 3031,
            access: ExecutorAccess::Static,
        }),
        ..instance_spec("app", "box")
    };
    let mut here = Config::new("/nowhere");
    let refused = launch_spec(&spec, 1, view, &account, &place, &here).unwrap_err();
    assert!(matches!(refused, Error::NoExecutor), "{refused}");

    here.executor = Some("/state/executor".into());
    let executor = "/.tramontane/executor --port 3030 --proxy-port 3031 --auth static --secret-form sha256";
    let launch = launch_spec(&spec, 1, view, &account, &place, &here).unwrap();
    assert_eq!(
        launch.argv.join(" "),
        executor,
        "the image's program is not started"
    );
    let mount = &launch.binds[0];
    assert!(mount.readonly && mount.source.as_os_str() == "/state/executor");

    spec.env.insert("SANDBOX_SECRET".to_owned(), "first".to_owned());
    let launch = launch_spec(&spec, 1, view, &account, &place, &here).unwrap();
    let digest = "sha256:a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e";
    let handed = ("SANDBOX_SECRET".to_owned(), digest.to_owned());
    assert!(launch.env.contains(&handed), "{:?}", launch.env);
    spec.command = "serve".to_owned();
    let launch = launch_spec(&spec, 1, view, &account, &place, &here).unwrap();
    assert_eq!(launch.argv.join(" "), format!("{executor} -- /entry.sh serve"));
}

#[test]
fn signals_are_read_as_docker_writes_them() {
    for (text, number) in [
        ("SIGQUIT", Some(3)),
        ("term", Some(15)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
    ] {
        assert_eq!(signal_number(text), number, "{text}");
    }
    for text in ["", "SIGNOPE", "0", "99"] {
        assert_eq!(signal_number(text), None, "{text}");
    }
}

/// The specification as an image whose program runs as root gets it, in the seventh place.
fn launched_by_root(spec: &InstanceSpec, config: &Config) -> Result<LaunchSpec, Error> {
    launched_from(&["/layers/1".into()], spec, config)
}

/// The same from these layers.
fn launched_from(layers: &[PathBuf], spec: &InstanceSpec, config: &Config) -> Result<LaunchSpec, Error> {
    let place = Place {
        address: Ipv4Addr::new(10, 201, 0, 7),
        gateway: Ipv4Addr::new(10, 201, 0, 1),
        namespace: "/run/x".into(),
        number: 7,
    };
    let account = Account {
        user: User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        },
        home: None,
    };
    let view = ImageView {
        config: &image(&[], &["/bin/sh"]),
        layers,
    };
    launch_spec(spec, 3, view, &account, &place, config)
}

#[test]
fn the_class_gvisor_takes_its_program_and_no_ids() {
    let mut spec = instance_spec("app", "web");
    spec.isolation = Isolation::Gvisor;
    spec.untrusted = true;
    let launched = |gvisor: Option<&str>| {
        let mut config = Config::new("/nowhere");
        config.user_namespaces = UserNamespaces::Always;
        config.gvisor = gvisor.map(Into::into);
        launched_by_root(&spec, &config)
    };
    let launch = launched(Some("/opt/runsc")).unwrap();
    assert_eq!((launch.gvisor, launch.ids), (Some("/opt/runsc".into()), None));
    let refused = launched(None).unwrap_err().to_string();
    assert!(refused.contains("isolation class `gvisor`"), "{refused}");
}

#[test]
fn code_that_nobody_vouches_for_gets_ids_of_its_own() {
    use tram_sandbox::protocol::{Capability, IdRange};
    let launched = |untrusted: bool, user_namespaces| {
        let mut spec = instance_spec("app", "web");
        spec.untrusted = untrusted;
        let mut config = Config::new("/nowhere");
        config.user_namespaces = user_namespaces;
        launched_by_root(&spec, &config).unwrap()
    };
    for (untrusted, setting, own) in [
        (true, UserNamespaces::Never, false),
        (true, UserNamespaces::Untrusted, true),
        (false, UserNamespaces::Untrusted, false),
        (false, UserNamespaces::Always, true),
    ] {
        let launch = launched(untrusted, setting);
        assert_eq!(
            launch.ids,
            own.then(|| IdRange::numbered(7)),
            "{untrusted} {setting:?}"
        );
        assert_ne!(launch.capabilities.contains(&Capability::CAP_NET_RAW), own);
        assert!(launch.capabilities.contains(&Capability::CAP_CHOWN));
    }
}
