//! What a device changes about an instance, as far as it is allowed and can be had.
//!
//! The one design choice to know: what a file asks for is done or refused by name, never passed over in silence, and
//! nothing of a file is run. The hooks that `nvidia-ctk` writes are programs to be started as root beside each container;
//! what they are known to do is done here instead: links are made, and the folders of libraries are made known by
//! `LD_LIBRARY_PATH` and by the links that `ldconfig` would make.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{file, soname};

/// Nodes of the machine itself: whoever has them has the machine.
const NODES_OF_THE_MACHINE: [&str; 4] = ["/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg"];
/// What is nobody's to hide from an instance, or to show of the machine.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// What is the platform's own inside.
const PLATFORMS: &str = "/.tramontane";
/// Entries of one list: a driver has some hundred libraries and files.
const LIST_MAX: usize = 4096;
/// Kinds of mounts that show something of the machine, which is what all of them are in files of drivers.
const BINDS: [&str; 4] = ["", "bind", "rbind", "none"];
/// Options that would let a mount inside be seen outside.
const SHARED: [&str; 2] = ["shared", "rshared"];
/// Programs whose hooks are known.
const NVIDIA_PROGRAMS: [&str; 2] = ["nvidia-cdi-hook", "nvidia-ctk"];
/// Hooks of them that ask for what holds already: its programs can make no node of a device, and open
/// none that they are not given.
const HELD_ALREADY: [&str; 1] = ["disable-device-node-modification"];
/// Hooks of them that a program can do without, mostly: the first has an image with a newer CUDA than the machine's driver
/// bring its own driver libraries, the second tells graphics which of several devices are there.
const LEFT_OUT: [&str; 2] = ["enable-cuda-compat", "update-application-profile"];

/// A device of the machine, and where an instance is shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) number: Option<(u32, u32)>,
}

/// A file or directory of the machine, and where an instance is shown it, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
}

/// A symbolic link inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) path: PathBuf,
    pub(crate) target: PathBuf,
}

/// What devices change about an instance. Kept in its record, which a later version reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Edits {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) mounts: Vec<Shown>,
    pub(crate) links: Vec<Link>,
    /// Where libraries are to be found.
    pub(crate) folders: Vec<PathBuf>,
    /// Groups of the machine that its nodes are for.
    pub(crate) groups: Vec<u32>,
    /// What was asked for and is left out, in the words of the file.
    pub(crate) left_out: Vec<String>,
}

impl Edits {
    /// What a file asks for. `at`: where in the file.
    pub(super) fn read(at: &str, raw: &file::Edits) -> Result<Self, String> {
        let mut edits = Self::default();
        if !raw.net_devices.is_empty() {
            return Err(format!(
                "{at}.netDevices: instances are given no network devices here"
            ));
        }
        if raw.intel_rdt.is_some() {
            return Err(format!("{at}.intelRdt: classes of caches are not given out here"));
        }
        for (what, length) in [
            ("env", raw.env.len()),
            ("deviceNodes", raw.device_nodes.len()),
            ("mounts", raw.mounts.len()),
            ("hooks", raw.hooks.len()),
            ("additionalGids", raw.additional_gids.len()),
        ] {
            if length > LIST_MAX {
                return Err(format!("{at}.{what}: has more than {LIST_MAX} entries"));
            }
        }
        for (index, entry) in raw.env.iter().enumerate() {
            match entry.split_once('=') {
                Some((name, value)) if !name.is_empty() && !entry.contains('\0') => {
                    edits.env.push((name.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("{at}.env[{index}]: `{entry}` is not NAME=value")),
            }
        }
        for (index, raw) in raw.device_nodes.iter().enumerate() {
            let node = node(raw).map_err(|error| format!("{at}.deviceNodes[{index}].{error}"))?;
            edits.nodes.push(node);
        }
        for (index, raw) in raw.mounts.iter().enumerate() {
            let mount = mount(raw).map_err(|error| format!("{at}.mounts[{index}].{error}"))?;
            edits.mounts.push(mount);
        }
        for (index, raw) in raw.hooks.iter().enumerate() {
            edits
                .hook(raw)
                .map_err(|error| format!("{at}.hooks[{index}]: {error}"))?;
        }
        edits.groups.clone_from(&raw.additional_gids);
        edits.groups.retain(|group| *group != 0);
        Ok(edits)
    }

    /// Takes more in; what is there twice is meant once, and the later of two variables holds.
    pub(super) fn add(&mut self, more: &Self) {
        fn union<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T]) {
            for one in more {
                if !all.contains(one) {
                    all.push(one.clone());
                }
            }
        }
        for (name, _) in &more.env {
            self.env.retain(|(known, _)| known != name);
        }
        union(&mut self.env, &more.env);
        union(&mut self.nodes, &more.nodes);
        union(&mut self.mounts, &more.mounts);
        union(&mut self.links, &more.links);
        union(&mut self.folders, &more.folders);
        union(&mut self.groups, &more.groups);
        union(&mut self.left_out, &more.left_out);
    }

