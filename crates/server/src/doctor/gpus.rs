//! What `tram doctor` says of devices and of the instance types that are made of them.

use std::path::PathBuf;

use tram_cli::Settings;
use tram_site_local::cdi::Devices;
use tram_types::catalog::Catalog;

use super::{Check, Finding, Weight, bad};
use crate::{gpus, host};

/// Names that are said of one kind of devices: machines have up to some hundred, with slices.
const NAMED_MAX: usize = 16;

pub(super) fn look(settings: &Settings) -> Vec<Check> {
    let devices = gpus::devices(settings);
    let catalog = Catalog::local(
        &settings.region,
        &settings.region,
        host::cpu_millis(),
        host::memory_bytes(),
    );
    let mut checks = vec![found(settings, &devices)];
    for problem in &devices.problems {
        let finding = bad(
            format!("{}: {}", problem.path.display(), problem.what),
            "mend it, or have it written anew, such as by `nvidia-ctk cdi generate`; the others are used meanwhile",
        );
        checks.push(Check::new("device specification", Weight::Wanted, finding));
    }
    for declared in &settings.gpu_types.0 {
        let finding = match gpus::of(declared, &catalog, &devices) {
            Ok(kind) => {
                let names = kind.gpu.as_ref().map_or(&[][..], |gpu| &gpu.devices);
                Finding::Good(format!("offered: {} of {}", declared.count(), named(names)))
            }
            Err(why) => bad(
                format!("is not offered: {why}"),
                "correct `gpu_types`, or the specification of its devices",
            ),
        };
        checks.push(Check::new(
            format!("instance type {}", declared.id),
            Weight::Wanted,
            finding,
        ));
    }
    checks
}

/// Which devices there are.
fn found(settings: &Settings, devices: &Devices) -> Check {
    let mut kinds: Vec<&str> = devices
        .devices
        .keys()
        .filter_map(|name| Some(name.split_once('=')?.0))
        .collect();
    kinds.dedup();
    let folders: Vec<String> = settings
        .cdi_directories
        .0
        .iter()
        .map(|path: &PathBuf| path.display().to_string())
        .collect();
    let text = if kinds.is_empty() {
        format!("none: no specification in {}", folders.join(", "))
    } else {
        let texts: Vec<String> = kinds.iter().map(|kind| named(&devices.of_kind(kind))).collect();
        let mut text = texts.join("; ");
        if settings.gpu_types.0.is_empty() {
            text.push_str("; no instance type has them (`gpu_types`)");
        }
        let left_out = devices.left_out();
        if !left_out.is_empty() {
            text.push_str(&format!("; left out: {}", left_out.join(", ")));
        }
        text
    };
    Check::new("devices (CDI)", Weight::Wanted, Finding::Good(text))
}

fn named(names: &[String]) -> String {
    match names.len() {
        0 => "none that can be given".to_owned(),
        few if few <= NAMED_MAX => names.join(", "),
        many => format!("{} and {} more", names[..NAMED_MAX].join(", "), many - NAMED_MAX),
    }
}

#[cfg(test)]
mod tests {
    use tram_cli::settings::{Folders, GpuType, GpuTypes};

    use super::*;

    #[test]
    fn devices_types_and_what_is_wrong_are_said() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write(
            "good.json",
            r#"{"cdiVersion":"0.5.0","kind":"acme.com/gpu","devices":[
                {"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/acme0","hostPath":"/dev/zero"}]}}]}"#,
        );
        write(
            "bad.json",
            r#"{"cdiVersion":"9.0.0","kind":"acme.com/gpu","devices":[]}"#,
        );
        let declared = |id: &str, count| GpuType {
            id: id.to_owned(),
            kind: "acme.com/gpu".to_owned(),
            count: Some(count),
            ..GpuType::default()
        };
        let settings = Settings {
            cdi_directories: Folders(vec![directory.path().to_owned()]),
            gpu_types: GpuTypes(vec![declared("one", 1), declared("two", 2)]),
            ..Settings::default()
        };
        let checks = look(&settings);
        let texts: Vec<(&str, &str, &str)> = checks
            .iter()
            .map(|check| (check.name.as_str(), check.mark(), check.detail()))
            .collect();
        assert_eq!(texts[0], ("devices (CDI)", "ok", "acme.com/gpu=0"));
        assert_eq!((texts[1].0, texts[1].1), ("device specification", "limited"));
        assert!(
            texts[1]
                .2
                .contains("bad.json: cdiVersion: `9.0.0` is not known here"),
            "{}",
            texts[1].2
        );
        assert_eq!(
            texts[2],
            ("instance type one", "ok", "offered: 1 of acme.com/gpu=0")
        );
        assert!(
            texts[3]
                .2
                .contains("it needs 2 devices, and specifications tell of 1"),
            "{}",
            texts[3].2
        );
    }
}
