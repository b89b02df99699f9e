//! What each reason of a drop means, and what to do about it.
//!
//! One table for all tools. The names are those that the dataplane counts by; a test of the dataplane
//! compares the two lists.

use crate::ids::words;

/// Whose matter it is when drops of a reason come in.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Concern {
    /// Nobody's: it belongs to normal work.
    Normal,
    /// A tenant sends what it may not, or is set up wrongly.
    Tenant,
    /// The state lacks something, or says so.
    State,
    /// This host is short of something.
    Host,
    /// The far end, or the network between.
    Network,
}
words!(Concern {
    Normal = "normal",
    Tenant = "tenant",
    State = "state",
    Host = "host",
    Network = "network",
});

/// A reason for which packets are dropped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DropMeaning {
    /// Its name in counters, captures and traces.
    pub name: &'static str,
    /// Whose matter it is.
    pub concern: Concern,
    /// What happened.
    pub meaning: &'static str,
    /// What to do.
    pub advice: &'static str,
}

/// The meaning of a reason.
pub fn meaning(name: &str) -> Option<&'static DropMeaning> {
    DROPS.iter().find(|reason| reason.name == name)
}

const fn drop(
    name: &'static str,
    concern: Concern,
    meaning: &'static str,
    advice: &'static str,
) -> DropMeaning {
    DropMeaning { name, concern, meaning, advice }
}

