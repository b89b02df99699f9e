//! What many ports and many mappings cost: to apply, to change by one, in memory, and in packets a second.

use std::fmt;
use std::time::{Duration, Instant};

use culvert_model::api::edit::Edit;
use culvert_model::api::{self, State};
use culvert_tests::crowd::{mapping, port, route, route_key};
use culvert_tests::{Combo, Crowd, Rpc, Topology, TopologySpec};
use hdrhistogram::Histogram;

use crate::overlay::measure::packets_per_second;

mod control;
mod memory;

use control::Through;
use memory::Memory;

/// Idle ports beside which the packet rate is taken to be that of a host with few.
const FEW: usize = 10;

/// Sockets of ports that went are closed behind the change, so not while packets are counted, nor before their
/// devices are attached again.
const SETTLE: Duration = Duration::from_secs(2);

/// Bytes of payload of each datagram of the flood.
const FLOOD_SIZE: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds of each measurement of packets.
    #[arg(long, default_value_t = 1)]
    secs: u64,
    /// Idle ports.
    #[arg(long, default_value_t = Crowd::FULL.ports)]
    ports: usize,
    /// Mappings.
    #[arg(long, default_value_t = Crowd::FULL.mappings)]
    mappings: usize,
    /// How often packets are counted beside few ports and beside many.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Changes of each kind whose time is taken.
    #[arg(long, default_value_t = 200)]
    changes: usize,
}

/// A state with so much beside what the tenants that talk need.
fn with(base: &State, topology: &Topology, ports: usize, mappings: usize) -> State {
    let mut state = base.clone();
    Crowd { ports, mappings }.add_to(&mut state, topology.hosts[1].vtep);
    state
}

fn applied(rpc: &mut Rpc, state: State) -> Result<Duration, String> {
    let start = Instant::now();
    rpc.replace(state).map_err(|e| Rpc::reason(&e))?;
    Ok(start.elapsed())
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let crowd = Crowd { ports: args.ports, mappings: args.mappings };
    crowd.add_links(&topology.hosts[0].ns, &topology.scratch);
    let mut rpc = Rpc::connect(topology.dataplane(0).socket());
    let (base, _) = rpc.state();

    println!("| what | result |\n|---|---|");
    // First ports, then mappings, so that the memory of each can be told.
    let before = Memory::now(&mut topology)?;
    let ports_took = applied(&mut rpc, with(&base, &topology, args.ports, 0))?;
    let after_ports = Memory::now(&mut topology)?;
    let mappings_took = applied(&mut rpc, with(&base, &topology, args.ports, args.mappings))?;
    let after_mappings = Memory::now(&mut topology)?;
    let (ports, mappings) = (args.ports, args.mappings);
    println!("| {ports} ports beside one | {:.2} s |", ports_took.as_secs_f64());
    println!(
        "| {mappings} mappings beside them, as a whole state | {:.2} s |",
        mappings_took.as_secs_f64()
    );
    println!("| memory of a port | {} |", after_ports.since(&before).per(ports));
    println!("| memory of a mapping | {} |", after_mappings.since(&after_ports).per(mappings));

    for (name, there, back) in kinds(args, &topology) {
        let mut times = Times::new()?;
        for n in 0..args.changes {
            times.take(&mut rpc, there(n))?;
            times.take(&mut rpc, back(n))?;
        }
        println!("| one change, {name} | {times} |");
    }
    let (mut detached, mut attached) = (Times::new()?, Times::new()?);
    for n in 0..args.changes.min(args.ports) {
        detached.take(&mut rpc, Edit::DeletePort(port(n).id))?;
    }
    std::thread::sleep(SETTLE);
    for n in 0..args.changes.min(args.ports) {
        attached.take(&mut rpc, Edit::PutPort(port(n)))?;
    }
    println!("| one change, port detached | {detached} |");
    println!("| one change, port attached | {attached} |");
    let mut again = Times::new()?;
    for n in 0..args.changes.min(args.ports) {
        rpc.edit(Edit::DeletePort(port(n).id)).map_err(|e| Rpc::reason(&e))?;
        again.take(&mut rpc, Edit::PutPort(port(n)))?;
    }
    println!("| a port attached whose device was detached just before | {again} |");

    let all = with(&base, &topology, args.ports, args.mappings);
    let (mut through, took) = Through::start(&topology, all)?;
    println!("| all of it given to culvertd | {:.2} s |", took.as_secs_f64());
    let mut times = Times::new()?;
    for n in 0..args.changes {
        let mapping = mapping(args.mappings + n, topology.hosts[1].vtep);
        times.record(through.mapping(mapping.clone(), true)?)?;
        times.record(through.mapping(mapping, false)?)?;
    }
    println!("| one change, mapping, durable in culvertd and carried | {times} |");
    drop(through);

    let rates = rates(args, &topology, &mut rpc, &base)?;
    let (few, many) = (mean(rates.iter().map(|r| r[0])), mean(rates.iter().map(|r| r[1])));
    println!("| packets a second beside {FEW} idle ports | {few:.0} |");
    let each: Vec<_> =
        rates.iter().map(|[few, many]| format!("{:.1}", many / few * 100.0)).collect();
    println!(
        "| packets a second beside {} | {many:.0}: {:.1} % (by rounds: {}) |",
        args.ports,
        many / few * 100.0,
        each.join(", ")
    );

    // All at once, by a process that has nothing yet.
    let all = with(&base, &topology, args.ports, args.mappings);
    restart(&mut topology)?;
    let mut rpc = Rpc::connect(topology.dataplane(0).socket());
    println!("| all at once, after a start | {:.2} s |", applied(&mut rpc, all)?.as_secs_f64());
    Ok(())
}

