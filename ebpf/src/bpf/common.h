/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Maps that the programs of the packet path share, and the way to a socket. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "counters.h"
#include "frame_meta.h"

/* The sockets of one device: slot `first + rx_queue`, while rx_queue < count. */
struct slot_range {
	__u32 first;
	__u32 count;
};

/* What the tracing program saw of the sk_buff that generic XDP runs on next. */
struct skb_info {
	__u32 ifindex; /* 0: nothing here */
	__u32 len; /* bytes from the Ethernet header on */
	__u32 flags;
	__u32 gso_type;
	__u16 gso_size;
	__u16 gso_segs;
	__u16 csum_start;
	__u16 csum_offset;
	__u16 vlan_tci;
	__u16 vlan_proto;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct slot_range);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct skb_info);
} skb_infos SEC(".maps");

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		*value += 1;
}

/*
 * Puts the metadata in front of the frame. A driver may have left metadata of
 * its own there; the frame's must touch the Ethernet header, so the adjustment
 * starts from what is there.
 */
static __always_inline int write_meta(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 zero = 0;
	struct skb_info *info;
	struct frame_meta *meta;
	int present = (int)(ctx->data - ctx->data_meta);

	if (bpf_xdp_adjust_meta(ctx, present - (int)sizeof(*meta)))
		return -1;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return -1;

	__builtin_memset(meta, 0, sizeof(*meta));
	meta->ifindex = ifindex;
	meta->rx_queue = ctx->rx_queue_index;
	meta->magic = META_MAGIC;

	info = bpf_map_lookup_elem(&skb_infos, &zero);
	if (!info || info->ifindex != ifindex)
		return 0;
	/* Whatever comes next on this CPU is another frame. */
	info->ifindex = 0;
	if (info->len != bpf_xdp_get_buff_len(ctx))
		return 0;
	meta->flags = info->flags;
	meta->gso_type = info->gso_type;
	meta->gso_size = info->gso_size;
	meta->gso_segs = info->gso_segs;
	meta->csum_start = info->csum_start;
	meta->csum_offset = info->csum_offset;
	meta->vlan_tci = info->vlan_tci;
	meta->vlan_proto = info->vlan_proto;
	count(SKB_INFO_USED);
	return 0;
}

/*
 * Hands the frame to the socket of its device and queue. Without a socket it is
 * dropped: a frame meant for the overlay never reaches the host's stack.
 * `first_counter` is TENANT_REDIRECTED or UNDERLAY_REDIRECTED; the reasons to
 * drop follow both in the same order.
 */
static __always_inline int to_socket(struct xdp_md *ctx, __u32 first_counter)
{
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 queue = ctx->rx_queue_index;
	struct slot_range *range = bpf_map_lookup_elem(&slots, &ifindex);
	int verdict;

	if (!range) {
		count(first_counter + TENANT_UNKNOWN_DEVICE);
		return XDP_DROP;
	}
	if (queue >= range->count) {
		count(first_counter + TENANT_QUEUE_OUT_OF_RANGE);
		return XDP_DROP;
	}
	if (write_meta(ctx)) {
		count(first_counter + TENANT_NO_HEADROOM);
		return XDP_DROP;
	}
	verdict = (int)bpf_redirect_map(&xsks, range->first + queue, XDP_DROP);
	count(first_counter + (verdict == XDP_REDIRECT ? TENANT_REDIRECTED : TENANT_NO_SOCKET));
	return verdict;
}

_Static_assert(TENANT_REDIRECTED == 0 && UNDERLAY_NO_SOCKET == UNDERLAY_REDIRECTED + TENANT_NO_SOCKET &&
		       UNDERLAY_NO_HEADROOM == UNDERLAY_REDIRECTED + TENANT_NO_HEADROOM,
	       "to_socket relies on the same order of reasons");
