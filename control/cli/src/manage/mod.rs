//! Verbs that manage objects through culvertd: `culvert port add`, `culvert vnet set`, and so on.
//!
//! One module per kind says which flags make an object ([`Fields`]) and what names one ([`Keys`]); what
//! happens with it is the same for all and stands here. An object is read, changed and put back only if
//! nobody changed it meanwhile. While the store cannot be reached, it is read as the queue will leave it.

mod commit;
mod difference;
pub(crate) mod format;
pub(crate) mod host;
pub(crate) mod port;
pub(crate) mod queue;
pub(crate) mod rules;
mod shard;
pub(crate) mod values;
pub(crate) mod vnet;

use std::time::Duration;

use clap::Subcommand;
use culvert_model::{Edit, Object, ObjectKey, api};
use serde::Serialize;

pub(crate) use self::commit::{How, commit, committed, queued, waiting, would_be};
use crate::args::{Args, Output};
use crate::client::{Daemon, not_understood};
use crate::error::{CliError, hint};
use crate::objects;
use crate::output::{print, print_value, table};

/// What the flags say of an object.
pub(crate) trait Fields: clap::Args + Clone {
    const KIND: api::ObjectKind;
    fn key(&self) -> ObjectKey;
    /// The object with what the flags say; a new one where there is none before.
    fn onto(self, before: Option<Object>) -> Result<Object, CliError>;
}

/// What names objects.
pub(crate) trait Keys: clap::Args {
    fn keys(&self) -> Vec<ObjectKey>;
}

/// What one can do with objects of a kind.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb<F: clap::Args, K: clap::Args> {
    /// Make one that is not there yet.
    Add(Put<F>),
    /// Change what the flags say of one, and leave the rest.
    Set(Put<F>),
    /// Delete.
    Del(Delete<K>),
    /// Show them, with what became of each on this host.
    Show(List),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Put<F: clap::Args> {
    #[command(flatten)]
    fields: F,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete<K: clap::Args> {
    #[command(flatten)]
    keys: K,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only the object of this name, as the first columns show it.
    name: Option<String>,
    /// Those of other hosts too.
    #[arg(long)]
    all_hosts: bool,
}

pub(crate) async fn run<F: Fields, K: Keys>(
    args: &Args,
    verb: &Verb<F, K>,
) -> Result<(), CliError> {
    let mut daemon = Daemon::connect(args).await?;
    match verb {
        Verb::Add(put) => self::put(args, &mut daemon, put, true).await,
        Verb::Set(put) => self::put(args, &mut daemon, put, false).await,
        Verb::Del(delete) => {
            let edits =
                delete.keys.keys().into_iter().filter_map(Edit::deleting).collect::<Vec<_>>();
            commit(args, &mut daemon, &edits, &delete.how, Vec::new()).await
        }
        Verb::Show(list) => show(args, &mut daemon, F::KIND, list).await,
    }
}

/// How often a change is tried that others are in the way of.
const ATTEMPTS: u32 = 5;
/// Before the second of them; longer before each later one.
const PAUSE: Duration = Duration::from_millis(20);

async fn put<F: Fields>(
    args: &Args,
    daemon: &mut Daemon,
    put: &Put<F>,
    new: bool,
) -> Result<(), CliError> {
    let key = put.fields.key();
    edit(args, daemon, (F::KIND, &key), &put.how, |before| {
        if new && before.is_some() {
            let section = key.section().name();
            return Err(CliError::Usage(format!(
                "{key}: there already; `culvert {section} set` changes it"
            )));
        }
        if !new && before.is_none() {
            return Ok(None);
        }
        Ok(Some(Edit::from(put.fields.clone().onto(before)?)))
    })
    .await
}

/// Makes the edit that follows from an object as it is, and makes it anew where that changes meanwhile. No edit
/// follows where it would have to be there and is not.
async fn edit(
    args: &Args,
    daemon: &mut Daemon,
    (kind, key): (api::ObjectKind, &ObjectKey),
    how: &How,
    make: impl Fn(Option<Object>) -> Result<Option<Edit>, CliError>,
) -> Result<(), CliError> {
    let mut attempt = 1;
    loop {
        let keys = vec![key.into()];
        let request =
            api::ListObjectsRequest { keys, ahead: how.may_queue(), ..Default::default() };
        let found = known(daemon, request).await?.pop();
        let expected =
            api::ExpectedObject { key: Some(key.into()), object: found.as_ref().map(Into::into) };
        let Some(edit) = make(found)? else {
            return Err(absent(daemon, kind, key).await);
        };
        match commit(args, daemon, &[edit], how, vec![expected]).await {
            Err(CliError::Outrun(_)) if attempt < ATTEMPTS => {}
            done => return done,
        }
        tokio::time::sleep(PAUSE * attempt).await;
        attempt += 1;
    }
}

/// Objects as they were written, or will be when the queue is.
async fn known(
    daemon: &mut Daemon,
    request: api::ListObjectsRequest,
) -> Result<Vec<Object>, CliError> {
    let answer = daemon.calls.list_objects(request).await;
    let objects = daemon.answer(answer)?.objects.into_iter().filter_map(|listed| listed.object);
    let objects = objects.map(Object::try_from).collect::<Result<_, _>>();
    objects.map_err(|errors| not_understood(&errors))
}

async fn absent(daemon: &mut Daemon, kind: api::ObjectKind, key: &ObjectKey) -> CliError {
    let section = key.section().name();
    let request = api::ListObjectsRequest { kind: kind.into(), ahead: true, ..Default::default() };
    // For the hint only.
    let there = known(daemon, request).await.unwrap_or_default();
    let names: Vec<_> = there.iter().map(|object| object.key().name()).collect();
    let meant = hint(&key.name(), names.iter().map(String::as_str));
    CliError::Usage(format!("{key}: not there; `culvert {section} add` makes one{meant}"))
}

/// A value that a new object cannot be without.
pub(crate) fn needed<T>(value: Option<T>, flag: &str, legal: &str) -> Result<T, CliError> {
    value.ok_or_else(|| CliError::Usage(format!("{flag}: missing for a new one; legal is {legal}")))
}

/// One object with what became of it.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    object: objects::Object,
    /// Absent: it belongs to the whole cluster.
    host: Option<String>,
    status: &'static str,
    reason: String,
    /// Present for a mapping that follows from a port of this host.
    derived_from: Option<String>,
}

