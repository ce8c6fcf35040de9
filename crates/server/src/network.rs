//! Which block of addresses the instances of this machine get.
//!
//! The operator may say; else the first block that the machine has no route into is taken and remembered, so that
//! every later start uses the same.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use tram_image::ImageStore;
use tram_site_local::{Config, Ipv4Network, LocalSite, OpenError, network};

/// Where the choice is remembered, in the site's directory.
const REMEMBERED: &str = "network";
/// The blocks that are tried, `10.<n>.0.0/16`: private, and rarely used by anybody else.
const BLOCKS: std::ops::RangeInclusive<u8> = 201..=250;

/// Opens this machine as a site with the addresses that were chosen.
///
/// # Errors
/// With what is wrong, for the user.
pub async fn open_site(
    mut config: Config,
    images: ImageStore,
    chosen: &str,
) -> anyhow::Result<Arc<LocalSite>> {
    const CANNOT: &str = "cannot use this machine as a site: `tram doctor` looks deeper";
    let file = config.state_dir.join(REMEMBERED);
    let remembered = std::fs::read_to_string(&file).ok();
    let fixed = if chosen.is_empty() {
        remembered.as_deref().map(str::trim)
    } else {
        Some(chosen)
    };
    if let Some(fixed) = fixed {
        config.network.addresses = parse(fixed)?;
        let site = LocalSite::open(config, images).await.context(CANNOT)?;
        remember(&file, fixed)?;
        return Ok(site);
    }
    for block in BLOCKS {
        let candidate = format!("10.{block}.0.0/16");
        config.network.addresses = parse(&candidate)?;
        match LocalSite::open(config.clone(), images.clone()).await {
            Ok(site) => {
                remember(&file, &candidate)?;
                return Ok(site);
            }
            Err(OpenError::Network(network::Error::Conflict { route, .. })) => {
                tracing::debug!(candidate, route, "a block of addresses is in use");
            }
            Err(error) => return Err(error).context(CANNOT),
        }
    }
    anyhow::bail!(
        "every block from 10.201.0.0/16 to 10.250.0.0/16 is in use here: choose one with `--network`"
    )
}

fn parse(block: &str) -> anyhow::Result<Ipv4Network> {
    block
        .parse()
        .map_err(|_| anyhow::anyhow!("`{block}` is no block of addresses: write one such as `10.201.0.0/16`"))
}

fn remember(file: &Path, block: &str) -> anyhow::Result<()> {
    std::fs::write(file, format!("{block}\n")).with_context(|| format!("cannot write {}", file.display()))
}
