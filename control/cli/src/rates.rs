//! What moved between two looks at the counters, per second.

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_model::api;
use serde::Serialize;

/// Drops of one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DropRate {
    pub(crate) reason: String,
    pub(crate) packets_per_s: f64,
}

/// What moved at one port; without a name, at the underlay, of no port.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct PortRates {
    pub(crate) id: Option<String>,
    pub(crate) rx_packets_per_s: f64,
    pub(crate) rx_bytes_per_s: f64,
    pub(crate) tx_packets_per_s: f64,
    pub(crate) tx_bytes_per_s: f64,
    pub(crate) dropped_per_s: f64,
    pub(crate) drops: Vec<DropRate>,
}

/// What moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    pub(crate) elapsed_s: f64,
    pub(crate) ports: Vec<PortRates>,
}

impl Rates {
    /// Between two looks.
    pub(crate) fn between(before: &api::Stats, after: &api::Stats, elapsed: Duration) -> Rates {
        let seconds = elapsed.as_secs_f64().max(1e-6);
        // A port that was made anew begins with zero.
        let rate = |old: u64, new: u64| new.checked_sub(old).unwrap_or(new) as f64 / seconds;
        let drops = |old: &[api::Drop], new: &[api::Drop]| {
            let old: BTreeMap<_, _> = old.iter().map(|d| (&d.reason, d.packets)).collect();
            let mut rates: Vec<_> = new
                .iter()
                .map(|drop| DropRate {
                    reason: drop.reason.clone(),
                    packets_per_s: rate(old.get(&drop.reason).copied().unwrap_or(0), drop.packets),
                })
                .filter(|drop| drop.packets_per_s > 0.0)
                .collect();
            rates.sort_by(|a, b| b.packets_per_s.total_cmp(&a.packets_per_s));
            rates
        };
        let dropped = |drops: &[DropRate]| drops.iter().map(|drop| drop.packets_per_s).sum();
        let old: BTreeMap<_, _> = before.ports.iter().map(|port| (&port.id, port)).collect();
        let none = api::PortStats::default();
        let mut ports: Vec<_> = after
            .ports
            .iter()
            .map(|new| {
                let old = old.get(&new.id).copied().unwrap_or(&none);
                let drops = drops(&old.drops, &new.drops);
                PortRates {
                    id: Some(new.id.clone()),
                    rx_packets_per_s: rate(old.rx_packets, new.rx_packets),
                    rx_bytes_per_s: rate(old.rx_bytes, new.rx_bytes),
                    tx_packets_per_s: rate(old.tx_packets, new.tx_packets),
                    tx_bytes_per_s: rate(old.tx_bytes, new.tx_bytes),
                    dropped_per_s: dropped(&drops),
                    drops,
                }
            })
            .collect();
        let underlay = drops(&before.drops, &after.drops);
        if !underlay.is_empty() {
            let dropped_per_s = dropped(&underlay);
            ports.push(PortRates { dropped_per_s, drops: underlay, ..PortRates::default() });
        }
        Rates { elapsed_s: seconds, ports }
    }
}

/// A number of at most five characters: `999`, `12.3k`, `4.56M`.
pub(crate) fn short(value: f64) -> String {
    let mut value = value.max(0.0);
    if value < 999.5 {
        return match value {
            0.0 => "0".to_owned(),
            ..9.995 => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
            ..99.95 => format!("{value:.1}").trim_end_matches('0').trim_end_matches('.').to_owned(),
            _ => format!("{value:.0}"),
        };
    }
    for unit in ["k", "M", "G", "T", "P"] {
        value /= 1000.0;
        if value < 999.5 || unit == "P" {
            return match value {
                ..9.995 => format!("{value:.2}{unit}"),
                ..99.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
    }
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(rx: u64, drops: u64) -> api::PortStats {
        let drop = |reason: &str, packets| api::Drop { reason: reason.into(), packets };
        api::PortStats {
            id: "a1".into(),
            rx_packets: rx,
            rx_bytes: rx * 100,
            drops: vec![drop("no_route", drops), drop("malformed", 7)],
            ..api::PortStats::default()
        }
    }

    #[test]
    fn rates_are_what_moved_by_the_time() {
        let stats = |port| api::Stats { ports: vec![port], ..api::Stats::default() };
        let (before, after) = (stats(port(10, 1)), stats(port(30, 5)));
        let rates = Rates::between(&before, &after, Duration::from_secs(2));
        let port = &rates.ports[0];
        assert_eq!((port.rx_packets_per_s, port.rx_bytes_per_s), (10.0, 1000.0));
        assert_eq!(port.dropped_per_s, 2.0);
        assert_eq!(port.drops.len(), 1, "what does not move is left out");
        // Made anew.
        let again = Rates::between(&after, &stats(self::port(4, 0)), Duration::from_secs(1));
        assert_eq!(again.ports[0].rx_packets_per_s, 4.0);
    }

    #[test]
    fn numbers_are_short() {
        let expected = [
            (0.0, "0"),
            (0.5, "0.5"),
            (7.0, "7"),
            (12.34, "12.3"),
            (999.0, "999"),
            (1000.0, "1.00k"),
            (12_345.0, "12.3k"),
            (999_900.0, "1.00M"),
            (4_560_000.0, "4.56M"),
            (1e18, "1000P"),
        ];
        for (value, text) in expected {
            assert_eq!(short(value), text);
        }
    }
}
