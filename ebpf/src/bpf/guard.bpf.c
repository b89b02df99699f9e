// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Programs that run on packet buffers. Guards stand behind XDP while a device's
 * XDP program goes from one mode to the other: the kernel takes the old one off
 * before it takes the new one, and what arrives in between would be the host's.
 * They drop what XDP would have taken.
 *
 * Where packet sockets receive there is no XDP: hear_underlay lets them hear
 * what is the overlay's, and hide_underlay, behind them, keeps it from the host.
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

/* The answer of classify() for a packet buffer. */
static __always_inline int classify_skb(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u32 len = skb->len;
	__u8 *window = bpf_map_lookup_elem(&windows, &zero);

	if (len > WINDOW)
		len = WINDOW;
	if (!window || len < sizeof(struct ethhdr) || bpf_skb_load_bytes(skb, 0, window, len))
		return UNDERLAY_PASSED;
	return classify(window, window + len);
}

/* Only what belongs to the overlay is kept from the host. */
SEC("classifier")
int guard_underlay(struct __sk_buff *skb)
{
	return classify_skb(skb) == UNDERLAY_PASSED ? TC_ACT_UNSPEC : guard_drop();
}

/* The same for what packet sockets heard before: they count it. */
SEC("classifier")
int hide_underlay(struct __sk_buff *skb)
{
	return classify_skb(skb) == UNDERLAY_PASSED ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

/* A packet socket's filter: the whole frame or nothing. */
SEC("socket")
int hear_underlay(struct __sk_buff *skb)
{
	int counter = classify_skb(skb);

	count(counter);
	if (counter == UNDERLAY_ICMP_ERROR)
		count(UNDERLAY_REDIRECTED);
	return counter == UNDERLAY_REDIRECTED || counter == UNDERLAY_ICMP_ERROR ? -1 : 0;
}
