//! The combinations of families, sizes and offloads that a topology can have, and covers of them.

use std::fmt;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether a device's transmit offloads are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offloads {
    /// Segmentation, checksum and VLAN offloads as the driver offers them.
    On,
    /// All off: frames are complete and no larger than the MTU.
    Off,
}

/// How a tenant is attached to its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attach {
    /// A veth pair; Culvert opens `AF_XDP` on the host's end.
    Veth,
    /// A TAP device that Culvert makes and the harness gives to the tenant.
    Tap,
}

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Combo {
    /// Addresses that tenants talk with.
    pub tenant: Family,
    /// Addresses of the tunnel endpoints.
    pub underlay: Family,
    /// MTU of the tenants' devices, in bytes; the underlay's is this plus the encapsulation.
    pub tenant_mtu: u32,
    /// The tenants' offloads.
    pub offloads: Offloads,
    /// How tenants are attached.
    pub attach: Attach,
    /// The underlay address is on a VLAN device (802.1Q) above the wire.
    pub underlay_vlan: bool,
    /// Offloads of the wire between the hosts: on, superframes cross it uncut.
    pub wire: Offloads,
}

/// Tests that share a list of combinations, each by its number, so that one combination that hangs costs its share alone.
#[macro_export]
macro_rules! shares {
    ($share:ident: $($name:ident = $number:literal,)+) => {
        $(
            #[test]
            fn $name() {
                $share($number);
            }
        )+
    };
}

/// VLAN id of a tagged underlay.
pub const UNDERLAY_VLAN: u16 = 321;

impl Combo {
    /// IPv4 in IPv4, MTU 1500, veth, everything on.
    pub const SIMPLE: Self = Self {
        tenant: Family::V4,
        underlay: Family::V4,
        tenant_mtu: 1500,
        offloads: Offloads::On,
        attach: Attach::Veth,
        underlay_vlan: false,
        wire: Offloads::On,
    };

    /// Bytes from the outer IP header to the end of the inner Ethernet header: with VXLAN 50, or 70 over IPv6.
    pub fn encapsulation_len(&self) -> u32 {
        crate::format::encapsulation_len(crate::format::of_run(), self.underlay)
    }

    /// MTU of the wire between the hosts, in bytes: just enough for a tenant frame of full size.
    pub fn underlay_mtu(&self) -> u32 {
        self.tenant_mtu + self.encapsulation_len()
    }

    /// Number of values of each dimension, in the order of `choose`. Tagged underlays need `vlan` devices in the kernel.
    fn radix(vlan: bool) -> [usize; 7] {
        [2, 2, 3, 2, 2, if vlan { 2 } else { 1 }, 2]
    }

    fn choose(digits: [usize; 7]) -> Self {
        let family = |d| if d == 0 { Family::V4 } else { Family::V6 };
        let offloads = |d| if d == 0 { Offloads::On } else { Offloads::Off };
        let [tenant, underlay, mtu, tenant_offloads, attach, vlan, wire] = digits;
        Self {
            tenant: family(tenant),
            underlay: family(underlay),
            tenant_mtu: [1500, 1280, 9000].get(mtu).copied().unwrap_or(1500),
            offloads: offloads(tenant_offloads),
            attach: if attach == 0 { Attach::Veth } else { Attach::Tap },
            underlay_vlan: vlan == 1,
            wire: offloads(wire),
        }
    }

    /// Every combination, those with a tagged underlay only if `vlan`; all are legal.
    pub fn all(vlan: bool) -> Vec<Self> {
        all_digits(Self::radix(vlan)).into_iter().map(Self::choose).collect()
    }

    /// A small list in which every choice of values for any `strength` dimensions occurs together at least once, see
    /// [`cover`]. Tagged underlays occur only if `vlan`.
    pub fn cover(strength: u32, vlan: bool) -> Vec<Self> {
        cover(Self::radix(vlan), strength).into_iter().map(Self::choose).collect()
    }
}

