//! The reference pages are what the code says.

use std::path::Path;

#[track_caller]
fn compare(page: &str, expected: &str) {
    // Tests run in their crate's folder. A path taken while compiling would be that of whoever compiled, which may have
    // been another checkout with the same target directory.
    let path = Path::new("../../docs/reference").join(page);
    if std::env::var_os("TRAM_TEST_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "docs/reference/{page} is not up to date; run `TRAM_TEST_WRITE_REFERENCE=1 cargo nextest run -p tram-cli`"
    );
}

#[test]
fn the_reference_of_commands_is_up_to_date() {
    compare("cli.md", &tram_cli::reference::commands());
}

#[test]
fn the_reference_of_settings_is_up_to_date() {
    compare("settings.md", &tram_cli::reference::settings());
}
