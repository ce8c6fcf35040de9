//! The tree of arguments, and what goes to the composition root.

use std::{ffi::OsString, path::PathBuf};

use clap::CommandFactory as _;
use tram_cli::{AdminAction, Arguments, ImagesAction, Outcome, ServerCommand, Settings, TrustAction};

use crate::tram::Tram;

fn handed_on(line: &str) -> ServerCommand {
    let ran = Tram::new().run(line);
    match ran.outcome {
        Outcome::Server { command, .. } => *command,
        Outcome::Exit(code) => panic!("{line} ended with {code}: {}", ran.err),
    }
}

#[test]
fn the_tree_holds_together() {
    Arguments::command().debug_assert();
}

#[test]
fn up_resolves_its_settings() {
    let expected = Settings {
        data_dir: PathBuf::from("/tmp/x"),
        http_port: 8080,
        https_port: 8443,
        http_listen: vec!["0.0.0.0".parse().unwrap()],
        base_domain: "apps.example.org".to_owned(),
        ..Settings::default()
    };
    assert_eq!(
        handed_on(
            "up --data-dir /tmp/x --http-port 8080 --https-port 8443 --http-listen 0.0.0.0 --base-domain apps.example.org"
        ),
        ServerCommand::Up(expected)
    );
}

#[test]
fn the_rest_of_the_servers_commands_are_handed_on() {
    let settings = Settings {
        data_dir: PathBuf::from("/tmp/x"),
        ..Settings::default()
    };
    assert_eq!(
        handed_on("doctor"),
        ServerCommand::Doctor {
            settings: Settings::default(),
            unread: None
        }
    );
    for (line, action) in [
        ("admin new-token --data-dir /tmp/x", AdminAction::NewToken),
        ("admin --data-dir /tmp/x rotate-keys", AdminAction::RotateKeys),
        (
            "admin backup /tmp/copy.db --data-dir /tmp/x",
            AdminAction::Backup {
                file: PathBuf::from("/tmp/copy.db"),
            },
        ),
    ] {
        let settings = settings.clone();
        assert_eq!(handed_on(line), ServerCommand::Admin { settings, action });
    }
    for (line, action) in [
        ("trust --data-dir /tmp/x", TrustAction::Add),
        ("trust --remove --data-dir /tmp/x", TrustAction::Remove),
        ("trust --print --data-dir /tmp/x", TrustAction::Print),
    ] {
        let settings = settings.clone();
        assert_eq!(handed_on(line), ServerCommand::Trust { settings, action });
    }
    assert_eq!(Tram::new().run("trust --print --remove").code, Some(2));
    assert_eq!(
        handed_on("images import a.tar --name shop:1 --data-dir /tmp/x"),
        ServerCommand::Images {
            settings: settings.clone(),
            action: ImagesAction::Import {
                archive: PathBuf::from("a.tar"),
                name: Some("shop:1".to_owned())
            }
        }
    );
    for line in ["images --data-dir /tmp/x ls", "images list --data-dir /tmp/x"] {
        assert_eq!(
            handed_on(line),
            ServerCommand::Images {
                settings: settings.clone(),
                action: ImagesAction::Ls
            }
        );
    }
    assert_eq!(
        handed_on("supervise --socket /run/x -v"),
        ServerCommand::Supervise(["--socket", "/run/x", "-v"].map(OsString::from).to_vec())
    );
    assert_eq!(handed_on("edge"), ServerCommand::Edge(Vec::new()));
}

#[test]
fn bad_settings_are_refused_with_a_hint() {
    Tram::new().run("up --http-port eighty").expect(
        2,
        "",
        "error: --http-port: `eighty` is not a port from 1 to 65535\n",
    );
    Tram::new().with("TRAM_BASE_DOMIAN", "x").run("up").expect(
        2,
        "",
        "error: environment: there is no setting `TRAM_BASE_DOMIAN`\nhint: did you mean `TRAM_BASE_DOMAIN`?\n",
    );
}

#[test]
fn a_file_of_settings_that_is_no_toml_shows_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tram.toml");
    std::fs::write(&file, "http_port = = 80\n").unwrap();
    let ran = Tram::new().run(&format!("up --config {}", file.display()));
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    let expected = format!(
        "error: {} is not valid TOML\n  because: TOML parse error at line 1, ",
        file.display()
    );
    assert!(ran.err.starts_with(&expected), "{}", ran.err);
    assert!(ran.err.contains("http_port = = 80"), "{}", ran.err);
}

#[test]
fn help_is_data_and_refusals_are_talk() {
    let help = Tram::new().run("deploy --help");
    assert_eq!((help.code, help.err.as_str()), (Some(0), ""));
    assert!(
        help.out.starts_with("Deploy an image and print its URL\n"),
        "{}",
        help.out
    );
    let unknown = Tram::new().run("secretz");
    assert_eq!((unknown.code, unknown.out.as_str()), (Some(2), ""));
    assert!(
        unknown
            .err
            .contains("similar subcommands exist: 'services', 'secrets'"),
        "{}",
        unknown.err
    );
    let scale = Tram::new().run("scale web");
    assert_eq!(scale.code, Some(2));
    assert!(
        scale.err.contains("<N|--min <N>|--max <N>|--auto>"),
        "{}",
        scale.err
    );
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = Tram::new().run(&format!("completion {shell}"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert!(ran.out.contains("redeploy"), "{shell}");
    }
}

#[test]
fn the_version_is_told() {
    let version = env!("CARGO_PKG_VERSION");
    Tram::new()
        .run("version")
        .expect(0, &format!("tram:  {version}\n"), "");
    Tram::new()
        .run("version -o json")
        .expect(0, &format!("{{\n  \"version\": \"{version}\"\n}}\n"), "");
}