fn all_digits<const N: usize>(radix: [usize; N]) -> Vec<[usize; N]> {
    let total = radix.iter().product();
    (0..total)
        .map(|mut number: usize| {
            radix.map(|radix| {
                let digit = number % radix;
                number /= radix;
                digit
            })
        })
        .collect()
}

/// A small list of choices of one value for each of some dimensions, in which every choice of values for any `strength` of
/// them occurs together at least once. `radix` is the number of values of each, at most 31 dimensions.
///
/// The greedy algorithm takes, again and again, the combination that covers most of what is missing, the first one
/// of equals; so the list never changes between runs.
pub fn cover<const N: usize>(radix: [usize; N], strength: u32) -> Vec<[usize; N]> {
    let all = all_digits(radix);
    let sets: Vec<u32> = (0..1u32 << N).filter(|set| set.count_ones() == strength).collect();
    let tuple = |digits: &[usize; N], set: u32| -> (u32, [usize; N]) {
        let mut kept = *digits;
        for (at, digit) in kept.iter_mut().enumerate() {
            if set & (1 << at) == 0 {
                *digit = usize::MAX;
            }
        }
        (set, kept)
    };
    let mut missing: std::collections::HashSet<(u32, [usize; N])> =
        all.iter().flat_map(|d| sets.iter().map(move |&s| tuple(d, s))).collect();
    let mut cover = Vec::new();
    while !missing.is_empty() {
        let gain =
            |d: &[usize; N]| sets.iter().filter(|&&s| missing.contains(&tuple(d, s))).count();
        // max_by_key takes the last of equals, so go backwards to take the first.
        let Some(best) = all.iter().rev().max_by_key(|d| gain(d)) else { break };
        for &set in &sets {
            missing.remove(&tuple(best, set));
        }
        cover.push(*best);
    }
    cover
}

impl fmt::Display for Combo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |family| if family == Family::V4 { "v4" } else { "v6" };
        write!(
            f,
            "{}-in-{} mtu {} {} {}{}{}",
            family(self.tenant),
            family(self.underlay),
            self.tenant_mtu,
            if self.attach == Attach::Veth { "veth" } else { "tap" },
            if self.offloads == Offloads::On { "offloads" } else { "no-offloads" },
            if self.underlay_vlan { " vlan-underlay" } else { "" },
            if self.wire == Offloads::On { " superframe-wire" } else { " cut-wire" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(combo: &Combo) -> [u32; 7] {
        [
            u32::from(combo.tenant == Family::V6),
            u32::from(combo.underlay == Family::V6),
            combo.tenant_mtu,
            u32::from(combo.offloads == Offloads::Off),
            u32::from(combo.attach == Attach::Tap),
            u32::from(combo.underlay_vlan),
            u32::from(combo.wire == Offloads::Off),
        ]
    }

    #[test]
    fn every_pair_of_values_that_exists_is_in_a_pairwise_cover() {
        let all = Combo::all(true);
        for strength in [2, 3] {
            let cover = Combo::cover(strength, true);
            for a in 0..7 {
                for b in a + 1..7 {
                    for combo in &all {
                        let (x, y) = (values(combo)[a], values(combo)[b]);
                        assert!(
                            cover.iter().any(|c| values(c)[a] == x && values(c)[b] == y),
                            "strength {strength}: dimensions {a} and {b} never have {x} and {y}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_cover_is_small_and_the_same_each_time() {
        assert_eq!(Combo::all(true).len(), 192);
        assert!(Combo::cover(2, true).len() <= 10, "{}", Combo::cover(2, true).len());
        let cover = Combo::cover(3, true);
        assert!((12..=26).contains(&cover.len()), "{}", cover.len());
        assert_eq!(cover, Combo::cover(3, true));
        assert!(Combo::cover(3, false).iter().all(|combo| !combo.underlay_vlan));
    }

    #[test]
    fn the_wire_carries_exactly_a_full_tenant_frame() {
        assert_eq!(Combo::SIMPLE.underlay_mtu(), 1550);
        assert_eq!(Combo { underlay: Family::V6, ..Combo::SIMPLE }.underlay_mtu(), 1570);
    }
}
