//! The reference rules, against names whose reading is settled by Docker's own tools, and as properties.

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn parse(text: &str) -> Reference {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn short_names_are_completed() {
    for (text, full, familiar) in [
        ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("nginx:1.29", "docker.io/library/nginx:1.29", "nginx:1.29"),
        (
            "koyeb/sandbox",
            "docker.io/koyeb/sandbox:latest",
            "koyeb/sandbox:latest",
        ),
        (
            "docker.io/nginx",
            "docker.io/library/nginx:latest",
            "nginx:latest",
        ),
        (
            "index.docker.io/library/nginx",
            "docker.io/library/nginx:latest",
            "nginx:latest",
        ),
        (
            "docker.io/library/team/app",
            "docker.io/library/team/app:latest",
            "library/team/app:latest",
        ),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        (
            "localhost:5000/app:v1",
            "localhost:5000/app:v1",
            "localhost:5000/app:v1",
        ),
        (
            "127.0.0.1:5000/a/b/c",
            "127.0.0.1:5000/a/b/c:latest",
            "127.0.0.1:5000/a/b/c:latest",
        ),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        (
            "Registry.Example.COM/app",
            "registry.example.com/app:latest",
            "registry.example.com/app:latest",
        ),
        (
            "a__b/c--d.e_f:T.a-g",
            "docker.io/a__b/c--d.e_f:T.a-g",
            "a__b/c--d.e_f:T.a-g",
        ),
    ] {
        let reference = parse(text);
        assert_eq!(reference.to_string(), full, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
        assert_eq!(parse(full), reference);
        assert_eq!(parse(familiar), reference);
    }
}

#[test]
fn a_digest_wins_over_the_tag() {
    let pinned = parse(&format!("nginx@{DIGEST}"));
    assert_eq!(pinned.tag(), None);
    assert_eq!(pinned.target(), DIGEST);
    let both = parse(&format!("localhost:5000/nginx:1.29@{DIGEST}"));
    assert_eq!(both.tag(), Some("1.29"));
    assert_eq!(both.target(), DIGEST);
    assert_eq!(both.to_string(), format!("localhost:5000/nginx:1.29@{DIGEST}"));
}

#[test]
fn refusals_say_what_to_write() {
    let refused = |text: &str| text.parse::<Reference>().expect_err(text).to_string();
    assert!(refused("").contains("empty"));
    assert!(refused("https://ghcr.io/a/b").contains("write `ghcr.io/a/b`"));
    assert!(refused("docker://nginx").contains("write `nginx`"));
    assert!(refused("Nginx").contains("write `nginx`"));
    assert!(refused("Team/nginx").contains("write `team/nginx`"));
    assert!(refused("nginx:").contains("tag"));
    assert!(refused("nginx:-x").contains("tag"));
    assert!(refused(&format!("nginx:{}", "x".repeat(129))).contains("tag"));
    assert!(refused("nginx@sha256:abc").contains("64"));
    assert!(refused(&format!("nginx@sha512:{}", "a".repeat(128))).contains("sha512"));
    assert!(refused(&"a".repeat(64)).contains("image id"));
    assert!(refused("a//b").contains("not an image name"));
    assert!(refused("a/../b").contains("not an image name"));
    assert!(refused("-a").contains("not an image name"));
    assert!(refused("a._b").contains("not an image name"));
    assert!(refused("a___b").contains("not an image name"));
    assert!(refused("localhost:99999/a").contains("not a registry"));
    assert!(refused("localhost:/a").contains("not a registry"));
    assert!(refused("-x.example/a").contains("not a registry"));
    assert!(refused("[::1/a").contains("not a registry"));
    assert!(refused(&format!("example.com/{}", "a".repeat(300))).contains("255"));
    assert!(refused("nginx latest").contains("not an image name"));
    assert!(refused("nginx\0").contains("not an image name"));
}

#[test]
fn aliases_keep_the_tag_unless_they_name_one() {
    let aliases = Aliases::new([
        ("koyeb/sandbox", "registry.house:5000/sandbox"),
        ("koyeb/sandbox:slim", "registry.house:5000/sandbox-slim:v3"),
        ("nginx", "registry.house:5000/nginx:frozen"),
    ])
    .expect("valid aliases");
    let apply = |text: &str| aliases.apply(&parse(text)).to_string();
    assert_eq!(apply("koyeb/sandbox"), "registry.house:5000/sandbox:latest");
    assert_eq!(apply("koyeb/sandbox:dind"), "registry.house:5000/sandbox:dind");
    assert_eq!(apply("koyeb/sandbox:slim"), "registry.house:5000/sandbox-slim:v3");
    assert_eq!(
        apply("docker.io/library/nginx:1.29"),
        "registry.house:5000/nginx:frozen"
    );
    assert_eq!(apply("redis"), "docker.io/library/redis:latest");
}

proptest! {
    /// Whatever is accepted is written in a form that reads back as itself, and stays inside safe characters.
    #[test]
    fn accepted_names_round_trip(text in "\\PC{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            prop_assert!(!reference.repository().split('/').any(|part| part == ".." || part == "." || part.is_empty()));
        }
    }

    /// Names built by the rules are accepted.
    #[test]
    fn names_by_the_rules_are_accepted(
        host in proptest::option::of("[a-z0-9]{1,8}\\.[a-z]{2,5}(:[1-9][0-9]{0,3})?"),
        parts in proptest::collection::vec("[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", 1..4),
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
    ) {
        // Without a registry, a first part with a dot is taken for one.
        let parts = if host.is_none() { parts.into_iter().map(|part| part.replace('.', "-")).collect() } else { parts };
        let mut text = host.map(|host| format!("{host}/")).unwrap_or_default();
        text.push_str(&parts.join("/"));
        if let Some(tag) = tag {
            text.push(':');
            text.push_str(&tag);
        }
        let reference = text.parse::<Reference>();
        prop_assert!(reference.is_ok(), "{}: {:?}", text, reference);
    }
}
