//! Two connections tied together after an upgrade: WebSockets and whatever else answers 101. No limit on silence:
//! a WebSocket may wait for days; TCP keep-alive finds the dead.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;

use crate::pipeline::Exchange;

/// Copies both ways until both sides have closed. The exchange, and with it the service's place, lasts as long.
pub(crate) fn splice(
    open: &TaskTracker,
    client: OnUpgrade,
    instance: OnUpgrade,
    mut exchange: Box<Exchange>,
) {
    open.spawn(async move {
        let (client, instance) = match tokio::try_join!(client, instance) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "an upgrade came to nothing"
                );
                return;
            }
        };
        let (mut client, mut instance) = (TokioIo::new(client), TokioIo::new(instance));
        match tokio::io::copy_bidirectional(&mut client, &mut instance).await {
            Ok((from_client, to_client)) => exchange.add_tunnel_bytes(from_client, to_client),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "a tunnel broke"),
        }
    });
}