    /// Adds the links that `ldconfig` would make for what is mounted into the folders of libraries. Reads the libraries.
    pub(super) fn link_libraries(&mut self) {
        for mount in &self.mounts {
            let Some(folder) = mount.target.parent() else {
                continue;
            };
            if !self.folders.iter().any(|known| known == folder) {
                continue;
            }
            let Some(name) = soname::of(&mount.source) else {
                continue;
            };
            let path = folder.join(&name);
            let taken = |other: &Path| other == path;
            if self.mounts.iter().any(|mount| taken(&mount.target))
                || self.links.iter().any(|link| taken(&link.path))
            {
                continue;
            }
            let Some(file) = mount.target.file_name() else {
                continue;
            };
            self.links.push(Link {
                path,
                target: file.into(),
            });
        }
    }

    fn hook(&mut self, hook: &file::Hook) -> Result<(), String> {
        let program = Path::new(&hook.path)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        // The first of the words is the program's own name.
        let mut words = hook.args.iter().skip(1).map(String::as_str).peekable();
        words.next_if_eq(&"hook");
        let command = words.next().unwrap_or_default();
        let refuse = || {
            Err(format!(
                "the hook `{}{}{command}` ({}) is not supported: programs of a specification are not run",
                hook.path,
                if command.is_empty() { "" } else { " " },
                hook.hook_name
            ))
        };
        if !NVIDIA_PROGRAMS.contains(&program.as_ref()) {
            return refuse();
        }
        let options = options(words)?;
        let given = |name: &'static str| {
            options
                .iter()
                .filter(move |(known, _)| *known == name)
                .map(|(_, value)| *value)
        };
        match command {
            "create-symlinks" if only(&options, &["link"]) => {
                for link in given("link") {
                    self.links.push(one_link(link)?);
                }
            }
            "update-ldcache" if only(&options, &["folder", "ldconfig-path"]) => {
                for folder in given("folder") {
                    let folder = inside(folder)?;
                    if folder.to_string_lossy().contains(':') {
                        return Err(format!("folder `{}` has a colon in its name", folder.display()));
                    }
                    self.folders.push(folder);
                }
            }
            "create-soname-symlinks" if only(&options, &["folder", "ldconfig-path"]) => {
                for folder in given("folder") {
                    self.folders.push(inside(folder)?);
                }
            }
            "chmod" if only(&options, &["mode", "path"]) => {
                let below_dev = |path: &str| inside_dev(path).is_ok();
                if !given("mode").all(|mode| matches!(mode, "755" | "0755")) || !given("path").all(below_dev)
                {
                    return refuse();
                }
            }
            known if HELD_ALREADY.contains(&known) => {}
            known if LEFT_OUT.contains(&known) => self.left_out.push(known.to_owned()),
            _ => return refuse(),
        }
        Ok(())
    }
}

/// `--name value` and `--name=value`.
fn options<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Vec<(&'a str, &'a str)>, String> {
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--") else {
            return Err(format!("`{word}` is not an option"));
        };
        match option.split_once('=') {
            Some(pair) => options.push(pair),
            None => options.push((option, words.next().unwrap_or_default())),
        }
    }
    Ok(options)
}

fn only(options: &[(&str, &str)], known: &[&str]) -> bool {
    options.iter().all(|(name, _)| known.contains(name))
}