/// Packets a second beside few idle ports and beside many, by rounds. The two take turns, and so does which is
/// first: what else the machine does meets both alike.
fn rates(
    args: &Args,
    topology: &Topology,
    rpc: &mut Rpc,
    base: &State,
) -> Result<Vec<[f64; 2]>, String> {
    let time = Duration::from_secs(args.secs);
    let mut rates = Vec::new();
    for round in 0..args.rounds {
        let mut both = [0.0; 2];
        for turn in [round % 2, (round + 1) % 2] {
            let ports = [FEW, args.ports][turn];
            applied(rpc, with(base, topology, ports, args.mappings))?;
            topology.wait_connected(0, 1);
            std::thread::sleep(SETTLE);
            let measured = packets_per_second(topology, FLOOD_SIZE, time);
            both[turn] = measured.map_err(|e| e.to_string())?;
        }
        rates.push(both);
    }
    Ok(rates)
}

#[expect(clippy::cast_precision_loss, reason = "a few rounds")]
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}

type Change = Box<dyn Fn(usize) -> Edit>;

/// Changes of one object and what takes them back, for the n-th time.
fn kinds(args: &Args, topology: &Topology) -> Vec<(&'static str, Change, Change)> {
    let (ports, first, vtep) = (args.ports.max(1), args.mappings, topology.hosts[1].vtep);
    let key = move |n| {
        let api::Mapping { vnet, ip, .. } = mapping(first + n, vtep);
        api::MappingKey { vnet, ip }
    };
    vec![
        (
            "mapping",
            Box::new(move |n| Edit::PutMapping(mapping(first + n, vtep))),
            Box::new(move |n| Edit::DeleteMapping(key(n))),
        ),
        (
            "route",
            Box::new(move |n| Edit::PutRoute(route(n % ports))),
            Box::new(move |n| Edit::DeleteRoute(route_key(n % ports))),
        ),
        (
            "blocked port",
            Box::new(move |n| {
                let state = api::PortState::Blocked.into();
                Edit::PutPort(api::Port { state, ..port(n % ports) })
            }),
            Box::new(move |n| Edit::PutPort(port(n % ports))),
        ),
    ]
}

/// How long changes took, in microseconds.
struct Times(Histogram<u64>);

impl Times {
    fn new() -> Result<Times, String> {
        Histogram::new(3).map(Times).map_err(|e| e.to_string())
    }

    /// Makes a change, and takes its time.
    fn take(&mut self, rpc: &mut Rpc, edit: Edit) -> Result<(), String> {
        let start = Instant::now();
        rpc.edit(edit).map_err(|e| Rpc::reason(&e))?;
        self.record(start.elapsed())
    }

    fn record(&mut self, took: Duration) -> Result<(), String> {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.record(took).map_err(|e| e.to_string())
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
        let ms = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1e3;
        write!(f, "median {:.2} ms, p99 {:.2} ms", ms(0.5), ms(0.99))
    }
}

fn restart(topology: &mut Topology) -> Result<(), String> {
    let culvert = topology.culvert[0].as_mut().ok_or("host A runs no culvert")?;
    culvert.process().stop(Duration::from_secs(60)).ok_or("the dataplane does not stop")?;
    topology.start_culvert(0);
    Ok(())
}
