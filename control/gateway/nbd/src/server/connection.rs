//! One connection from its first byte to its end.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info};

use super::Shared;
use super::inlet::Inlet;
use super::negotiate::negotiate;
use super::transmit::transmit;
use crate::check::Rules;
use crate::connections::Connection;
use crate::export::{Context, Exports, Lease};

/// What a handshake led to.
pub(super) struct Entered<E> {
    pub(super) export: Arc<E>,
    pub(super) rules: Rules,
    pub(super) contexts: Vec<(u32, Context)>,
    pub(super) lease: Option<Lease>,
    pub(super) place: OwnedSemaphorePermit,
}

pub(super) async fn run<X, R, W>(
    shared: &Arc<Shared<X>>,
    reader: R,
    mut writer: W,
    connection: &Connection,
) where
    X: Exports,
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (id, peer) = (connection.id(), connection.peer());
    let mut inlet = Inlet::new(reader);
    let entered = match negotiate(shared, &mut inlet, &mut writer, connection).await {
        Ok(Some(entered)) => entered,
        Ok(None) => {
            debug!(connection = %id, %peer, "left without using an export");
            return;
        }
        Err(e) => {
            info!(connection = %id, %peer, "handshake failed: {e}");
            shared.observer.refused(connection, &e.to_string());
            return;
        }
    };
    let Entered { export, rules, contexts, lease, place } = entered;
    connection.set_style(rules.style);
    let name = connection.export_name().unwrap_or_default();
    info!(connection = %id, %peer, export = &*name, style = ?rules.style, "using an export");
    transmit(shared, inlet, writer, connection, export, rules, contexts).await;
    // A client that vanished left its requests behind. The lease covers them too. No more can enter.
    connection.gate().emptied().await;
    info!(connection = %id, %peer, export = &*name, "has left");
    drop((lease, place));
}
