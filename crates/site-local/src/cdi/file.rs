//! One file of the Container Device Interface: its format, and the rules that it has to keep.
//!
//! The format is the specification's (cncf-tags/container-device-interface), JSON or YAML; a member that it does not have
//! is refused, as the specification's own library does. What is here is what a file says; what of it can be had is in
//! `edits`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The versions of the specification. A newer one may mean something by a member that we would pass over.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
/// Devices of one file: a machine with 16 GPUs of 7 slices each, by two names, has 256.
const DEVICES_MAX: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) devices: Vec<Device>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    #[serde(deserialize_with = "name")]
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Edits {
    #[serde(default)]
    pub(super) env: Vec<String>,
    #[serde(default)]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    pub(super) net_devices: Vec<serde_json::Value>,
    #[serde(default)]
    pub(super) hooks: Vec<Hook>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    pub(super) intel_rdt: Option<serde_json::Value>,
    #[serde(default, rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

/// Owner and mode are those of the machine's node, which is what an instance is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    #[serde(default)]
    pub(super) host_path: Option<String>,
    #[serde(default)]
    pub(super) r#type: Option<String>,
    #[serde(default)]
    pub(super) major: Option<u32>,
    #[serde(default)]
    pub(super) minor: Option<u32>,
    #[serde(default, rename = "fileMode")]
    _file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: Option<String>,
    #[serde(default, rename = "uid")]
    _uid: Option<u32>,
    #[serde(default, rename = "gid")]
    _gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(default)]
    pub(super) r#type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default, rename = "env")]
    _env: Vec<String>,
    #[serde(default, rename = "timeout")]
    _timeout: Option<i64>,
}

/// Older files have numbers as names.
fn name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Name {
        Text(String),
        Number(u64),
    }
    Ok(match Name::deserialize(deserializer)? {
        Name::Text(text) => text,
        Name::Number(number) => number.to_string(),
    })
}

/// Reads a file's text. The error names the member.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, String> {
    let file: File = if path.extension().is_some_and(|extension| extension == "json") {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let file = located(&mut deserializer)?;
        deserializer.end().map_err(|error| error.to_string())?;
        file
    } else {
        located(serde_norway::Deserializer::from_str(text))?
    };
    file.check()?;
    Ok(file)
}

fn located<'de, T: DeserializeOwned, D: serde::Deserializer<'de>>(deserializer: D) -> Result<T, String>
where
    D::Error: std::fmt::Display,
{
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let (member, what) = (error.path().to_string(), error.inner().to_string());
        // The reader of YAML names what the member is in, too.
        let what = match what.split_once(": ") {
            Some((place, rest)) if member.starts_with(place) => rest,
            _ => &what,
        };
        match member.as_str() {
            "." => what.to_owned(),
            member => format!("{member}: {what}"),
        }
    })
}

impl File {
    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!(
                "cdiVersion: `{}` is not known here: have it written anew for one of {}",
                self.cdi_version,
                VERSIONS.join(", ")
            ));
        }
        let is_kind = self
            .kind
            .split_once('/')
            .is_some_and(|(vendor, class)| is_word(vendor, "-_.") && is_word(class, "-_."));
        if !is_kind {
            return Err(format!(
                "kind: `{}` is not a vendor and a class, such as nvidia.com/gpu",
                self.kind
            ));
        }
        if self.devices.is_empty() {
            return Err("devices: there are none".to_owned());
        }
        if self.devices.len() > DEVICES_MAX {
            return Err(format!("devices: there are more than {DEVICES_MAX}"));
        }
        let mut names = std::collections::BTreeSet::new();
        for (index, device) in self.devices.iter().enumerate() {
            if !is_name(&device.name) {
                return Err(format!(
                    "devices[{index}].name: `{}` is not a name of letters, digits and `-_.:` between them",
                    device.name
                ));
            }
            if !names.insert(device.name.as_str()) {
                return Err(format!("devices[{index}].name: `{}` is there twice", device.name));
            }
            if device.container_edits.is_empty() {
                return Err(format!("devices[{index}].containerEdits: changes nothing"));
            }
        }
        Ok(())
    }
}

impl Edits {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.net_devices.is_empty()
            && self.hooks.is_empty()
            && self.mounts.is_empty()
            && self.intel_rdt.is_none()
            && self.additional_gids.is_empty()
    }
}

/// Begins with a letter, ends with a letter or a digit.
fn is_word(text: &str, between: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && is_plain(text, between)
}

/// Begins and ends with a letter or a digit.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_plain(text, "-_.:")
}

fn is_plain(text: &str, between: &str) -> bool {
    text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}
