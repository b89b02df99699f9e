//! The counters that the programs keep, one value per CPU each.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A counter of the XDP and tracing programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// Every counter, in the order of its index.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name under which it is shown.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counters! {
    /// Tenant frames handed to a socket. The socket's own statistics say what became of them.
    TenantRedirected = "tenant_redirected",
    /// Tenant frames dropped because no socket is bound to their device and queue.
    TenantNoSocket = "tenant_no_socket",
    /// Tenant frames dropped because the device was never given slots.
    TenantUnknownDevice = "tenant_unknown_device",
    /// Tenant frames dropped because their queue's slot would belong to another device.
    TenantQueueOutOfRange = "tenant_queue_out_of_range",
    /// Tenant frames dropped because the driver left no room for the metadata.
    TenantNoHeadroom = "tenant_no_headroom",
    /// Underlay frames handed to a socket, ICMP errors included.
    UnderlayRedirected = "underlay_redirected",
    /// Underlay frames of ours dropped because no socket is bound to their device and queue.
    UnderlayNoSocket = "underlay_no_socket",
    /// Underlay frames of ours dropped because the device was never given slots.
    UnderlayUnknownDevice = "underlay_unknown_device",
    /// Underlay frames of ours dropped because their queue's slot would belong to another device.
    UnderlayQueueOutOfRange = "underlay_queue_out_of_range",
    /// Underlay frames of ours dropped because the driver left no room for the metadata.
    UnderlayNoHeadroom = "underlay_no_headroom",
    /// ICMP errors about tunnel packets that we sent; each also moves one of the five above.
    UnderlayIcmpError = "underlay_icmp_error",
    /// Underlay frames left to the host.
    UnderlayPassed = "underlay_passed",
    /// First fragments of tunnel packets, dropped: tunnel packets are not fragmented.
    UnderlayFragment = "underlay_fragment",
    /// Tunnel packets with IPv4 options, dropped.
    UnderlayIpv4Options = "underlay_ipv4_options",
    /// Tunnel packets behind IPv6 extension headers, or chains too long to follow, dropped.
    UnderlayIpv6Extension = "underlay_ipv6_extension",
    /// Tunnel packets whose UDP header is cut off, dropped.
    UnderlayTruncated = "underlay_truncated",
    /// Packet buffers that the tracing program read for generic XDP.
    SkbInfoCaptured = "skb_info_captured",
    /// Frames whose metadata includes what the tracing program read.
    SkbInfoUsed = "skb_info_used",
    /// Frames of tenants and of the overlay dropped behind XDP, while a device changed its XDP mode.
    GuardDropped = "guard_dropped",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_the_programs_in_the_same_order() {
        let header = include_str!("bpf/counters.h");
        let body = header.split_once("enum counter {").and_then(|(_, rest)| rest.split_once("};"));
        let (body, _) = body.expect("the header defines enum counter");
        let in_c: Vec<String> = body
            .split(',')
            .map(|name| name.trim().to_lowercase())
            .filter(|name| !name.is_empty() && name != "counters")
            .collect();
        let in_rust: Vec<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(in_c, in_rust);
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
