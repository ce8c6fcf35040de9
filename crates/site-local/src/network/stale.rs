//! Tables of installations that are gone: a machine whose data directory was removed under a killed control plane keeps
//! its nftables table, whose rules then shut in whoever gets the same block of addresses next.
//!
//! Called once when the network opens, after it was made sure that no interface of anybody else leads into the block:
//! a table that guards the block's gateway then has nothing left to guard.

use tokio::process::Command;

use super::{Error, Ipv4Network};

/// How the names of our tables begin.
const TABLE_PREFIX: &str = "tram_";

/// Removes every table but `ours` that guards the gateway of `network`.
pub(super) async fn remove_tables(network: Ipv4Network, ours: &str) -> Result<(), Error> {
    let listed = nft(&["list", "tables", "inet"]).await?;
    let guard = format!("ip daddr {} drop", network.gateway());
    for table in listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table inet "))
    {
        if table == ours || !table.starts_with(TABLE_PREFIX) {
            continue;
        }
        // One that is being made or removed at this moment has no such chain, and is not in the way.
        let rules = nft(&["list", "chain", "inet", table, "early"])
            .await
            .unwrap_or_default();
        if rules.lines().any(|line| line.trim_end().ends_with(&guard)) {
            tracing::info!(table, %network, "removing the rules of an installation that is gone");
            nft(&["delete", "table", "inet", table]).await?;
        }
    }
    Ok(())
}

async fn nft(arguments: &[&str]) -> Result<String, Error> {
    let output = Command::new("nft")
        .args(arguments)
        .env("PATH", crate::programs::path())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| Error::Firewall {
            message: "cannot run nft: install nftables".to_owned(),
            source: Some(source),
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Firewall {
        message: format!("nft refused: {}", String::from_utf8_lossy(&output.stderr).trim()),
        source: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn make(table: &str, gateway: &str) {
        nft(&["add", "table", "inet", table]).await.unwrap();
        nft(&["add", "chain", "inet", table, "early"]).await.unwrap();
        nft(&[
            "add", "rule", "inet", table, "early", "iifname", "!=", "lo", "ip", "daddr", gateway, "drop",
        ])
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn only_tables_that_guard_the_same_gateway_go() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (ours, gone, other) = (
            format!("tram_a{id}"),
            format!("tram_b{id}"),
            format!("tram_c{id}"),
        );
        make(&ours, "10.76.0.1").await;
        make(&gone, "10.76.0.1").await;
        make(&other, "10.75.0.1").await;
        remove_tables("10.76.0.0/24".parse().unwrap(), &ours)
            .await
            .unwrap();
        let left = nft(&["list", "tables", "inet"]).await.unwrap();
        assert!(left.contains(&ours) && left.contains(&other), "{left}");
        assert!(!left.contains(&gone), "{left}");
        for table in [ours, other] {
            nft(&["delete", "table", "inet", &table]).await.unwrap();
        }
    }
}