/// `target::path`.
fn one_link(text: &str) -> Result<Link, String> {
    let Some((target, path)) = text.split_once("::") else {
        return Err(format!("link `{text}` is not target::path"));
    };
    let path = plain(path).map_err(|error| format!("link `{text}`: {error}"))?;
    if target.is_empty() || target.contains('\0') {
        return Err(format!("link `{text}` leads nowhere"));
    }
    let (proc, sys) = (Path::new("/proc"), Path::new("/sys"));
    if path.starts_with(proc) || path.starts_with(sys) || path.starts_with(PLATFORMS) {
        return Err(format!("link `{text}` is at a place that is not its own"));
    }
    Ok(Link {
        path,
        target: target.into(),
    })
}

fn node(raw: &file::DeviceNode) -> Result<Node, String> {
    let target = inside_dev(&raw.path).map_err(|error| format!("path: {error}"))?;
    let source = match raw.host_path.as_deref().filter(|path| !path.is_empty()) {
        Some(path) => inside_dev(path).map_err(|error| format!("hostPath: {error}"))?,
        None => target.clone(),
    };
    if NODES_OF_THE_MACHINE.iter().any(|node| source == Path::new(node)) {
        return Err(format!("hostPath: `{}` is the machine itself", source.display()));
    }
    match raw.r#type.as_deref() {
        None | Some("" | "c" | "u") => {}
        Some(other) => {
            return Err(format!(
                "type: `{other}` is not given to instances: they are given character devices (`c`)"
            ));
        }
    }
    let permissions = raw.permissions.as_deref().unwrap_or("rw");
    if !permissions.contains('r')
        || !permissions.contains('w')
        || permissions.contains(|c| !"rwm".contains(c))
    {
        return Err(format!(
            "permissions: `{permissions}` cannot be held to: what an instance is given it may read and write (`rw`)"
        ));
    }
    let number = match (raw.major, raw.minor) {
        // Nothing said, in the words of the specification's own library.
        (None | Some(0), _) => None,
        (Some(major), minor) => Some((major, minor.unwrap_or(0))),
    };
    Ok(Node {
        source,
        target,
        number,
    })
}

fn mount(raw: &file::Mount) -> Result<Shown, String> {
    let source = plain(&raw.host_path).map_err(|error| format!("hostPath: {error}"))?;
    if source == Path::new("/") || kernels(&source) {
        return Err(format!(
            "hostPath: `{}` is the machine itself, which no instance is shown",
            source.display()
        ));
    }
    let target = inside(&raw.container_path).map_err(|error| format!("containerPath: {error}"))?;
    if !BINDS.contains(&raw.r#type.as_deref().unwrap_or_default()) {
        return Err(format!(
            "type: `{}` is not supported: only files and folders of the machine are shown (`bind`)",
            raw.r#type.as_deref().unwrap_or_default()
        ));
    }
    if let Some(option) = raw
        .options
        .iter()
        .find(|option| SHARED.contains(&option.as_str()))
    {
        return Err(format!(
            "options: `{option}` would show the machine what is mounted inside"
        ));
    }
    Ok(Shown { source, target })
}

/// A place in an instance where something of the machine may be shown.
fn inside(text: &str) -> Result<PathBuf, String> {
    let path = plain(text)?;
    if path == Path::new("/") || kernels(&path) || path.starts_with(PLATFORMS) {
        return Err(format!(
            "`{text}` is not a place for it: it is the instance's or the kernel's own"
        ));
    }
    Ok(path)
}

/// A place below `/dev`.
fn inside_dev(text: &str) -> Result<PathBuf, String> {
    let path = plain(text)?;
    match path.strip_prefix("/dev") {
        Ok(below) if below.file_name().is_some() => Ok(path),
        _ => Err(format!("`{text}` is not below /dev")),
    }
}

fn kernels(path: &Path) -> bool {
    KERNELS.iter().any(|top| path.starts_with(top))
}

/// An absolute path without `..`.
fn plain(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err(format!("`{text}` is not an absolute path"));
    }
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain {
        return Err(format!("`{text}` has `..` in it"));
    }
    // Without what is said twice: `//` and `/./`.
    Ok(path.components().collect())
}
