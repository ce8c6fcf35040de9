//! A control plane that is killed: opens the site, starts the instances it reads from its input, and stays.
//!
//! For the tests of this crate, which end it with `kill -9` at different moments and look what the next one finds.

use std::io::{BufRead, Write};

use tram_image::{ImageStore, Settings};
use tram_site::{InstanceSpec, Site};
use tram_site_local::{Config, LocalSite};
use tram_types::Generation;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(state), Some(images), Some(network)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: local-starter STATE_DIR IMAGES_DIR NETWORK".into());
    };
    let mut config = Config::new(state);
    config.network.addresses = network.parse()?;
    config.network.pool = 2;
    let site = LocalSite::open(config, ImageStore::open(images, Settings::default())?).await?;
    writeln!(std::io::stdout(), "open")?;
    for line in std::io::stdin().lock().lines() {
        let spec: InstanceSpec = serde_json::from_str(&line?)?;
        site.start(&spec, Generation(1)).await?;
    }
    std::future::pending().await
}
