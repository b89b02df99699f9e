// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Stands behind XDP while a device's XDP program goes from one mode to the
 * other: the kernel takes the old one off before it takes the new one, and what
 * arrives in between would be the host's. These drop what XDP would have taken.
 */
#include "common.h"

#include <linux/pkt_cls.h>

static __always_inline int guard_drop(void)
{
	count(GUARD_DROPPED);
	return TC_ACT_SHOT;
}

/* Nothing of a tenant is the host's. */
SEC("classifier")
int guard_tenant(struct __sk_buff *skb)
{
	(void)skb;
	return guard_drop();
}

/* Only what belongs to the overlay is kept from the host. */
SEC("classifier")
int guard_underlay(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u32 len = skb->len;
	__u8 *window = bpf_map_lookup_elem(&windows, &zero);

	if (len > WINDOW)
		len = WINDOW;
	if (!window || len < sizeof(struct ethhdr) || bpf_skb_load_bytes(skb, 0, window, len))
		return TC_ACT_UNSPEC;
	if (classify(window, window + len) == UNDERLAY_PASSED)
		return TC_ACT_UNSPEC;
	return guard_drop();
}
