//! From what the controller ordered and what the image says to what the supervisor launches.
//!
//! Pure, so that the rules can be tested: which program runs with which words, environment, files and limits.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use tram_image::ImageConfig;
use tram_sandbox::protocol::{
    Capability, ConfigFile, DISK_BYTES_MIN, IdRange, InstanceId, InvalidSpec, LaunchSpec, Limits, Network,
    User,
};
use tram_site::InstanceSpec;
use tram_types::Isolation;

use crate::config::{Config, UserNamespaces};
use crate::{dns, executor, guard};

/// What the usual base images have.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Files the platform writes are for everybody to read.
const PLATFORM_FILE_MODE: u32 = 0o644;
/// What root does not need in a user namespace of its own, where it would hold over nothing: the network and the devices
/// are the machine's. What it keeps (owners and modes of its files, users of its processes, chroot) is what installing
/// packages and changing users take.
const USELESS_ALONE: [Capability; 4] = [
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_AUDIT_WRITE,
];
/// The label by which this site knows its own instances at the supervisor.
pub(crate) const SITE_LABEL: &str = "tramontane.site";
/// Its value.
pub(crate) const SITE_NAME: &str = "local";

/// What an instance cannot be launched for; the text is for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "there is nothing to run: the image has neither an entrypoint nor a command, and the definition gives none"
    )]
    NothingToRun,
    #[error("the image has no files in it: build it from a base image or copy your program into it")]
    NoLayers,
    #[error("this machine has no executor for sandboxes: its `tram` was built without one")]
    NoExecutor,
    #[error("this machine has no isolation class `gvisor` (any more): `tram doctor` says why")]
    NoGvisor,
    #[error("the definition cannot be run: {0}")]
    Invalid(#[from] InvalidSpec),
}

/// The image as far as a launch needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageView<'a> {
    pub(crate) config: &'a ImageConfig,
    /// Topmost first.
    pub(crate) layers: &'a [PathBuf],
}

/// Where the instance is in the network.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) namespace: PathBuf,
    /// Of the place; no two instances have the same at a time.
    pub(crate) number: u32,
}

/// Who the program runs as.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) user: User,
    pub(crate) home: Option<String>,
}

/// Everything the supervisor needs.
pub(crate) fn launch_spec(
    spec: &InstanceSpec,
    generation: u64,
    image: ImageView<'_>,
    account: &Account,
    place: &Place,
    config: &Config,
) -> Result<LaunchSpec, Error> {
    if image.layers.is_empty() {
        return Err(Error::NoLayers);
    }
    let id = InstanceId::new(spec.id.to_string())?;
    let argv = match &spec.executor {
        Some(executor) => executor::words(executor, own_program(spec, image.config)?),
        None => words(spec, image.config)?,
    };
    let mut launch = LaunchSpec::new(id, generation, image.layers.to_vec(), argv);
    if spec.executor.is_some() {
        launch.binds.push(executor::mount(config)?);
    }
    let mut env = environment(spec, image.config, account.home.as_deref());
    if spec.executor.is_some()
        && let Some(secret) = env.get_mut(executor::SECRET_VARIABLE)
        && !secret.is_empty()
    {
        *secret = executor::digest_of(secret);
    }
    launch.env = env.into_iter().collect();
    launch.cwd = match image.config.working_dir.as_str() {
        "" => "/".to_owned(),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("/{relative}"),
    };
    launch.user = account.user.clone();
    if spec.isolation == Isolation::Gvisor {
        // Its ids are those of a kernel of its own; to the machine, that kernel is nobody.
        launch.gvisor = Some(config.gvisor.clone().ok_or(Error::NoGvisor)?);
        if spec.untrusted {
            without_useless(&mut launch);
        }
    } else if wants_own_ids(spec, config) {
        launch.ids = Some(IdRange::numbered(place.number));
        without_useless(&mut launch);
    }
    launch.hostname = spec.id.short();
    launch.files = files(spec, place, &account.user);
    launch.network = Network::Namespace {
        path: place.namespace.clone(),
    };
    launch.limits = Limits {
        memory_bytes: Some(spec.limits.memory_bytes),
        cpu_millis: Some(spec.limits.cpu_millis),
        pids_max: Some(config.pids_max),
        nofile: Some(config.open_files_max),
        ..Limits::default()
    };
    launch.disk_bytes_max = Some(spec.limits.disk_bytes.max(DISK_BYTES_MIN));
    launch.logs = config.logs.clone();
    // The image's signal is for its own program; the executor passes the usual one on.
    let signal = image.config.stop_signal.as_deref().and_then(signal_number);
    if let Some(signal) = signal.filter(|_| spec.executor.is_none()) {
        launch.stop_signal = signal;
    }
    launch.labels = BTreeMap::from([
        (SITE_LABEL.to_owned(), SITE_NAME.to_owned()),
        ("service".to_owned(), spec.service_name.clone()),
        ("app".to_owned(), spec.app_name.clone()),
    ]);
    launch.validate()?;
    Ok(launch)
}

