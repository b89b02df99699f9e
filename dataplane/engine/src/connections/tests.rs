//! What the table remembers, forgets, and whom it protects.

use std::sync::Arc;

use culvert_model::{AclAction, AclGroup, AclRule, Direction, PortRanges, Protocol};
use culvert_wire::proto;
use culvert_wire::tcp::flags::{ACK, FIN, RST, SYN};

use super::key::{Key, Signal};
use super::*;

const S: Tick = TICKS_PER_SECOND;

fn rule(direction: Direction, action: AclAction, protocol: Protocol, local: &str) -> AclRule {
    AclRule {
        direction,
        action,
        protocol,
        remote: None,
        local_ports: local.parse::<PortRanges>().unwrap(),
        remote_ports: PortRanges::default(),
    }
}

/// Groups that allow these, statefully.
fn acl(rules: Vec<AclRule>, changed_in: u64) -> PortAcl {
    let group = AclGroup { id: "g".parse().unwrap(), stateful: true, rules };
    PortAcl { groups: vec![Arc::new(group)], stateful: true, changed_in, owned_since: 1 }
}

fn out() -> PortAcl {
    acl(vec![rule(Direction::Egress, AclAction::Allow, Protocol::Any, "any")], 1)
}

fn key(port: u16, number: u8, local_port: u16) -> Key {
    let ends = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    Key::new(port, number, ends, (local_port, 80)).unwrap()
}

fn tcp(local_port: u16) -> Key {
    key(0, proto::TCP, local_port)
}

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;

#[test]
fn only_what_was_opened_is_answered() {
    let (acl, mut table) = (out(), Connections::new(64, 7));
    assert!(!table.answers(&acl, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 0));
    table.allowed(&acl, &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
    assert!(table.answers(&acl, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 1));
    assert!(!table.answers(&acl, &tcp(2), INGRESS, Signal::Tcp(SYN | ACK), 1), "another port");
    assert!(!table.answers(&acl, &tcp(1), INGRESS, Signal::Tcp(SYN), 1), "a connection of its own");
    assert!(
        !table.answers(&acl, &tcp(1), EGRESS, Signal::Tcp(ACK), 1),
        "the opener is not answered"
    );
}

#[test]
fn a_connection_is_believed_by_its_state() {
    let acl = out();
    let answered_after = |prepare: fn(&mut Connections, &PortAcl), signal, key: Key, ticks| {
        let mut table = Connections::new(64, 7);
        prepare(&mut table, &acl);
        table.answers(&acl, &key, INGRESS, signal, ticks)
    };
    let ack = Signal::Tcp(ACK);
    let opening = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
    };
    assert!(answered_after(opening, ack, tcp(1), 30 * S));
    assert!(!answered_after(opening, ack, tcp(1), 31 * S));
    let established = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
        assert!(table.answers(acl, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 0));
    };
    assert!(answered_after(established, ack, tcp(1), 7_440 * S));
    assert!(!answered_after(established, ack, tcp(1), 7_441 * S));
    let half_closed = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
        assert!(table.answers(acl, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 0));
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(FIN | ACK), 0);
    };
    assert!(answered_after(half_closed, ack, tcp(1), 7_440 * S), "the other side still sends");
    let closed = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
        assert!(table.answers(acl, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 0));
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(FIN | ACK), 0);
        assert!(table.answers(acl, &tcp(1), INGRESS, Signal::Tcp(FIN | ACK), 0));
    };
    assert!(answered_after(closed, ack, tcp(1), 60 * S));
    assert!(!answered_after(closed, ack, tcp(1), 61 * S));
    let reset = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
        assert!(table.answers(acl, &tcp(1), INGRESS, Signal::Tcp(RST | ACK), 0));
    };
    assert!(!answered_after(reset, ack, tcp(1), 61 * S));
    let udp = key(0, proto::UDP, 1);
    let single = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &key(0, proto::UDP, 1), EGRESS, Signal::Datagram, 0);
    };
    assert!(answered_after(single, Signal::Datagram, udp, 30 * S));
    assert!(!answered_after(single, Signal::Datagram, udp, 31 * S));
    let answered = |table: &mut Connections, acl: &PortAcl| {
        table.allowed(acl, &key(0, proto::UDP, 1), EGRESS, Signal::Datagram, 0);
        assert!(table.answers(acl, &key(0, proto::UDP, 1), INGRESS, Signal::Datagram, 0));
    };
    assert!(answered_after(answered, Signal::Datagram, udp, 300 * S));
    assert!(!answered_after(answered, Signal::Datagram, udp, 301 * S));
}

#[test]
fn an_echo_is_answered_by_a_reply_and_not_by_a_request() {
    let (acl, mut table) = (out(), Connections::new(64, 7));
    let ping = key(0, proto::ICMPV4, 9);
    table.allowed(&acl, &ping, EGRESS, Signal::EchoReply, 0);
    assert!(table.is_empty(), "a reply opens nothing");
    table.allowed(&acl, &ping, EGRESS, Signal::EchoRequest, 0);
    assert!(table.answers(&acl, &ping, INGRESS, Signal::EchoReply, 1));
    assert!(!table.answers(&acl, &ping, INGRESS, Signal::EchoRequest, 1));
}

