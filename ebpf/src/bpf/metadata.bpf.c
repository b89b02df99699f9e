// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * XDP sees bytes. Whether a frame is a superframe, of which kind, and whether
 * its checksum is complete stands in the sk_buff. This program runs on the same
 * CPU directly before generic XDP, and leaves there what it read.
 */
#include "common.h"

#include <bpf/bpf_core_read.h>

/*
 * The fields read here, by name; the loader relocates them to where the running
 * kernel has them.
 */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	unsigned int len;
	__u8 ip_summed : 2;
	__u16 csum_start;
	__u16 csum_offset;
	__be16 vlan_proto;
	__u16 vlan_tci;
	__u16 mac_header;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	unsigned short gso_size;
	unsigned short gso_segs;
	unsigned int gso_type;
} __attribute__((preserve_access_index));

/* The kernel's values of ip_summed. */
#define CHECKSUM_UNNECESSARY 1
#define CHECKSUM_COMPLETE 2
#define CHECKSUM_PARTIAL 3

/*
 * Devices whose frames are worth a look: those with generic XDP of ours, and the
 * inode of the network namespace that their index is valid in.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u32);
} watched SEC(".maps");

SEC("tp_btf/netif_receive_skb")
int metadata(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	__u32 ifindex = (__u32)skb->dev->ifindex;
	struct skb_shared_info *shared;
	struct skb_info *info;
	unsigned char *head;
	__u32 *netns;
	__u16 mac_header, vlan_proto;
	__u32 flags = META_SKB, zero = 0;

	netns = bpf_map_lookup_elem(&watched, &ifindex);
	if (!netns || *netns != skb->dev->nd_net.net->ns.inum)
		return 0;
	info = bpf_map_lookup_elem(&skb_infos, &zero);
	if (!info)
		return 0;

	head = skb->head;
	mac_header = skb->mac_header;
	/* skb->len starts behind the Ethernet header, which XDP's frame includes. */
	info->len = skb->len + (__u32)(skb->data - (head + mac_header));

	shared = (struct skb_shared_info *)(head + skb->end);
	info->gso_type = 0;
	info->gso_size = 0;
	info->gso_segs = 0;
	bpf_core_read(&info->gso_size, sizeof(info->gso_size), &shared->gso_size);
	if (info->gso_size) {
		bpf_core_read(&info->gso_segs, sizeof(info->gso_segs), &shared->gso_segs);
		bpf_core_read(&info->gso_type, sizeof(info->gso_type), &shared->gso_type);
	}

	info->csum_start = 0;
	info->csum_offset = 0;
	switch (BPF_CORE_READ_BITFIELD(skb, ip_summed)) {
	case CHECKSUM_PARTIAL:
		flags |= META_CSUM_PARTIAL;
		/* Both are offsets from the buffer's head. */
		info->csum_start = skb->csum_start - mac_header;
		info->csum_offset = skb->csum_offset;
		break;
	case CHECKSUM_UNNECESSARY:
		flags |= META_CSUM_UNNECESSARY;
		break;
	case CHECKSUM_COMPLETE:
		flags |= META_CSUM_COMPLETE;
		break;
	}

	vlan_proto = bpf_ntohs(skb->vlan_proto);
	info->vlan_proto = vlan_proto;
	info->vlan_tci = 0;
	if (vlan_proto) {
		flags |= META_VLAN;
		info->vlan_tci = skb->vlan_tci;
	}

	info->flags = flags;
	info->ifindex = ifindex;
	count(SKB_INFO_CAPTURED);
	return 0;
}