fn without_useless(launch: &mut LaunchSpec) {
    launch
        .capabilities
        .retain(|capability| !USELESS_ALONE.contains(capability));
}

fn wants_own_ids(spec: &InstanceSpec, config: &Config) -> bool {
    match config.user_namespaces {
        UserNamespaces::Never => false,
        UserNamespaces::Untrusted => spec.untrusted,
        UserNamespaces::Always => true,
    }
}

/// The program and its arguments: `entrypoint` (or the image's), `command` as one word, `args`. Giving an
/// entrypoint or a command drops the image's command; `args` alone come after it.
fn words(spec: &InstanceSpec, image: &ImageConfig) -> Result<Vec<String>, Error> {
    let mut words = if spec.entrypoint.is_empty() {
        image.entrypoint.clone()
    } else {
        spec.entrypoint.clone()
    };
    if !spec.command.is_empty() {
        words.push(spec.command.clone());
    } else if spec.entrypoint.is_empty() {
        words.extend(image.cmd.iter().cloned());
    }
    words.extend(spec.args.iter().cloned());
    if words.is_empty() {
        Err(Error::NothingToRun)
    } else {
        Ok(words)
    }
}

/// What a sandbox runs beside its executor: what its definition names. The image's own program is not started, since it
/// is mostly a shell that would end at once, and the sandbox with it.
fn own_program(spec: &InstanceSpec, image: &ImageConfig) -> Result<Vec<String>, Error> {
    if spec.entrypoint.is_empty() && spec.command.is_empty() && spec.args.is_empty() {
        return Ok(Vec::new());
    }
    words(spec, image)
}

/// The image's variables, then the definition's over them, and what every program expects.
pub(crate) fn environment(
    spec: &InstanceSpec,
    image: &ImageConfig,
    home: Option<&str>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOSTNAME".to_owned(), spec.id.short()),
    ]);
    if let Some(home) = home {
        environment.insert("HOME".to_owned(), home.to_owned());
    }
    if !spec.bound_secrets.is_empty() {
        environment.extend(guard::trust::variables());
    }
    let of_image = image.env.iter().filter_map(|pair| pair.split_once('='));
    environment.extend(
        of_image
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    environment.extend(spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    environment
}

/// The platform's files, and the definition's, which win and belong to the program's user.
fn files(spec: &InstanceSpec, place: &Place, user: &User) -> Vec<ConfigFile> {
    let host = spec.id.short();
    let platform = [
        (
            "/etc/hosts",
            format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{host}\n",
                place.address
            ),
        ),
        ("/etc/hostname", format!("{host}\n")),
        ("/etc/resolv.conf", dns::resolv_conf(place.gateway)),
    ];
    let given = spec.files.iter().map(|file| ConfigFile {
        path: file.path.clone().into(),
        content: file.content.clone().into_bytes(),
        mode: file.mode,
        uid: user.uid,
        gid: user.gid,
    });
    platform
        .into_iter()
        .filter(|(path, _)| !spec.files.iter().any(|file| file.path == *path))
        .map(|(path, content)| ConfigFile {
            path: path.into(),
            content: content.into_bytes(),
            mode: PLATFORM_FILE_MODE,
            uid: 0,
            gid: 0,
        })
        .chain(given)
        .collect()
}

/// Reads `SIGTERM`, `TERM` or `15`; `None` for what is no signal, and the default then holds.
fn signal_number(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 16] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
    ];
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset
            .parse::<i32>()
            .ok()
            .filter(|offset| (0..=30).contains(offset))
            .map(|offset| 34 + offset);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests;
