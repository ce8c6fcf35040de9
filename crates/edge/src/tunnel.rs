//! Two connections tied together after an upgrade: WebSockets and whatever else answers 101. TCP keep-alive finds the
//! dead.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;

use crate::pipeline::Exchange;
use crate::relay::relay;

/// Copies both ways until both sides have closed. The exchange, and with it the service's place, lasts as long.
pub(crate) fn splice(
    open: &TaskTracker,
    client: OnUpgrade,
    instance: OnUpgrade,
    mut exchange: Box<Exchange>,
) {
    let passed = exchange.become_tunnel();
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
        match relay(TokioIo::new(client), TokioIo::new(instance), &passed).await {
            Ok(()) => exchange.tunnel_closed(),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "a tunnel broke"),
        }
    });
}