async fn show(
    args: &Args,
    daemon: &mut Daemon,
    kind: api::ObjectKind,
    list: &List,
) -> Result<(), CliError> {
    let request = api::ListObjectsRequest {
        kind: kind.into(),
        all_hosts: list.all_hosts,
        derived: kind == api::ObjectKind::Mapping,
        ..Default::default()
    };
    let answer = daemon.calls.list_objects(request).await;
    let answer = daemon.answer(answer)?;
    if !answer.incomplete.is_empty() {
        eprintln!("culvert: warning: only what this host follows is shown: {}", answer.incomplete);
    }
    let mut all = Vec::new();
    let mut names = Vec::new();
    for listed in answer.objects {
        let status = status_name(listed.status());
        let Some(object) = listed.object else { continue };
        let object = Object::try_from(object).map_err(|errors| not_understood(&errors))?;
        let name = object.key().name();
        if list.name.as_ref().is_none_or(|wanted| *wanted == name) {
            let given = |text: String| (!text.is_empty()).then_some(text);
            all.push(Listed {
                object: (&object).into(),
                host: given(listed.host),
                status,
                reason: listed.reason,
                derived_from: given(listed.derived_from),
            });
        }
        names.push(name);
    }
    if let (Some(wanted), true) = (&list.name, all.is_empty()) {
        let meant = hint(wanted, names.iter().map(String::as_str));
        return Err(CliError::Usage(format!("{wanted:?}: not there{meant}")));
    }
    match args.output {
        Output::Table => print(&listed_table(&all, list.all_hosts)),
        output => print_value(output, &all),
    }
}

fn listed_table(all: &[Listed], hosts: bool) -> String {
    let Some(first) = all.first() else { return "none".to_owned() };
    let mut headers = first.object.headers().to_vec();
    if hosts {
        headers.push("host");
    }
    headers.extend(["status", "notes"]);
    let row = |listed: &Listed| {
        let mut cells = listed.object.cells();
        if hosts {
            cells.push(listed.host.clone().unwrap_or_else(|| "-".to_owned()));
        }
        let derived = listed.derived_from.as_ref().map(|host| format!("follows from host {host}"));
        let notes = [Some(listed.reason.clone()).filter(|text| !text.is_empty()), derived];
        cells.push(listed.status.to_owned());
        cells.push(notes.into_iter().flatten().collect::<Vec<_>>().join("; "));
        cells
    };
    table(&headers, all.iter().map(row).collect())
}

pub(crate) fn status_name(status: api::ApplyStatus) -> &'static str {
    match status {
        api::ApplyStatus::Applied => "applied",
        api::ApplyStatus::Pending => "pending",
        api::ApplyStatus::Failed => "failed",
        api::ApplyStatus::Elsewhere => "elsewhere",
        api::ApplyStatus::Unspecified => "unknown",
    }
}
