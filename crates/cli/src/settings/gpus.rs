//! Where specifications of devices are, and which instance types are made of them.

use std::path::{Path, PathBuf};

use tram_types::{
    catalog::{Family, INSTANCE_TYPES},
    gpu::{DEVICES_MAX, known},
    units::MIB,
};

use super::{
    checkpoint::mebibytes,
    value::{Setting, parts, quoted},
};

/// Most instance types of GPUs: far above what one machine has kinds of.
const TYPES_MAX: usize = 64;
/// Longest id of an instance type, in bytes: ids are columns of tables and labels of metrics.
const ID_BYTES_MAX: usize = 63;
/// Longest name of one, in bytes: it is shown in tables.
const NAME_BYTES_MAX: usize = 64;
/// What stands between the devices of a type in an argument.
const DEVICES_SEPARATOR: char = '|';

/// Folders, in an order that means something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folders(pub Vec<PathBuf>);

impl Folders {
    /// These folders.
    #[must_use]
    pub fn of(paths: &[&str]) -> Self {
        Self(paths.iter().map(PathBuf::from).collect())
    }
}

impl Setting for Folders {
    const KIND: &'static str = "FOLDER,…";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(parts(text).map(PathBuf::from).collect()))
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        Self::parse(&super::value::listed(value)?)
    }

    fn in_folder(self, folder: &Path) -> Self {
        Self(self.0.into_iter().map(|path| path.in_folder(folder)).collect())
    }

    fn show(&self) -> String {
        super::value::show_list(self.0.iter().map(|path| path.to_string_lossy().into_owned()))
    }
}

/// An instance type with GPUs, as the operator declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuType {
    /// Its id.
    pub id: String,
    /// What its devices are, such as `nvidia.com/gpu`.
    pub kind: String,
    /// Which of them; empty: all that there are.
    pub devices: Vec<String>,
    /// How many an instance has; `None`: what its id says, or one.
    pub count: Option<u32>,
    /// Memory of one device, in MiB; `None`: what is known of its id.
    pub memory_mib: Option<u64>,
    /// What an instance is meant to take of it, in MiB, when several share a device.
    pub share_mib: Option<u64>,
    /// The instance type whose processors, memory and disk it has; `None`: the largest that leaves room for all.
    pub size: Option<String>,
    /// What people read; `None`: what is known of its id.
    pub name: Option<String>,
}

impl GpuType {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let size = |what: &str| {
            mebibytes::parse(value)
                .ok_or_else(|| format!("{what} `{value}` is not a size above nothing such as 24GiB"))
        };
        match key {
            "kind" => {
                let plain = |part: &str| {
                    !part.is_empty()
                        && part
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                };
                if !value
                    .split_once('/')
                    .is_some_and(|(vendor, class)| plain(vendor) && plain(class))
                {
                    return Err(format!("kind `{value}` is not one such as nvidia.com/gpu"));
                }
                value.clone_into(&mut self.kind);
            }
            "devices" => {
                self.devices = value
                    .split(DEVICES_SEPARATOR)
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .map(ToOwned::to_owned)
                    .collect();
                if self.devices.is_empty() {
                    return Err("devices names none: leave it out for all of the kind".to_owned());
                }
            }
            "count" => match value.parse() {
                Ok(count) if (1..=DEVICES_MAX).contains(&count) => self.count = Some(count),
                _ => return Err(format!("count `{value}` is not a number from 1 to {DEVICES_MAX}")),
            },
            "memory" => self.memory_mib = Some(size("memory")?),
            "share" => self.share_mib = Some(size("share")?),
            "size" => {
                let standard = INSTANCE_TYPES
                    .iter()
                    .filter(|kind| kind.family == Family::Standard);
                let ids: Vec<&str> = standard.map(|kind| kind.id.as_ref()).collect();
                if !ids.contains(&value) {
                    return Err(format!("size `{value}` is none of {}", ids.join(", ")));
                }
                self.size = Some(value.to_owned());
            }
            "name"
                if value.is_empty() || value.len() > NAME_BYTES_MAX || value.contains(char::is_control) =>
            {
                return Err(format!(
                    "name must have 1 to {NAME_BYTES_MAX} bytes and no control characters"
                ));
            }
            "name" => self.name = Some(value.to_owned()),
            _ => {
                return Err(format!(
                    "there is no `{key}`: use kind, devices, count, memory, share, size, name"
                ));
            }
        }
        Ok(())
    }

    /// What is wrong with the whole of it.
    fn check(&self) -> Result<(), String> {
        if self.kind.is_empty() {
            return Err("kind is missing, such as nvidia.com/gpu".to_owned());
        }
        let Some(share) = self.share_mib else {
            return Ok(());
        };
        if self.count() > 1 {
            return Err("share goes with one device: leave count out".to_owned());
        }
        match self.memory_mib() {
            None => Err("share needs memory: how much one device has".to_owned()),
            Some(memory) if share > memory => Err("share is more than the memory of a device".to_owned()),
            Some(_) => Ok(()),
        }
    }

    /// How many devices an instance has.
    #[must_use]
    pub fn count(&self) -> u32 {
        let by_id = || known(&self.id).map_or(1, |known| known.count);
        self.count.unwrap_or_else(by_id)
    }

    /// Memory of one device, in MiB; `None`: nobody knows.
    #[must_use]
    pub fn memory_mib(&self) -> Option<u64> {
        self.memory_mib
            .or_else(|| known(&self.id).map(|known| known.memory_bytes / MIB))
    }
}

/// The instance types with GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuTypes(pub Vec<GpuType>);