#[test]
fn a_connection_that_new_groups_do_not_allow_does_not_live_on() {
    let web = rule(INGRESS, AclAction::Allow, Protocol::TCP, "443");
    let open = rule(EGRESS, AclAction::Allow, Protocol::Any, "any");
    let (before, after) = (acl(vec![web, open.clone()], 1), acl(vec![open], 2));
    let mut table = Connections::new(64, 7);
    let conn = tcp(443);
    table.allowed(&before, &conn, INGRESS, Signal::Tcp(SYN), 0);
    table.allowed(&before, &conn, EGRESS, Signal::Tcp(SYN | ACK), 0);
    // The tenant's side is still allowed to send, by a rule of its own, but that opens nothing.
    table.allowed(&after, &conn, EGRESS, Signal::Tcp(ACK), S);
    assert!(!table.answers(&after, &conn, INGRESS, Signal::Tcp(ACK), 2 * S));
    assert!(!table.is_known(&after, &conn, 2 * S), "no ICMP error either");
    // Packets of the tenant keep it dead; a new connection of the tenant's may take its place.
    table.allowed(&after, &conn, EGRESS, Signal::Tcp(ACK), 200 * S);
    assert!(!table.answers(&after, &conn, INGRESS, Signal::Tcp(ACK), 400 * S));
    table.allowed(&after, &conn, EGRESS, Signal::Tcp(SYN), 401 * S);
    assert!(table.answers(&after, &conn, INGRESS, Signal::Tcp(SYN | ACK), 402 * S));
}

#[test]
fn a_connection_goes_on_when_the_change_that_revoked_it_is_taken_back() {
    let open = || rule(EGRESS, AclAction::Allow, Protocol::Any, "any");
    let mut table = Connections::new(64, 7);
    table.allowed(&acl(vec![open()], 1), &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
    assert!(!table.answers(&acl(vec![], 2), &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 1));
    assert!(!table.answers(&acl(vec![], 3), &tcp(1), INGRESS, Signal::Tcp(ACK), 2));
    assert!(table.answers(&acl(vec![open()], 4), &tcp(1), INGRESS, Signal::Tcp(ACK), 3));
}

#[test]
fn a_connection_that_new_groups_allow_too_lives_on() {
    let all = || rule(EGRESS, AclAction::Allow, Protocol::Any, "any");
    let deny = rule(EGRESS, AclAction::Deny, Protocol::TCP, "25");
    let mut table = Connections::new(64, 7);
    table.allowed(&acl(vec![all()], 1), &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
    let after = acl(vec![deny, all()], 2);
    assert!(table.answers(&after, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 1));
    let stateless = {
        let mut acl = acl(vec![all()], 3);
        acl.groups = vec![Arc::new(AclGroup { stateful: false, ..(*acl.groups[0]).clone() })];
        acl
    };
    assert!(!table.answers(&stateless, &tcp(1), INGRESS, Signal::Tcp(ACK), 2));
}

#[test]
fn the_connections_of_a_port_that_is_gone_are_not_its_successors() {
    let mut table = Connections::new(64, 7);
    table.allowed(&out(), &tcp(1), EGRESS, Signal::Tcp(SYN), 0);
    let successor = PortAcl { owned_since: 5, changed_in: 5, ..out() };
    assert!(!table.answers(&successor, &tcp(1), INGRESS, Signal::Tcp(SYN | ACK), 1));
    assert!(table.is_empty());
}

#[test]
fn a_flood_of_one_port_leaves_the_connections_of_others() {
    let (acl, mut table) = (out(), Connections::new(1024, 7));
    for local in 0..50 {
        let quiet = key(1, proto::TCP, local);
        table.allowed(&acl, &quiet, EGRESS, Signal::Tcp(SYN), 0);
    }
    for n in 0..20_000_u32 {
        let local = key(0, if n & 1 == 0 { proto::TCP } else { proto::UDP }, (n / 2) as u16);
        let signal = if n & 1 == 0 { Signal::Tcp(SYN) } else { Signal::Datagram };
        table.allowed(&acl, &local, EGRESS, signal, 1);
    }
    assert!(table.len() <= 1024);
    for local in 0..50 {
        let quiet = key(1, proto::TCP, local);
        assert!(table.answers(&acl, &quiet, INGRESS, Signal::Tcp(SYN | ACK), 2), "{local}");
    }
    assert!(table.take_losses().evicted > 15_000);
    assert_eq!(table.take_losses(), Losses::default());
}

#[test]
fn who_has_most_makes_room_for_who_has_less() {
    let (acl, mut table) = (out(), Connections::new(8, 7));
    for local in 0..8 {
        table.allowed(&acl, &key(0, proto::TCP, local), EGRESS, Signal::Tcp(SYN), local.into());
    }
    table.allowed(&acl, &key(1, proto::TCP, 1), EGRESS, Signal::Tcp(SYN), 10);
    assert_eq!((table.len(), table.take_losses().evicted), (8, 1));
    assert!(!table.is_known(&acl, &key(0, proto::TCP, 0), 10), "the one that was idle longest");
    assert!(table.is_known(&acl, &key(1, proto::TCP, 1), 10));
}

#[test]
fn a_flood_evicts_half_open_connections_before_established_ones() {
    let (acl, mut table) = (out(), Connections::new(8, 7));
    table.allowed(&acl, &tcp(999), EGRESS, Signal::Tcp(SYN), 0);
    assert!(table.answers(&acl, &tcp(999), INGRESS, Signal::Tcp(SYN | ACK), 0));
    for local in 0..100 {
        table.allowed(&acl, &tcp(local), EGRESS, Signal::Tcp(SYN), 1);
    }
    assert!(table.answers(&acl, &tcp(999), INGRESS, Signal::Tcp(ACK), 2));
}

#[test]
fn what_is_over_is_swept() {
    let (acl, mut table) = (out(), Connections::new(64, 7));
    for local in 0..10 {
        table.allowed(&acl, &tcp(local), EGRESS, Signal::Tcp(SYN), 0);
    }
    table.sweep(64, 30 * S);
    assert_eq!(table.len(), 10);
    table.sweep(64, 31 * S);
    assert!(table.is_empty());
    assert_eq!(table.take_losses(), Losses::default(), "that is no loss");
}