/// All reasons.
pub const DROPS: &[DropMeaning] = &[
    drop(
        "malformed",
        Concern::Tenant,
        "The frame's headers are cut short, lie about their lengths, or form an illegal chain.",
        "Capture some (`culvert capture --drops`) and look at their sender; damage on the way shows as errors of the device, too.",
    ),
    drop(
        "vlan_stack",
        Concern::Tenant,
        "The frame has more than two VLAN tags.",
        "Let the tenant use two at most.",
    ),
    drop(
        "headers_too_long",
        Concern::Tenant,
        "The headers do not fit into the frame's first buffer of 4 KiB.",
        "Look at the sender: no usual stack makes such chains of headers.",
    ),
    drop(
        "bad_ipv4_checksum",
        Concern::Tenant,
        "The checksum of the IPv4 header is wrong.",
        "Look at the sender, and at the error counters of the devices between.",
    ),
    drop(
        "spoofed_mac",
        Concern::Tenant,
        "The source MAC is not the port's.",
        "Correct the tenant, or `mac` of the port. A tenant that bridges or routes for others needs `anti_spoof = false`.",
    ),
    drop(
        "spoofed_ip",
        Concern::Tenant,
        "The source address is none of the port's.",
        "Correct the tenant's address, or add it to `ips` of the port.",
    ),
    drop(
        "rogue_router",
        Concern::Tenant,
        "A tenant sends router advertisements or redirects, or DHCP answers where DHCP is answered here.",
        "Stop the router in the tenant; a tenant that is one needs `anti_spoof = false`.",
    ),
    drop(
        "port_blocked",
        Concern::State,
        "The port's state is `blocked`.",
        "Set `state = \"active\"`, if it should pass.",
    ),
    drop(
        "acl_denied",
        Concern::State,
        "A rule of the port's ACL groups denies it, or none of them matches, and it belongs to no connection that a stateful group allows.",
        "Look which rule decides by `culvert trace` or `culvert explain`; change the group, if it should pass.",
    ),
    drop(
        "metered",
        Concern::State,
        "Above the rate of the port's meter.",
        "Raise `meter` of the port, if the tenant should have more.",
    ),
    drop(
        "no_route",
        Concern::State,
        "The port or its vnet has routes, and none covers the destination.",
        "Add a [[route]] for it, or a default, if it should be reached.",
    ),
    drop(
        "route_drop",
        Concern::Normal,
        "A [[route]] says drop.",
        "Nothing, if the route is meant. `culvert trace` names it.",
    ),
    drop(
        "not_local",
        Concern::State,
        "The route says local, and no port of this host has the destination.",
        "Correct the route, or the destination.",
    ),
    drop(
        "no_mapping",
        Concern::State,
        "Nothing in the vnet has the destination: no port here, and no mapping.",
        "Add a [[mapping]] that says behind which VTEP it lives; `miss = \"trap\"` shows what is sought.",
    ),
    drop(
        "flood_disabled",
        Concern::Normal,
        "Broadcast or multicast in a vnet that does not flood.",
        "Nothing, as a rule: stacks send some unasked. Set `flood = true` if the vnet's tenants need it.",
    ),
    drop(
        "unknown_neighbour",
        Concern::State,
        "A tenant asks by ARP or neighbour discovery for an address that has no mapping.",
        "Add a [[mapping]], if the address exists. Scans and old configuration make such questions, too.",
    ),
    drop(
        "hairpin",
        Concern::Tenant,
        "The frame would go back to the port that it came from.",
        "Look for a loop or a bridge in the tenant.",
    ),
    drop(
        "unanswered",
        Concern::Normal,
        "A control frame that nothing here answers: router solicitations, DHCP, questions for an own address.",
        "Nothing, as a rule: stacks send some when they start.",
    ),
    drop(
        "answer_limited",
        Concern::Tenant,
        "The port asks for its configuration (DHCP, router solicitation) more often than it is answered.",
        "Look at the tenant's DHCP client: one that works asks a few times only.",
    ),
    drop(
        "ttl_exceeded",
        Concern::Normal,
        "The hop limit was used up at a gateway here; the sender was told.",
        "Nothing for traceroute. Many of them mean a routing loop.",
    ),
    drop(
        "packet_too_big",
        Concern::Normal,
        "Too big for the path, and not to be fragmented; the sender was told to send less.",
        "Nothing, while senders heed it. To avoid it raise the underlay's MTU, or lower the tenants'.",
    ),
    drop(
        "below_ipv6_minimum",
        Concern::Network,
        "An IPv6 packet of up to 1,280 bytes, which nobody may ask to be smaller, on a path that cannot carry it.",
        "Raise the underlay's MTU to 1,350 at least, over IPv4 to 1,330; in the shard format to 1,374 and 1,354.",
    ),
    drop(
        "bad_path_mtu_report",
        Concern::Network,
        "An ICMP error about a tunnel packet that we cannot have sent, or more of them than are believed in a second.",
        "Look who sends them: they may be forged.",
    ),
    drop(
        "lost_path_mtu_report",
        Concern::Host,
        "A path MTU report for which the control thread had no room. Routers repeat it.",
        "Nothing, unless it goes on: then the control thread does not keep up.",
    ),
    drop(
        "not_segmentable",
        Concern::Tenant,
        "A superframe that cannot be cut by the rules of its kind, or one to be flooded.",
        "Turn the offload in question off in the tenant (`ethtool -K`).",
    ),
    drop(
        "unknown_superframe",
        Concern::Host,
        "A superframe of a kind that is not carried, or whose kind is not known.",
        "Without BTF the kernel does not tell the kinds: turn UDP, tunnel and SCTP segmentation off in the tenant.",
    ),
    drop(
        "bad_superframe_checksum",
        Concern::Tenant,
        "A superframe whose checksum is complete and wrong: to cut it would hide the damage.",
        "Look for what damages packets before they come here: memory, drivers, a middlebox in the tenant.",
    ),
    drop(
        "next_hop_pending",
        Concern::Network,
        "The neighbour on the way to the VTEP is not resolved yet.",
        "Nothing for a moment after a change. If it goes on, nobody answers ARP or neighbour discovery there: see `ip neigh`.",
    ),
    drop(
        "next_hop_unreachable",
        Concern::Network,
        "There is no usable route to the VTEP.",
        "See `ip route get VTEP` on this host; the route has to lead through an underlay interface.",
    ),
    drop(
        "trap_limited",
        Concern::Host,
        "More packets were to be shown to the control plane than it takes.",
        "Add mappings for what is sought, so that less is trapped.",
    ),
    drop(
        "bad_tunnel_header",
        Concern::Network,
        "From the underlay: the tunnel header is not of a format that is spoken here.",
        "Look at the sender's configuration: which format it sends, with which extensions and options.",
    ),
    drop(
        "bad_outer_checksum",
        Concern::Network,
        "From the underlay: the outer UDP checksum is wrong, or missing over IPv6.",
        "Look at the sender's offloads, and at what changes packets between.",
    ),
    drop(
        "critical_option",
        Concern::Network,
        "From the underlay: the tunnel header has an option that must not be ignored, and that is not known.",
        "Have the sender leave the option out, or not mark it as critical.",
    ),
    drop(
        "format_mismatch",
        Concern::Network,
        "From the underlay: a packet in another format than its vnet, or its VTEP, is spoken to in.",
        "Give the vnet, or the peer, the same format on both hosts.",
    ),
    drop(
        "stream_out_of_range",
        Concern::Network,
        "From the underlay: a segment that is empty, outside its frame, or of a frame that is too long.",
        "Look at the sender: it is broken, or hostile.",
    ),
    drop(
        "stream_duplicate",
        Concern::Network,
        "From the underlay: a segment of a frame that is there already.",
        "Look for a network that repeats packets.",
    ),
    drop(
        "stream_contradiction",
        Concern::Network,
        "From the underlay: segments that contradict each other, with all of their frame.",
        "Look at the sender: it is broken, hostile, or gives two frames one number.",
    ),
    drop(
        "stream_too_many_segments",
        Concern::Network,
        "From the underlay: a frame of more segments than are put together.",
        "Raise the MTU of the path: 576 bytes are enough.",
    ),
    drop(
        "stream_evicted",
        Concern::Network,
        "From the underlay: segments of a frame that was given up for others, since too much waited.",
        "Look for loss in the network; where there is none, fewer hosts may send at once, or use a format whose header rides on every segment.",
    ),
    drop(
        "stream_timed_out",
        Concern::Network,
        "From the underlay: segments of a frame of which others did not come in time.",
        "Look for loss in the network.",
    ),
    drop(
        "shard_too_long",
        Concern::Tenant,
        "A superframe that does not fit into two streams of the shard format.",
        "Look for a tenant that sends superframes above 64 KB: BIG TCP is not carried.",
    ),
    drop(
        "shard_small_segments",
        Concern::Network,
        "A superframe on a path whose packets are too small for the shard format.",
        "Raise the MTU of the path: 576 bytes are enough.",
    ),
    drop(
        "shard_empty",
        Concern::Tenant,
        "A superframe without payload, in a network of the shard format.",
        "Look at the tenant's driver, or report it.",
    ),
    drop(
        "shard_inner_segments",
        Concern::Tenant,
        "A superframe of more segments than any sender makes, in a network of the shard format.",
        "Look at the tenant: its MSS is below 48 bytes.",
    ),
    drop(
        "shard_too_big",
        Concern::Tenant,
        "A frame that is no superframe, and longer than a packet of the path, in the shard format.",
        "Give the tenant a smaller MTU.",
    ),
    drop(
        "shard_headers_too_long",
        Concern::Tenant,
        "A superframe whose headers are longer than the shard format carries, 255 bytes.",
        "Look at the tenant: hardly any honest one sends such headers.",
    ),
    drop(
        "shard_foreign",
        Concern::Network,
        "From the underlay: to the port of the shard format, and no segment of it.",
        "Find who opens TCP connections to port 7472, or fragments packets to it.",
    ),
    drop(
        "shard_truncated",
        Concern::Network,
        "From the underlay: a segment of the shard format whose header ends early.",
        "Look at the sender: it is broken, or hostile.",
    ),
    drop(
        "shard_bad_version",
        Concern::Network,
        "From the underlay: a segment of another version of the shard format.",
        "Run the same release on both hosts.",
    ),
    drop(
        "shard_bad_shape",
        Concern::Network,
        "From the underlay: a segment of the shard format whose header contradicts itself.",
        "Look at the sender: it is broken, or hostile.",
    ),
    drop(
        "shard_bad_bounds",
        Concern::Network,
        "From the underlay: a packet of the shard format that begins or ends where no segment does.",
        "Find what merges TCP on the way and cuts it at another size, and turn that off.",
    ),
    drop(
        "shard_bad_outer_checksum",
        Concern::Network,
        "From the underlay: a segment of the shard format whose outer checksum is wrong.",
        "Look at the sender's offloads, and at what changes packets between.",
    ),
    drop(
        "shard_duplicate",
        Concern::Network,
        "From the underlay: a segment of a frame that is there already.",
        "Look for a network that repeats packets.",
    ),
    drop(
        "shard_bad_crc",
        Concern::Network,
        "From the underlay: segments of a frame whose shares give no block with a right CRC.",
        "Look for what damages packets, or for a hostile sender.",
    ),
    drop(
        "shard_not_keyed",
        Concern::Network,
        "From the underlay: segments without MAC from a VTEP with which there are keys.",
        "Give the sender the keys too, or look for a forger.",
    ),
    drop(
        "shard_keyed",
        Concern::Network,
        "From the underlay: segments with a MAC from a VTEP with which there are no keys here.",
        "Give this host the keys too.",
    ),
    drop(
        "shard_unknown_key",
        Concern::Network,
        "From the underlay: segments with the MAC of a key that is not here.",
        "Add a key at both ends before it is sent with.",
    ),
    drop(
        "shard_bad_mac",
        Concern::Network,
        "From the underlay: segments with a wrong MAC.",
        "Compare the fingerprints of the keys at both ends (`culvert host show -o json`); if they are equal, somebody forges.",
    ),
    drop(
        "shard_bad_block",
        Concern::Network,
        "From the underlay: segments of a frame whose block contradicts itself.",
        "Look at the sender: it is broken, or hostile.",
    ),
    drop(
        "shard_congestion",
        Concern::Network,
        "From the underlay: a segment that met congestion, of a packet that cannot carry the mark.",
        "Nothing: so the sender learns of the congestion.",
    ),
    drop(
        "shard_evicted",
        Concern::Network,
        "From the underlay: segments of a frame that was given up for others, since too much waited.",
        "Look for loss in the network, or for a VTEP that sends only parts of frames (`culvert show shards`); else raise the limits of `shard` in the underlay.",
    ),
    drop(
        "shard_timed_out",
        Concern::Network,
        "From the underlay: segments of a frame of which too few shares came in time.",
        "Look for loss in the network; where it often loses, send more shares: `culvert host set --shard-code`.",
    ),
    drop(
        "shard_bad_message",
        Concern::Network,
        "From the underlay: a message about a frame's information, in the shard format, that contradicts itself.",
        "Look at the sender: it is broken, or hostile.",
    ),
    drop(
        "shard_unasked",
        Concern::Network,
        "From the underlay: a frame's information in the shard format, for no frame that waits for what it asked for.",
        "Look for a network whose round trip is longer than `hold_ms`; else somebody sends what nobody asked for.",
    ),
    drop(
        "shard_request_refused",
        Concern::Network,
        "From the underlay: a request for a frame's information in the shard format, where repair is off, above the limit of a second, or made again.",
        "Give both hosts `repair_ms`, or neither; else look for what loses so much, or for who repeats requests (`culvert show shards`).",
    ),
    drop(
        "shard_request_gone",
        Concern::Network,
        "From the underlay: a request for a frame's information in the shard format that is not kept any more.",
        "Raise `repair_ms` (`culvert host set --shard-repair`) above the network's round trip and the receiver's 2 ms.",
    ),
    drop(
        "unknown_vni",
        Concern::State,
        "From the underlay: no vnet here has the VNI.",
        "Add the vnet, or take its mappings to this host out of the sender's state.",
    ),
    drop(
        "unknown_vtep",
        Concern::State,
        "From the underlay: no [[ingress]] rule accepts the VTEP for the VNI, or no mapping names it.",
        "Add a mapping of what lives behind it, or an ingress rule. If it is none of yours, look who sends.",
    ),
    drop(
        "ingress_drop",
        Concern::Normal,
        "From the underlay: an [[ingress]] rule says drop.",
        "Nothing, if the rule is meant. `culvert trace --underlay` names it.",
    ),
    drop(
        "source_mismatch",
        Concern::State,
        "From the underlay: the inner source does not live behind the VTEP that sent it.",
        "Correct the mapping if the tenant has moved; else somebody there takes another's address.",
    ),
    drop(
        "no_local_port",
        Concern::State,
        "From the underlay: no port of this host has the inner destination.",
        "Correct the sender's mapping: the tenant is not here, or not any more.",
    ),
    drop(
        "ecn_drop",
        Concern::Network,
        "From the underlay: congestion was marked on a packet that cannot carry the mark (RFC 6040).",
        "Nothing: it is as if a congested router had dropped it.",
    ),
    drop(
        "not_tunnel",
        Concern::Network,
        "From the underlay: neither a tunnel packet nor an ICMP error about one.",
        "Nothing, as a rule: ICMP errors about other matters count here.",
    ),
    drop(
        "exceeds_port_mtu",
        Concern::Network,
        "The packet is longer than the destination port's MTU.",
        "Make the MTUs of the vnet's tenants equal, or set `mtu` in the mappings of the smaller ones.",
    ),
    drop(
        "link_down",
        Concern::Host,
        "The destination's device is down or gone.",
        "See `culvert show ports` and `ip link`.",
    ),
    drop(
        "tx_ring_full",
        Concern::Host,
        "The transmit ring of the destination is full: it takes packets more slowly than they come.",
        "Look whether the receiver has the CPU that it needs.",
    ),
    drop(
        "tx_refused",
        Concern::Host,
        "The kernel refused to transmit: no buffers, too large, or its queue is full.",
        "See the counters of the device in `culvert stats`; raise its `txqueuelen` or the receiver's speed.",
    ),
    drop(
        "no_frames",
        Concern::Host,
        "The packet memory has no free frame.",
        "Start the dataplane with more `--chunks`; `culvert stats` shows who holds them.",
    ),
    drop(
        "handoff_full",
        Concern::Host,
        "The queue to another worker is full.",
        "Give the dataplane more workers, or CPUs of their own (`--workers`, `--cpus`).",
    ),
    drop(
        "port_gone",
        Concern::Normal,
        "The port was removed, or its device went, while the packet was on its way.",
        "Nothing, around a change. Else see `culvert show ports`.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained_once() {
        for (at, reason) in DROPS.iter().enumerate() {
            assert!(reason.meaning.ends_with('.') && reason.advice.len() > 10, "{reason:?}");
            assert!(DROPS[..at].iter().all(|other| other.name != reason.name), "{reason:?}");
            assert_eq!(meaning(reason.name), Some(reason));
        }
        assert_eq!(meaning("because"), None);
    }
}
