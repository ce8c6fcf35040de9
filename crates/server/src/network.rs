//! Which block of addresses the instances of this machine get.
//!
//! The operator may say; else the first block is taken that neither a route of this machine nor another installation
//! on it uses, and it is remembered, so that every later start uses the same. Installations tell each other by
//! claims under `/run`: a claim names a data directory and holds for as long as a process works on that directory.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use tram_image::ImageStore;
use tram_site_local::{Config, Ipv4Network, Ipv6Net, LocalSite, OpenError, network};

use crate::{paths::Paths, processes::DirectoryLock, roles};

/// Where the choice is remembered, in the site's directory.
const REMEMBERED: &str = "network";
/// Where installations on this machine claim their blocks; gone after a reboot, as are all instances.
const CLAIMS: &str = "/run/tramontane/blocks";
/// The blocks that are tried, `10.<n>.0.0/16`: private, and rarely used by anybody else.
const BLOCKS: std::ops::RangeInclusive<u8> = 201..=250;
const CANNOT: &str = "cannot use this machine as a site: `tram doctor` looks deeper";

/// Opens this machine as a site with the addresses that were chosen.
///
/// # Errors
/// With what is wrong, for the user.
pub async fn open_site(
    paths: &Paths,
    mut config: Config,
    images: ImageStore,
    chosen: &str,
) -> anyhow::Result<Arc<LocalSite>> {
    let claims = Claims::lock(Path::new(CLAIMS), paths)?;
    let file = config.state_dir.join(REMEMBERED);
    let remembered = fs::read_to_string(&file).unwrap_or_default();
    let fixed = if chosen.is_empty() {
        remembered.trim()
    } else {
        chosen
    };
    if !fixed.is_empty() {
        config.network.addresses = parse(fixed)?;
        if let Some(owner) = claims.other_owner(fixed) {
            anyhow::bail!(
                "the addresses {fixed} are those of another installation here, {}: choose others with `--network`",
                owner.display()
            );
        }
        claims.claim(fixed)?;
        let site = LocalSite::open(config, images).await.context(CANNOT)?;
        remember(&file, fixed)?;
        return Ok(site);
    }
    for block in BLOCKS {
        let candidate = format!("10.{block}.0.0/16");
        if claims.other_owner(&candidate).is_some() {
            continue;
        }
        config.network.addresses = parse(&candidate)?;
        claims.claim(&candidate)?;
        match LocalSite::open(config.clone(), images.clone()).await {
            Ok(site) => {
                remember(&file, &candidate)?;
                return Ok(site);
            }
            Err(OpenError::Network(network::Error::Conflict { route, .. })) => {
                claims.release(&candidate);
                tracing::debug!(candidate, route, "a block of addresses is in use");
            }
            Err(error) => return Err(error).context(CANNOT),
        }
    }
    anyhow::bail!(
        "every block from 10.201.0.0/16 to 10.250.0.0/16 is in use here: choose one with `--network`"
    )
}

/// What the operator denies to instances, by family.
///
/// # Errors
/// When a block is none.
pub fn denied(settings: &tram_cli::Settings) -> anyhow::Result<(Vec<Ipv4Network>, Vec<Ipv6Net>)> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for block in &settings.denied_networks.0 {
        match block.address {
            IpAddr::V4(address) => v4.push(Ipv4Network::containing(address, block.prefix)),
            IpAddr::V6(address) => v6.push(
                Ipv6Net::new(address, block.prefix)
                    .with_context(|| format!("`{block}` is no block of addresses"))?
                    .trunc(),
            ),
        }
    }
    Ok((v4, v6))
}

fn parse(block: &str) -> anyhow::Result<Ipv4Network> {
    block
        .parse()
        .map_err(|_| anyhow::anyhow!("`{block}` is no block of addresses: write one such as `10.201.0.0/16`"))
}

fn remember(file: &Path, block: &str) -> anyhow::Result<()> {
    replace(file, &format!("{block}\n")).with_context(|| format!("cannot write {}", file.display()))
}

/// Whole or not at all, whenever the process may end.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let draft = file.with_extension("new");
    fs::write(&draft, text)?;
    fs::rename(&draft, file)
}

/// The claims of this machine's installations, locked against one another for as long as this lives.
struct Claims {
    directory: PathBuf,
    data_dir: PathBuf,
    _lock: File,
}

impl Claims {
    fn lock(directory: &Path, paths: &Paths) -> anyhow::Result<Self> {
        let cannot = || format!("cannot claim addresses in {}", directory.display());
        fs::create_dir_all(directory).with_context(cannot)?;
        let lock = File::create(directory.join("lock")).with_context(cannot)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).with_context(cannot)?;
        let data_dir = paths.root().canonicalize().with_context(cannot)?;
        Ok(Self {
            directory: directory.to_owned(),
            data_dir,
            _lock: lock,
        })
    }

    fn file(&self, block: &str) -> PathBuf {
        self.directory.join(block.replace('/', "-"))
    }

    /// The other installation that uses a block now, if one does.
    fn other_owner(&self, block: &str) -> Option<PathBuf> {
        let owner = PathBuf::from(fs::read_to_string(self.file(block)).ok()?.trim());
        (!owner.as_os_str().is_empty() && owner != self.data_dir && is_in_use(&owner)).then_some(owner)
    }

    fn claim(&self, block: &str) -> anyhow::Result<()> {
        let file = self.file(block);
        replace(&file, &self.data_dir.display().to_string())
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn release(&self, block: &str) {
        match fs::remove_file(self.file(block)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::debug!(block, %error, "a claim could not be taken back");
            }
            _ => {}
        }
    }
}

/// Whether a process works on a data directory: its control plane, or the parent of its instances.
fn is_in_use(data_dir: &Path) -> bool {
    let paths = Paths::new(data_dir);
    DirectoryLock::holder(data_dir, crate::up::LOCK_NAME).is_some()
        || DirectoryLock::holder(&paths.supervisor(), roles::LOCK_NAME).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(root: &Path, name: &str) -> Paths {
        let paths = Paths::new(&root.join(name));
        fs::create_dir_all(paths.supervisor()).unwrap();
        paths
    }

    #[test]
    fn a_block_is_another_installations_while_something_of_it_runs() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (
            installation(root.path(), "first"),
            installation(root.path(), "second"),
        );
        let claims = root.path().join("claims");
        Claims::lock(&claims, &first)
            .unwrap()
            .claim("10.201.0.0/16")
            .unwrap();
        assert_eq!(
            Claims::lock(&claims, &second)
                .unwrap()
                .other_owner("10.201.0.0/16"),
            None
        );
        let supervisor = DirectoryLock::take(&first.supervisor(), roles::LOCK_NAME)
            .unwrap()
            .unwrap();
        let seen = Claims::lock(&claims, &second)
            .unwrap()
            .other_owner("10.201.0.0/16");
        assert_eq!(seen, Some(first.root().canonicalize().unwrap()));
        assert_eq!(
            Claims::lock(&claims, &first)
                .unwrap()
                .other_owner("10.201.0.0/16"),
            None
        );
        drop(supervisor);
        assert_eq!(
            Claims::lock(&claims, &second)
                .unwrap()
                .other_owner("10.201.0.0/16"),
            None
        );
    }
}
