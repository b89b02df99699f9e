//! `culvert show`.

mod actual;
pub(crate) mod shards;

use culvert_model::{Host, api, host_toml};
use serde::Serialize;

use self::actual::{Device, Feature, Info, PortStatus, Worker};
use self::shards::Shards;
use crate::args::{Args, Output, Show, What};
use crate::client::Client;
use crate::error::CliError;
use crate::objects::{self, Row, WholeState};
use crate::output::{joined, or_dash, print, print_value, table};

pub(crate) async fn run(args: &Args, show: &Show) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    match show.what {
        What::Ports => {
            let answer = client.calls.list_ports(api::ListPortsRequest {}).await;
            let ports = client.answer(answer)?.ports.into_iter().map(PortStatus::from);
            rows(args.output, &ports.collect::<Vec<_>>())
        }
        What::Shards => {
            let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
            let shards = client.answer(answer)?.shards.into_iter().map(Shards::from);
            rows(args.output, &shards.collect::<Vec<_>>())
        }
        What::Info => info(args.output, info_of(&mut client).await?.into()),
        What::Underlay => {
            let info = info_of(&mut client).await?;
            let devices = info.underlay.into_iter().map(Device::from).collect();
            underlay(args.output, client.host().await?.as_ref(), devices)
        }
        What::Host => match (client.host().await?, show.show_keys) {
            (None, _) => Err(CliError::Other("no state was applied yet".to_owned())),
            (Some(host), with_keys) => whole(args.output, &host, with_keys),
        },
        // Without a state, these lists are empty.
        What::Vnets => rows(args.output, &list(client.host().await?.as_ref(), objects::vnets)),
        What::Routes => rows(args.output, &list(client.host().await?.as_ref(), objects::routes)),
        What::Mappings => {
            rows(args.output, &list(client.host().await?.as_ref(), objects::mappings))
        }
        What::Ingress => rows(args.output, &list(client.host().await?.as_ref(), objects::ingress)),
        What::Acls => acls(args.output, client.host().await?.as_ref()),
    }
}

/// The whole state.
pub(crate) fn whole(output: Output, host: &Host, with_keys: bool) -> Result<(), CliError> {
    match (output, with_keys) {
        (Output::Table, false) => print(host_toml::to_toml(host).trim_end()),
        (Output::Table, true) => print(host_toml::to_toml_with_keys(host).trim_end()),
        (output, false) => print_value(output, &WholeState::from(host)),
        (output, true) => print_value(output, &WholeState::with_keys(host)),
    }
}

async fn info_of(client: &mut Client) -> Result<api::Info, CliError> {
    let answer = client.calls.get_info(api::GetInfoRequest {}).await;
    client.answer(answer)
}

fn list<T>(host: Option<&Host>, of: impl Fn(&Host) -> Vec<T>) -> Vec<T> {
    host.map(of).unwrap_or_default()
}

fn rows<T: Row>(output: Output, items: &[T]) -> Result<(), CliError> {
    match output {
        Output::Table => print(&table(T::HEADERS, items.iter().map(Row::cells).collect())),
        output => print_value(output, &items),
    }
}

/// One object per group of JSON, one row per rule of the table.
fn acls(output: Output, host: Option<&Host>) -> Result<(), CliError> {
    match output {
        Output::Table => rows(output, &list(host, objects::acl_rows)),
        output => print_value(output, &list(host, objects::acls)),
    }
}

fn underlay(output: Output, host: Option<&Host>, devices: Vec<Device>) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Underlay {
        /// Absent before the first accepted state.
        wanted: Option<objects::Underlay>,
        devices: Vec<Device>,
    }
    let wanted = host.map(|host| objects::Underlay::from(host.underlay()));
    if output != Output::Table {
        return print_value(output, &Underlay { wanted, devices });
    }
    if let Some(wanted) = &wanted {
        let objects::Underlay { addresses, mtu, mode, rx, tx, .. } = wanted;
        let (addresses, mtu) = (joined(addresses), or_dash(*mtu));
        let ways = format!("mode {mode}; rx {rx}; tx {tx}");
        print(&format!("wanted: addresses {addresses}; mtu {mtu}; {ways}\n"))?;
    }
    rows(output, &devices)
}

fn info(output: Output, info: Info) -> Result<(), CliError> {
    if output != Output::Table {
        return print_value(output, &info);
    }
    let Info { instance_id, version, generation, features, underlay, workers } = info;
    print(&format!(
        "culvert-dataplane {version}, instance {instance_id}, generation {generation}\n"
    ))?;
    let worker = |worker: Worker| vec![worker.index.to_string(), or_dash(worker.cpu)];
    print(&table(&["#worker", "#cpu"], workers.into_iter().map(worker).collect()))?;
    print("")?;
    rows(output, &underlay)?;
    print("")?;
    let feature = |feature: Feature| {
        let available = if feature.available { "yes" } else { "no" };
        vec![feature.name, available.to_owned(), feature.reason]
    };
    print(&table(
        &["kernel feature", "there", "notes"],
        features.into_iter().map(feature).collect(),
    ))
}
