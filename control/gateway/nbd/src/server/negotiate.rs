//! The handshake of one connection: moves bytes, asks the exports, keeps the time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tracing::error;

use super::Shared;
use super::connection::Entered;
use super::inlet::Inlet;
use crate::check::Rules;
use crate::connections::{Connection, Phase};
use crate::export::{Export, ExportInfo, Exports, OpenRequest, Opened, Purpose, Refusal};
use crate::handshake::HandshakeError;
use crate::handshake::server::{Negotiated, Question, ServerHandshake, Step};

/// Why a handshake led to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum NegotiateError {
    /// The client broke the protocol, or could not be refused otherwise.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The stream broke, or the client hung up.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client took too long.
    #[error("not finished in time")]
    TimedOut,
    /// The server hung up: too many handshakes, or it is being shut down.
    #[error("ended by the server")]
    Ended,
}

/// How long the client is still waited for.
struct Patience<'a, X> {
    shared: &'a Shared<X>,
    connection: &'a Connection,
    left: Duration,
}

impl<X> Patience<'_, X> {
    async fn wait<T>(
        &mut self,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, NegotiateError> {
        let _waiting = self.shared.wait_for_client(self.connection);
        let begun = Instant::now();
        let result = tokio::select! {
            biased;
            () = self.connection.reached(Phase::Draining) => Err(NegotiateError::Ended),
            result = timeout(self.left, work) => match result {
                Ok(result) => result.map_err(NegotiateError::Io),
                Err(_) => Err(NegotiateError::TimedOut),
            },
        };
        self.left = self.left.saturating_sub(begun.elapsed());
        result
    }
}

/// Runs a handshake. `None` if the client left in peace.
pub(super) async fn negotiate<X, R, W>(
    shared: &Arc<Shared<X>>,
    inlet: &mut Inlet<R>,
    writer: &mut W,
    connection: &Connection,
) -> Result<Option<Entered<X::Export>>, NegotiateError>
where
    X: Exports,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let left = shared.limits.handshake_timeout;
    let mut patience = Patience { shared, connection, left };
    let mut handshake = ServerHandshake::new(shared.limits.max_options);
    patience.wait(writer.write_all(&ServerHandshake::greeting())).await?;
    loop {
        let need = handshake.need();
        patience.wait(inlet.ensure(need, left)).await?;
        let step = handshake.feed(&inlet.buffered()[..need])?;
        inlet.consume(need);
        let out = match step {
            Step::More => continue,
            Step::Send(out) => out,
            Step::Abort(out) => {
                // The client may be gone already.
                let _ = patience.wait(writer.write_all(&out)).await;
                return Ok(None);
            }
            Step::Ask(question) => match answer(shared, connection, &mut handshake, question).await
            {
                (Answer::Refused(e), _) => return Err(e.into()),
                (Answer::Reply(out), None) => out,
                (Answer::Reply(out), Some(entered)) => {
                    patience.wait(writer.write_all(&out)).await?;
                    return Ok(Some(entered));
                }
            },
        };
        patience.wait(writer.write_all(&out)).await?;
    }
}

enum Answer {
    Reply(Vec<u8>),
    Refused(HandshakeError),
}

/// Answers a question, and enters the export if that is what was asked and granted.
async fn answer<X: Exports>(
    shared: &Arc<Shared<X>>,
    connection: &Connection,
    handshake: &mut ServerHandshake,
    question: Question,
) -> (Answer, Option<Entered<X::Export>>) {
    let describe = async |name: &str| open(shared, connection, name, Purpose::Describe).await;
    let reply = match question {
        Question::List => {
            let listed = match connection.phase() {
                Phase::Serving => shared.exports.list().await,
                _ => Err(Refusal::Shutdown),
            };
            handshake.answer_list(listed.as_deref())
        }
        Question::Info(request) => {
            let found = describe(&request.name).await;
            handshake.answer_info(&request, found.as_ref().map(|(_, info)| info))
        }
        Question::Contexts { request, set } => {
            let found = describe(&request.name).await;
            handshake.answer_contexts(&request, set, found.as_ref().map(|(_, info)| info))
        }
        Question::Go(request) => {
            let found = enter(shared, connection, &request.name).await;
            let info = found.as_ref().map(|(_, _, info)| info);
            let (reply, negotiated) = handshake.answer_go(&request, info);
            let entered = found.ok().zip(negotiated).map(|(found, n)| into_entered(found, n));
            if entered.is_none() {
                connection.set_export_name(None);
            }
            return (Answer::Reply(reply), entered);
        }
        Question::ExportName(name) => {
            let found = enter(shared, connection, &name).await;
            let info = found.as_ref().map(|(_, _, info)| info);
            return match handshake.answer_export_name(&name, info) {
                Ok((reply, negotiated)) => {
                    let entered = found.ok().map(|found| into_entered(found, negotiated));
                    (Answer::Reply(reply), entered)
                }
                Err(e) => (Answer::Refused(e), None),
            };
        }
    };
    (Answer::Reply(reply), None)
}

type Found<E> = (Opened<E>, tokio::sync::OwnedSemaphorePermit, ExportInfo);

/// Opens an export to use it, if there is a place for one more connection.
async fn enter<X: Exports>(
    shared: &Arc<Shared<X>>,
    connection: &Connection,
    name: &str,
) -> Result<Found<X::Export>, Refusal> {
    let place = Arc::clone(&shared.places).try_acquire_owned().map_err(|_| {
        Refusal::Policy(format!("{} connections are the limit", shared.limits.max_connections))
    })?;
    // Seen from now on by whoever ends the connections of this export.
    connection.set_export_name(Some(name));
    let (opened, info) = open(shared, connection, name, Purpose::Serve).await?;
    Ok((opened, place, info))
}

async fn open<X: Exports>(
    shared: &Arc<Shared<X>>,
    connection: &Connection,
    name: &str,
    purpose: Purpose,
) -> Result<(Opened<X::Export>, ExportInfo), Refusal> {
    if connection.phase() != Phase::Serving {
        return Err(Refusal::Shutdown);
    }
    let request = OpenRequest { name, purpose, connection, connections: &shared.connections };
    let opened = shared.exports.open(request).await?;
    if connection.phase() != Phase::Serving {
        return Err(Refusal::Shutdown);
    }
    let mut info = opened.export.info();
    info.features.read_only |= opened.read_only;
    let sizes = info.block_sizes;
    if !sizes.is_legal() || !info.size.is_multiple_of(sizes.minimum.into()) {
        error!(export = name, ?info, "export with illegal sizes");
        return Err(Refusal::Failed("the export has illegal sizes".to_owned()));
    }
    Ok((opened, info))
}

fn into_entered<E: Export>((opened, place, info): Found<E>, negotiated: Negotiated) -> Entered<E> {
    let rules = Rules {
        style: negotiated.style,
        features: info.features,
        block_sizes: info.block_sizes,
        has_contexts: !negotiated.contexts.is_empty(),
    };
    let Opened { export, lease, .. } = opened;
    Entered { export, rules, contexts: negotiated.contexts, lease, place }
}