impl GpuTypes {
    fn add<'a>(
        &mut self,
        id: &str,
        values: impl Iterator<Item = Result<(&'a str, String), String>>,
    ) -> Result<(), String> {
        let id = id.trim();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.chars().all(plain) {
            return Err(format!(
                "`{id}` is no id of an instance type: use 1 to {ID_BYTES_MAX} of a-z, 0-9 and `-`, such as gpu-nvidia-l4"
            ));
        }
        if INSTANCE_TYPES.iter().any(|kind| kind.id == id) {
            return Err(format!(
                "`{id}` is an instance type without GPUs: choose another id"
            ));
        }
        if self.0.iter().any(|kind| kind.id == id) {
            return Err(format!("`{id}` is there twice"));
        }
        if self.0.len() >= TYPES_MAX {
            return Err(format!("may have at most {TYPES_MAX} instance types"));
        }
        let mut kind = GpuType {
            id: id.to_owned(),
            ..GpuType::default()
        };
        let named = |error: String| format!("{id}: {error}");
        for value in values {
            let (key, value) = value.map_err(named)?;
            kind.set(key, &value).map_err(named)?;
        }
        kind.check().map_err(named)?;
        self.0.push(kind);
        Ok(())
    }
}

impl Setting for GpuTypes {
    const KIND: &'static str = "ID KEY=VALUE …,…";

    fn parse(text: &str) -> Result<Self, String> {
        let mut types = Self::default();
        for part in parts(text) {
            let mut words = part.split_whitespace();
            let id = words.next().unwrap_or_default();
            let values = words.map(|word| {
                let pair = word.split_once('=');
                pair.map(|(key, value)| (key, value.to_owned())).ok_or_else(|| {
                    format!("`{word}` is not a key and its value, such as kind=nvidia.com/gpu")
                })
            });
            types.add(id, values)?;
        }
        Ok(types)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        let toml::Value::Table(table) = value else {
            let text = value
                .as_str()
                .ok_or("must be a table of instance types, each a table of kind, devices, count, …")?;
            return Self::parse(text);
        };
        let mut types = Self::default();
        for (id, entry) in table {
            let toml::Value::Table(entry) = entry else {
                return Err(format!(
                    "`{id}` must be a table such as {{ kind = \"nvidia.com/gpu\" }}"
                ));
            };
            let values = entry.iter().map(|(key, value)| {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    toml::Value::Integer(number) => number.to_string(),
                    toml::Value::Array(items) => {
                        let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
                        texts
                            .ok_or_else(|| format!("{key} must be a list of strings"))?
                            .join(&DEVICES_SEPARATOR.to_string())
                    }
                    other => return Err(format!("{key} must not be a {}", other.type_str())),
                };
                Ok((key.as_str(), text))
            });
            types.add(id, values)?;
        }
        Ok(types)
    }

    fn show(&self) -> String {
        let texts = self.0.iter().map(|kind| {
            let mut text = format!("{} kind={}", kind.id, kind.kind);
            let size = |mib: u64| mebibytes::show(mib);
            let devices = Some(kind.devices.join(&DEVICES_SEPARATOR.to_string()));
            for (key, value) in [
                ("devices", devices.filter(|names| !names.is_empty())),
                ("count", kind.count.map(|count| count.to_string())),
                ("memory", kind.memory_mib.map(size)),
                ("share", kind.share_mib.map(size)),
                ("size", kind.size.clone()),
                ("name", kind.name.clone()),
            ] {
                if let Some(value) = value {
                    text.push_str(&format!(" {key}={value}"));
                }
            }
            text
        });
        quoted(&texts.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_declared_in_a_line_or_a_table() {
        let line = "gpu-nvidia-l4 kind=nvidia.com/gpu, slice kind=nvidia.com/gpu devices=0:0|0:1 memory=10GiB share=5GiB \
                    size=small";
        let types = GpuTypes::parse(line).unwrap();
        let table: toml::Table = toml::from_str(
            "gpu-nvidia-l4 = { kind = 'nvidia.com/gpu' }\n\
             slice = { kind = 'nvidia.com/gpu', devices = ['0:0', '0:1'], memory = '10GiB', share = '5GiB', size = 'small' }",
        )
        .unwrap();
        assert_eq!(GpuTypes::of_toml(&toml::Value::Table(table)), Ok(types.clone()));
        assert_eq!(types.0[0].memory_mib(), Some(24 * 1024), "it is known of the id");
        assert_eq!(types.0[1].devices, ["0:0", "0:1"]);
        let shown: String = toml::from_str::<toml::Table>(&format!("it = {}", types.show()))
            .unwrap()
            .remove("it")
            .and_then(|value| value.as_str().map(ToOwned::to_owned))
            .unwrap();
        assert_eq!(GpuTypes::parse(&shown), Ok(types), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("gpu", "gpu: kind is missing"),
            ("Gpu kind=a/b", "`Gpu` is no id of an instance type"),
            ("small kind=a/b", "`small` is an instance type without GPUs"),
            ("g kind=nvidia", "g: kind `nvidia` is not one such as"),
            ("g kind=a/b count=0", "g: count `0` is not a number from 1 to 16"),
            ("g kind=a/b cores=1", "g: there is no `cores`"),
            ("g kind=a/b size=tiny", "g: size `tiny` is none of nano, micro"),
            ("g kind=a/b share=1GiB", "g: share needs memory"),
            (
                "g kind=a/b share=2GiB memory=1GiB",
                "g: share is more than the memory",
            ),
            (
                "2-gpu-nvidia-l4 kind=a/b share=1GiB",
                "share goes with one device",
            ),
            ("g kind=a/b, g kind=a/b", "`g` is there twice"),
            ("g kind=a/b devices", "g: `devices` is not a key and its value"),
        ] {
            let error = GpuTypes::parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
