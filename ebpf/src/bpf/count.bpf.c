// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* A receiver that counts: what arrives, per CPU, at the least cost per frame. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Set by the loader: XDP_DROP or XDP_PASS for a counted frame. */
const volatile __u32 counted_verdict = XDP_DROP;
/* Set by the loader: the UDP destination port to count; 0 counts every frame. */
const volatile __u16 counted_port = 0;

struct totals {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps");

/* UDP directly behind an untagged Ethernet and an IP header without options. */
static __always_inline int is_counted(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct udphdr *udp;

	if ((void *)(eth + 1) > end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP ||
		    ip->frag_off & bpf_htons(0x1fff))
			return 0;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);

		udp = (void *)(ip6 + 1);
		if ((void *)(udp + 1) > end || ip6->nexthdr != IPPROTO_UDP)
			return 0;
	} else {
		return 0;
	}
	return udp->dest == bpf_htons(counted_port);
}

SEC("xdp.frags")
int count_frames(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct totals *sum;
	__u32 zero = 0;

	if (counted_port && !is_counted(data, end))
		return XDP_PASS;
	sum = bpf_map_lookup_elem(&totals, &zero);
	if (sum) {
		sum->packets += 1;
		sum->bytes += bpf_xdp_get_buff_len(ctx);
	}
	return (int)counted_verdict;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
