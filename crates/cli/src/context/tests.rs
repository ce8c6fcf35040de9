//! Which context is chosen, and how its file is kept.

use std::collections::BTreeMap;

use super::*;

fn with(variables: &[(&str, &str)], flag: Option<&str>) -> Result<Resolved, Error> {
    let variables: BTreeMap<String, String> = variables
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let look = |name: &str| variables.get(name).map(String::as_str);
    // The lookup must outlive the call only.
    resolve(flag, look)
}

fn found(resolved: Result<Resolved, Error>) -> (String, String, String) {
    let resolved = resolved.unwrap();
    (resolved.origin, resolved.context.url, resolved.context.token)
}

fn expect(origin: &str, url: &str, token: &str) -> (String, String, String) {
    (origin.to_owned(), url.to_owned(), token.to_owned())
}

#[test]
fn the_nearest_word_decides() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let file = path(|name| (name == "XDG_CONFIG_HOME").then_some(home)).unwrap();
    write_context(&file, "one", "http://one", "token-one").unwrap();
    write_context(&file, "two", "http://two", "token-two").unwrap();
    let home = ("XDG_CONFIG_HOME", home);

    assert_eq!(
        found(with(&[home], None)),
        expect("two", "http://two", "token-two")
    );
    assert_eq!(
        found(with(&[home, ("TRAM_CONTEXT", "one")], None)),
        expect("one", "http://one", "token-one")
    );
    assert_eq!(
        found(with(
            &[home, ("TRAM_CONTEXT", "one"), ("TRAM_URL", "http://x")],
            None
        )),
        expect("TRAM_URL", "http://x", "")
    );
    assert_eq!(
        found(with(&[home, ("TRAM_URL", "http://one/")], None)),
        expect("TRAM_URL", "http://one/", "token-one")
    );
    assert_eq!(
        found(with(&[home, ("TRAM_TOKEN", "mine")], None)),
        expect("two", "http://two", "mine")
    );
    assert_eq!(
        found(with(
            &[home, ("TRAM_URL", "http://x"), ("TRAM_TOKEN", "mine")],
            Some("one")
        )),
        expect("one", "http://one", "token-one")
    );
    let unknown = with(&[home], Some("tow")).unwrap_err();
    assert_eq!(unknown.to_string(), "there is no context `tow`");
    assert_eq!(
        unknown.hint().unwrap(),
        "`tram context list` shows what there is; `tram login` adds one"
    );
}

#[test]
fn without_a_file_the_default_address_serves_and_no_other_clouds_token_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let home = ("HOME", folder.path().to_str().unwrap());
    assert_eq!(found(with(&[home], None)), expect("default", DEFAULT_URL, ""));
    assert_eq!(
        found(with(&[("KOYEB_TOKEN", "theirs")], None)),
        expect("default", DEFAULT_URL, "")
    );
    assert_eq!(
        found(with(&[("KOYEB_TOKEN", "theirs"), ("TRAM_URL", "http://x")], None)),
        expect("TRAM_URL", "http://x", "")
    );
}

#[test]
fn a_file_that_cannot_be_read_does_not_matter_when_variables_say_all() {
    let folder = tempfile::tempdir().unwrap();
    let home = ("XDG_CONFIG_HOME", folder.path().to_str().unwrap());
    // A folder in its place cannot be read as a file, not even by root.
    fs::create_dir_all(folder.path().join("tram/config.toml")).unwrap();
    assert_eq!(
        found(with(
            &[home, ("TRAM_URL", "http://x"), ("TRAM_TOKEN", "mine")],
            None
        )),
        expect("TRAM_URL", "http://x", "mine")
    );
    let error = with(&[home, ("TRAM_URL", "http://x")], None).unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
    assert!(error.hint().unwrap().contains("TRAM_TOKEN"), "{:?}", error.hint());
    let denied = Error::Read {
        path: PathBuf::from("/home/a/.config/tram/config.toml"),
        source: io::ErrorKind::PermissionDenied.into(),
    };
    assert_eq!(
        denied.hint().unwrap(),
        "make it yours with `sudo chown $(id -u):$(id -g) /home/a/.config/tram/config.toml`, or set both TRAM_URL \
         and TRAM_TOKEN"
    );
}

#[test]
fn a_second_installation_gets_a_context_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let keep = |url: &str, token: &str| write_local_context(&file, url, token).unwrap();
    assert_eq!(keep("http://127.0.0.1:7080", "first"), "local");
    assert_eq!(keep("http://127.0.0.1:7090", "second"), "local-2");
    assert_eq!(keep("http://127.0.0.1:7100", "third"), "local-3");
    // Made anew at the same address.
    assert_eq!(keep("http://127.0.0.1:7090", "again"), "local-2");
    let contexts = Contexts::read(&file).unwrap();
    assert_eq!(contexts.current, "local-2");
    assert_eq!(contexts.named("local").unwrap().token, "first");
    assert_eq!(contexts.named("local-2").unwrap().token, "again");
    for (name, is_ours) in [
        ("local", true),
        ("local-2", true),
        ("local-x", false),
        ("locale", false),
        ("a", false),
    ] {
        assert_eq!(is_local_name(name), is_ours, "{name}");
    }
}

#[test]
fn the_file_is_for_its_owner_alone_and_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tram/config.toml");
    write_context(&file, "local", "http://127.0.0.1:7080", "secret").unwrap();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "current = \"local\"\n\n[contexts.local]\nurl = \"http://127.0.0.1:7080\"\ntoken = \"secret\"\n"
    );
    let names: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "a draft was left");
}

#[test]
fn a_malformed_file_is_refused_without_showing_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, "token = \"very-secret\"\n").unwrap();
    let error = Contexts::read(&file).unwrap_err();
    assert!(error.to_string().contains("unknown field `token`"), "{error}");
    assert!(!error.to_string().contains("very-secret"), "{error}");
}
