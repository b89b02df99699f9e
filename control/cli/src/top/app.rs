//! What is shown, and how keys change it.

use std::collections::{HashMap, VecDeque};

use culvert_model::api;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::rates::{PortRates, Rates};

/// Looks that the sparkline goes back.
pub(super) const HISTORY: usize = 60;

/// What the lower part shows.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Flows,
    Drops,
}

/// What ports and flows are sorted by.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Bytes,
    Packets,
    Drops,
    Name,
}

impl Sort {
    const ALL: [Sort; 4] = [Sort::Bytes, Sort::Packets, Sort::Drops, Sort::Name];

    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Bytes => "bytes",
            Sort::Packets => "packets",
            Sort::Drops => "drops",
            Sort::Name => "name",
        }
    }
}

/// A flow, as it is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FlowRow {
    /// Where it comes from and goes to.
    pub(super) from: String,
    pub(super) name: String,
    pub(super) packets_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) drops_per_s: f64,
    pub(super) reason: String,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct App {
    rates: Rates,
    flows: Vec<FlowRow>,
    /// Flows that are not told one by one.
    pub(super) other: FlowRow,
    /// Bytes per second of each port, the latest last.
    history: HashMap<String, VecDeque<u64>>,
    pub(super) pane: Pane,
    pub(super) sort: Sort,
    reversed: bool,
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) selected: usize,
}

impl App {
    /// Takes new figures of ports.
    pub(super) fn take(&mut self, rates: Rates) {
        if self.paused {
            return;
        }
        for port in &rates.ports {
            let history = self.history.entry(name(port)).or_default();
            history.push_back((port.rx_bytes_per_s + port.tx_bytes_per_s) as u64);
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
        self.history.retain(|id, _| rates.ports.iter().any(|port| name(port) == *id));
        self.rates = rates;
        self.selected = self.selected.min(self.ports().len().saturating_sub(1));
    }

    /// Takes new figures of flows.
    pub(super) fn take_flows(&mut self, report: api::FlowReport) {
        if self.paused {
            return;
        }
        let seconds = (report.elapsed_ns as f64 / 1e9).max(1e-6);
        self.flows = report.flows.iter().map(|flow| row(flow, seconds)).collect();
        self.other = row(&report.other.unwrap_or_default(), seconds);
    }

    /// Obeys a key; true ends.
    pub(super) fn obey(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return true;
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => {
                    self.typing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) if self.filter.len() < 64 => self.filter.push(c),
                _ => {}
            }
            return false;
        }
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return true,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Char('s') => {
                let at = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or(0);
                self.sort = Sort::ALL[(at + 1) % Sort::ALL.len()];
            }
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('/' | 'f') => self.typing = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Tab | KeyCode::Char('d') => {
                self.pane = match self.pane {
                    Pane::Flows => Pane::Drops,
                    Pane::Drops => Pane::Flows,
                };
            }
            KeyCode::Down | KeyCode::Char('j') => {
                self.selected = (self.selected + 1).min(self.ports().len().saturating_sub(1));
            }
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            _ => {}
        }
        false
    }

    fn fits(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// The ports that are shown, in order.
    pub(super) fn ports(&self) -> Vec<&PortRates> {
        let fits = |port: &&PortRates| {
            self.fits(&name(port)) || port.drops.iter().any(|drop| self.fits(&drop.reason))
        };
        let mut ports: Vec<_> = self.rates.ports.iter().filter(fits).collect();
        ports.sort_by(|a, b| {
            let by = |of: &dyn Fn(&PortRates) -> f64| of(b).total_cmp(&of(a));
            let order = match self.sort {
                Sort::Bytes => by(&|port| port.rx_bytes_per_s + port.tx_bytes_per_s),
                Sort::Packets => by(&|port| port.rx_packets_per_s + port.tx_packets_per_s),
                Sort::Drops => by(&|port| port.dropped_per_s),
                Sort::Name => name(a).cmp(&name(b)),
            };
            order.then_with(|| name(a).cmp(&name(b)))
        });
        if self.reversed {
            ports.reverse();
        }
        ports
    }

    /// The flows that are shown, in order.
    pub(super) fn flows(&self) -> Vec<&FlowRow> {
        let fits = |flow: &&FlowRow| {
            self.fits(&flow.from) || self.fits(&flow.name) || self.fits(&flow.reason)
        };
        let mut flows: Vec<_> = self.flows.iter().filter(fits).collect();
        flows.sort_by(|a, b| {
            let order = match self.sort {
                Sort::Bytes => b.bytes_per_s.total_cmp(&a.bytes_per_s),
                Sort::Packets => b.packets_per_s.total_cmp(&a.packets_per_s),
                Sort::Drops => b.drops_per_s.total_cmp(&a.drops_per_s),
                Sort::Name => a.name.cmp(&b.name),
            };
            order.then_with(|| (&a.from, &a.name).cmp(&(&b.from, &b.name)))
        });
        if self.reversed {
            flows.reverse();
        }
        flows
    }

    /// What is dropped: port, reason, packets per second.
    pub(super) fn drops(&self) -> Vec<(String, String, f64)> {
        let each = |port: &PortRates| {
            let port_name = name(port);
            let drops = port.drops.clone().into_iter();
            drops.map(move |drop| (port_name.clone(), drop.reason, drop.packets_per_s))
        };
        let mut drops: Vec<_> = self.rates.ports.iter().flat_map(each).collect();
        drops.retain(|(port, reason, _)| self.fits(port) || self.fits(reason));
        drops.sort_by(|a, b| b.2.total_cmp(&a.2));
        drops
    }

    /// What the sparkline of a port shows: its bytes per second.
    pub(super) fn history(&self, port: &PortRates) -> Vec<u64> {
        self.history.get(&name(port)).map(|all| all.iter().copied().collect()).unwrap_or_default()
    }
}

/// A port's name.
pub(super) fn name(port: &PortRates) -> String {
    port.id.clone().unwrap_or_else(|| "(underlay)".to_owned())
}

fn row(flow: &api::Flow, seconds: f64) -> FlowRow {
    let from = match (flow.port.as_str(), flow.vtep.as_str()) {
        ("", "") => "-".to_owned(),
        ("", vtep) => match flow.to_port.as_str() {
            "" => format!("{vtep} vni {}", flow.vni),
            port => format!("{vtep} > {port}"),
        },
        (port, _) => port.to_owned(),
    };
    let end = |ip: &str, port: u32| match (ip.contains(':'), port) {
        (_, 0) => ip.to_owned(),
        (true, port) => format!("[{ip}]:{port}"),
        (false, port) => format!("{ip}:{port}"),
    };
    let protocol = match flow.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        other => format!("protocol {other}"),
    };
    let name = match (flow.source.is_empty(), flow.ether_type) {
        (true, 0) => String::new(),
        (true, 0x0806) => "arp".to_owned(),
        (true, ether_type) => format!("ethertype {ether_type:#06x}"),
        (false, _) => {
            let source = end(&flow.source, flow.source_port);
            let destination = end(&flow.destination, flow.destination_port);
            format!("{protocol} {source} > {destination}")
        }
    };
    FlowRow {
        from,
        name,
        packets_per_s: flow.packets as f64 / seconds,
        bytes_per_s: flow.bytes as f64 / seconds,
        drops_per_s: flow.drops as f64 / seconds,
        reason: flow.drop_reason.clone(),
    }
}
