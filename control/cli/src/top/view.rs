//! Draws it. Nothing is said by colour alone.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Row, Table, TableState};

use super::app::{App, FlowRow, Pane, name};
use crate::rates::short;

pub(super) const KEYS: &str = "Keys:
  up, down   choose a port          s  sort by the next of bytes, packets, drops, name
  tab, d     flows, or drops        r  turn the order round
  /, f       filter by a text       p  pause
  ?          this help              q  quit";

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws everything.
pub(super) fn draw(app: &mut App, frame: &mut Frame<'_>) {
    let [head, ports, detail, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Percentage(45),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(headline(app)), head);
    draw_ports(app, frame, ports);
    match app.pane {
        Pane::Flows => draw_flows(app, frame, detail),
        Pane::Drops => draw_drops(app, frame, detail),
    }
    frame.render_widget(Paragraph::new(footer(app)), foot);
    if app.help {
        let area = Rect { x: 2, y: 2, width: 84, height: 7 }.intersection(frame.area());
        frame.render_widget(Clear, area);
        let block = Block::default().borders(Borders::ALL);
        frame.render_widget(Paragraph::new(Text::raw(KEYS)).block(block), area);
    }
}

fn headline(app: &App) -> Line<'static> {
    let ports = app.ports();
    let sum = |of: fn(&crate::rates::PortRates) -> f64| short(ports.iter().map(|p| of(p)).sum());
    let paused = if app.paused { "  [paused]" } else { "" };
    Line::raw(format!(
        "culvert top  from tenants {} pkt/s {} bit/s  to tenants {} pkt/s {} bit/s  dropped {}/s{paused}",
        sum(|port| port.rx_packets_per_s),
        sum(|port| port.rx_bytes_per_s * 8.0),
        sum(|port| port.tx_packets_per_s),
        sum(|port| port.tx_bytes_per_s * 8.0),
        sum(|port| port.dropped_per_s),
    ))
}

fn footer(app: &App) -> Line<'static> {
    if app.typing {
        return Line::raw(format!("filter: {}_   enter: keep  esc: forget", app.filter));
    }
    let filter =
        if app.filter.is_empty() { String::new() } else { format!("  filter: {}", app.filter) };
    Line::raw(format!("sorted by {}{filter}   ?: keys  q: quit", app.sort.name()))
}

fn head(cells: &[&str]) -> Row<'static> {
    Row::new(cells.iter().map(|cell| (*cell).to_owned()))
        .style(Style::new().add_modifier(Modifier::BOLD))
}

fn block(title: &str) -> Block<'_> {
    Block::default().borders(Borders::TOP).title(title)
}

/// A number at the right of its column.
fn right(value: f64) -> Text<'static> {
    Text::from(short(value)).right_aligned()
}

fn draw_ports(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.ports().into_iter().map(|port| {
        let reason = port.drops.first().map_or(String::new(), |drop| drop.reason.clone());
        Row::new([
            Text::from(name(port)),
            right(port.rx_packets_per_s),
            right(port.rx_bytes_per_s * 8.0),
            right(port.tx_packets_per_s),
            right(port.tx_bytes_per_s * 8.0),
            right(port.dropped_per_s),
            Text::from(reason),
            Text::from(sparkline(&app.history(port), 30)),
        ])
    });
    let widths = [
        Constraint::Min(12),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(22),
        Constraint::Length(30),
    ];
    let titles =
        ["PORT", "RX PKT/S", "RX BIT/S", "TX PKT/S", "TX BIT/S", "DROP/S", "FIRST REASON", "BYTES"];
    let table = Table::new(rows, widths)
        .header(head(&titles))
        .block(block("ports"))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(Some(app.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_flows(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let row = |flow: &FlowRow| {
        Row::new([
            Text::from(flow.from.clone()),
            Text::from(flow.name.clone()),
            right(flow.packets_per_s),
            right(flow.bytes_per_s * 8.0),
            right(flow.drops_per_s),
            Text::from(flow.reason.clone()),
        ])
    };
    let other = FlowRow { name: "(all others)".to_owned(), ..app.other.clone() };
    let shows_other = app.filter.is_empty() && other.packets_per_s + other.drops_per_s > 0.0;
    let rows = app.flows().into_iter().map(row).chain(shows_other.then(|| row(&other)));
    let widths = [
        Constraint::Length(26),
        Constraint::Min(30),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(22),
    ];
    let titles = ["FROM", "FLOW", "PKT/S", "BIT/S", "DROP/S", "REASON"];
    let table = Table::new(rows, widths).header(head(&titles)).block(block("flows"));
    frame.render_widget(table, area);
}

fn draw_drops(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.drops().into_iter().map(|(port, reason, rate)| {
        let meaning = culvert_model::drops::meaning(&reason).map_or("", |known| known.meaning);
        Row::new([Text::from(port), Text::from(reason), right(rate), Text::from(meaning)])
    });
    let widths = [
        Constraint::Length(20),
        Constraint::Length(24),
        Constraint::Length(9),
        Constraint::Min(20),
    ];
    let table = Table::new(rows, widths)
        .header(head(&["PORT", "REASON", "PKT/S", "MEANING"]))
        .block(block("drops"));
    frame.render_widget(table, area);
}

/// The latest values as bars, the greatest of them the highest.
fn sparkline(values: &[u64], width: usize) -> String {
    let latest = values.get(values.len().saturating_sub(width)..).unwrap_or_default();
    let most = latest.iter().copied().max().unwrap_or(0);
    let bar = |value: &u64| match most {
        0 => BARS[0],
        most => BARS[(u128::from(*value) * 7 / u128::from(most)) as usize],
    };
    latest.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;
    use crate::rates::{DropRate, PortRates, Rates};
    use culvert_model::api;

    fn port(id: &str, rx: f64, dropped: f64) -> PortRates {
        let drops = vec![DropRate { reason: "no_route".into(), packets_per_s: dropped }];
        PortRates {
            id: Some(id.to_owned()),
            rx_packets_per_s: rx,
            rx_bytes_per_s: rx * 1000.0,
            dropped_per_s: dropped,
            drops: if dropped > 0.0 { drops } else { Vec::new() },
            ..PortRates::default()
        }
    }

    fn filled() -> App {
        let mut app = App::default();
        for rx in [10.0, 20.0, 40.0] {
            let ports = vec![port("web", rx, 0.0), port("db", 1.0, 5.0)];
            app.take(Rates { elapsed_s: 1.0, ports });
        }
        app.take_flows(api::FlowReport {
            elapsed_ns: 2_000_000_000,
            flows: vec![api::Flow {
                port: "web".into(),
                protocol: 6,
                source: "10.0.0.1".into(),
                destination: "10.0.0.2".into(),
                source_port: 7,
                destination_port: 80,
                packets: 8,
                bytes: 4000,
                ..api::Flow::default()
            }],
            other: None,
        });
        app
    }

    fn screen(app: &mut App) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(130, 20)).unwrap();
        terminal.draw(|frame| draw(app, frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..130).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..20).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn press(app: &mut App, keys: &str) -> bool {
        let press = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE);
        keys.chars().any(|c| app.obey(press(c)))
    }

    #[test]
    fn ports_flows_and_drops_are_shown() {
        let mut app = filled();
        let lines = screen(&mut app);
        assert!(lines[0].contains("from tenants 41 pkt/s 328k bit/s"), "{lines:#?}");
        assert!(lines[3].starts_with("web") && lines[3].ends_with("▂▄█"), "{lines:#?}");
        assert!(lines[4].starts_with("db") && lines[4].contains("no_route"), "{lines:#?}");
        let flow = lines.iter().find(|line| line.contains("tcp 10.0.0.1:7 > 10.0.0.2:80")).unwrap();
        assert!(flow.contains(" 4 ") && flow.contains("16.0k"), "{flow}");
        assert!(!press(&mut app, "d"));
        let lines = screen(&mut app);
        assert!(lines.iter().any(|line| line.contains("no route") || line.contains("none covers")));
    }

    #[test]
    fn keys_sort_filter_and_quit() {
        let mut app = filled();
        // By packets, then drops.
        assert!(!press(&mut app, "ss"));
        assert!(screen(&mut app)[3].starts_with("db"));
        assert!(!press(&mut app, "r"));
        assert!(screen(&mut app)[3].starts_with("web"));
        // While one types, a letter is a letter.
        assert!(!press(&mut app, "/q"));
        assert!(app.ports().is_empty());
        app.obey(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
        assert_eq!(app.ports().len(), 2);
        assert!(!press(&mut app, "?"));
        assert!(screen(&mut app).iter().any(|line| line.contains("turn the order round")));
        assert!(press(&mut app, "q"));
        assert!(app.obey(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn a_pause_keeps_what_is_shown() {
        let mut app = filled();
        press(&mut app, "p");
        app.take(Rates::default());
        assert_eq!(app.ports().len(), 2);
        press(&mut app, "p");
        app.take(Rates::default());
        assert!(app.ports().is_empty());
    }

    #[test]
    fn a_small_terminal_is_no_reason_to_panic() {
        let mut app = filled();
        for (width, height) in [(1, 1), (5, 2), (20, 4), (300, 3)] {
            app.help = !app.help;
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(&mut app, frame)).unwrap();
        }
    }
}
