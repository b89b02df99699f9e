// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Takes from the underlay what belongs to the overlay, and leaves the rest to
 * the host: tunnel packets to a VTEP address of ours, and ICMP errors about
 * tunnel packets that we sent.
 *
 * The answer for a frame is the counter that it moves:
 *   UNDERLAY_REDIRECTED, UNDERLAY_ICMP_ERROR   to the socket
 *   UNDERLAY_PASSED                            to the host
 *   any other                                  dropped
 */
#include "common.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

/*
 * How the packets of a format are told from others: bits that have a value in
 * the first HEAD bytes of tunnel header and inner frame, which all have.
 */
#define HEAD 16
#define MAX_FORMATS 4
struct signature {
	__u64 mask[HEAD / 8];
	__u64 value[HEAD / 8];
};

/* The formats of a carrier. None: whatever it carries is a tunnel packet. */
struct signatures {
	__u64 formats;
	struct signature format[MAX_FORMATS];
};

/* What carries tunnel packets. */
struct carrier {
	__be16 port; /* 0 where the protocol has none */
	__u8 protocol;
	__u8 unused; /* 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be32);
	__type(value, __u32);
} vtep4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct in6_addr);
	__type(value, __u32);
} vtep6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct carrier);
	__type(value, struct signatures);
} carriers SEC(".maps");

/*
 * Headers are read from the first WINDOW bytes. Two VLAN tags, the longest IPv4
 * header, ICMP and the quoted headers need 114.
 */
#define WINDOW 192

/*
 * Where the linear part of a frame ends before its headers do, they are copied.
 * What is behind the window is never looked at, but the verifier knows the size
 * of a map's value, not where the copy ends.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[WINDOW + 64]);
} windows SEC(".maps");

struct vlan_header {
	__be16 tci;
	__be16 encapsulated_proto;
};

struct extension_header {
	__u8 next;
	__u8 len; /* in units that depend on the kind of header */
	__be16 fragment; /* fragment header: offset in the upper 13 bits, bit 0 M */
	__be32 rest;
};

/* The header of an ICMP or ICMPv6 error; the packet it is about follows. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

#define ICMP_DEST_UNREACH 3
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2

#define IPV4_OFFSET bpf_htons(0x1fff)
#define IPV4_MORE bpf_htons(0x2000)
#define IPV6_OFFSET bpf_htons(0xfff8)
#define IPV6_MORE bpf_htons(0x0001)
#define MAX_EXTENSION_HEADERS 6

static __always_inline int is_vtep4(__be32 addr)
{
	return bpf_map_lookup_elem(&vtep4, &addr) != 0;
}

static __always_inline int is_vtep6(const struct in6_addr *addr)
{
	struct in6_addr key;

	__builtin_memcpy(&key, addr, sizeof(key));
	return bpf_map_lookup_elem(&vtep6, &key) != 0;
}

/* The formats that the L4 header at `l4`, of which four bytes are there, may carry; 0: none. */
static __always_inline struct signatures *carried(__u8 protocol, void *l4)
{
	struct carrier key = { .protocol = protocol };
	__be16 *ports = l4;

	if (protocol == IPPROTO_UDP || protocol == IPPROTO_TCP)
		key.port = ports[1];
	return bpf_map_lookup_elem(&carriers, &key);
}

/*
 * Whether the tunnel header at `header` is of one of the formats. One that is
 * of none is somebody else's packet that came to our port.
 */
static __always_inline int identified(struct signatures *formats, void *header, __u8 *end)
{
	__u64 head[HEAD / 8];

	if (!formats->formats)
		return 1;
	if (header + HEAD > (void *)end)
		return 0;
	__builtin_memcpy(head, header, sizeof(head));
#pragma unroll
	for (__u32 i = 0; i < MAX_FORMATS; i++) {
		struct signature *format = &formats->format[i];
		__u64 wrong = (head[0] & format->mask[0]) ^ format->value[0];

		wrong |= (head[1] & format->mask[1]) ^ format->value[1];
		if (i < formats->formats && !wrong)
			return 1;
	}
	return 0;
}

/*
 * What may carry a tunnel packet to a VTEP, at offset `off`. `unfit` is the
 * counter of what makes it unfit for the overlay, or UNDERLAY_REDIRECTED.
 * Without the first four bytes nobody can say whose it is; the host discards
 * such a packet anyway.
 */
static __always_inline int classify_l4(__u8 *start, __u8 *end, __u32 off, __u8 protocol, int unfit)
{
	void *l4 = start + off;
	struct signatures *formats;
	__u32 len = 0;

	if (l4 + 4 > (void *)end)
		return UNDERLAY_PASSED;
	formats = carried(protocol, l4);
	if (!formats)
		return UNDERLAY_PASSED;
	if (protocol == IPPROTO_UDP)
		len = sizeof(struct udphdr);
	else if (protocol == IPPROTO_TCP)
		len = sizeof(struct tcphdr);
	if (l4 + len > (void *)end)
		return UNDERLAY_TRUNCATED;
	if (!identified(formats, l4 + len, end))
		return UNDERLAY_PASSED;
	return unfit;
}

/* An ICMPv4 error: ours if it quotes a tunnel packet sent by a VTEP of ours. */
static __always_inline int classify_icmp4(__u8 *start, __u8 *end, __u32 off)
{
	struct icmp_error *icmp = (void *)(start + off);
	struct iphdr *quoted = (void *)(icmp + 1);
	void *l4 = quoted + 1;

	if (l4 + 4 > (void *)end)
		return UNDERLAY_PASSED;
	if (icmp->type != ICMP_DEST_UNREACH)
		return UNDERLAY_PASSED;
	if (quoted->version != 4 || quoted->ihl != 5 || quoted->frag_off & IPV4_OFFSET)
		return UNDERLAY_PASSED;
	if (!is_vtep4(quoted->saddr) || !carried(quoted->protocol, l4))
		return UNDERLAY_PASSED;
	return UNDERLAY_ICMP_ERROR;
}

/* Likewise for ICMPv6: destination unreachable and packet too big. */
static __always_inline int classify_icmp6(__u8 *start, __u8 *end, __u32 off)
{
	struct icmp_error *icmp = (void *)(start + off);
	struct ipv6hdr *quoted = (void *)(icmp + 1);
	void *l4 = quoted + 1;

	if (l4 + 4 > (void *)end)
		return UNDERLAY_PASSED;
	if (icmp->type != ICMPV6_DEST_UNREACH && icmp->type != ICMPV6_PKT_TOOBIG)
		return UNDERLAY_PASSED;
	if (quoted->version != 6)
		return UNDERLAY_PASSED;
	if (!is_vtep6(&quoted->saddr) || !carried(quoted->nexthdr, l4))
		return UNDERLAY_PASSED;
	return UNDERLAY_ICMP_ERROR;
}

static __always_inline int classify_ipv4(__u8 *start, __u8 *end, __u32 off)
{
	struct iphdr *ip = (void *)(start + off);
	__u32 header_len;

	if ((void *)(ip + 1) > (void *)end)
		return UNDERLAY_PASSED;
	header_len = (__u32)ip->ihl * 4;
	if (ip->version != 4 || header_len < sizeof(*ip) || !is_vtep4(ip->daddr))
		return UNDERLAY_PASSED;
	/* A later fragment names no port: it cannot be told from the host's own. */
	if (ip->frag_off & IPV4_OFFSET)
		return UNDERLAY_PASSED;
	if (ip->protocol == IPPROTO_ICMP)
		return classify_icmp4(start, end, off + header_len);
	if (ip->frag_off & IPV4_MORE)
		return classify_l4(start, end, off + header_len, ip->protocol, UNDERLAY_FRAGMENT);
	if (header_len != sizeof(*ip))
		return classify_l4(start, end, off + header_len, ip->protocol, UNDERLAY_IPV4_OPTIONS);
	return classify_l4(start, end, off + sizeof(*ip), ip->protocol, UNDERLAY_REDIRECTED);
}

/*
 * Extension headers in front of what carries tunnel packets are nobody's honest
 * traffic, and neither is a chain that goes on behind the window or after
 * MAX_EXTENSION_HEADERS: both are dropped rather than followed.
 */
static __always_inline int classify_extended(__u8 *start, __u8 *end, __u32 off, __u8 next)
{
	int unfit = UNDERLAY_IPV6_EXTENSION;

	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct extension_header *header;

		if (off > WINDOW - sizeof(*header))
			return UNDERLAY_IPV6_EXTENSION;
		header = (void *)(start + off);
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			if ((void *)(header + 1) > (void *)end)
				return UNDERLAY_PASSED;
			off += ((__u32)header->len + 1) * 8;
			break;
		case IPPROTO_AH:
			if ((void *)(header + 1) > (void *)end)
				return UNDERLAY_PASSED;
			off += ((__u32)header->len + 2) * 4;
			break;
		case IPPROTO_FRAGMENT:
			if ((void *)(header + 1) > (void *)end)
				return UNDERLAY_PASSED;
			if (header->fragment & IPV6_OFFSET)
				return UNDERLAY_PASSED;
			if (header->fragment & IPV6_MORE)
				unfit = UNDERLAY_FRAGMENT;
			off += sizeof(*header);
			break;
		default:
			return classify_l4(start, end, off, next, unfit);
		}
		next = header->next;
	}
	return UNDERLAY_IPV6_EXTENSION;
}

static __always_inline int classify_ipv6(__u8 *start, __u8 *end, __u32 off)
{
	struct ipv6hdr *ip6 = (void *)(start + off);

	if ((void *)(ip6 + 1) > (void *)end)
		return UNDERLAY_PASSED;
	if (ip6->version != 6 || !is_vtep6(&ip6->daddr))
		return UNDERLAY_PASSED;
	off += sizeof(*ip6);
	switch (ip6->nexthdr) {
	case IPPROTO_ICMPV6:
		return classify_icmp6(start, end, off);
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
	case IPPROTO_AH:
	case IPPROTO_FRAGMENT:
		return classify_extended(start, end, off, ip6->nexthdr);
	default:
		return classify_l4(start, end, off, ip6->nexthdr, UNDERLAY_REDIRECTED);
	}
}

static __always_inline int classify(__u8 *start, __u8 *end)
{
	struct ethhdr *eth = (void *)start;
	__u32 off = sizeof(*eth);
	__be16 proto;

	if ((void *)(eth + 1) > (void *)end)
		return UNDERLAY_PASSED;
	proto = eth->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlan_header *vlan = (void *)(start + off);

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(vlan + 1) > (void *)end)
			return UNDERLAY_PASSED;
		proto = vlan->encapsulated_proto;
		off += sizeof(*vlan);
	}
	if (proto == bpf_htons(ETH_P_IP))
		return classify_ipv4(start, end, off);
	if (proto == bpf_htons(ETH_P_IPV6))
		return classify_ipv6(start, end, off);
	return UNDERLAY_PASSED;
}

/* The same, for a frame whose linear part is shorter than its headers may be. */
static __noinline int classify_scattered(struct xdp_md *ctx, __u32 len)
{
	__u32 zero = 0;
	__u8 *window = bpf_map_lookup_elem(&windows, &zero);

	if (len > WINDOW)
		len = WINDOW;
	if (!window || len < sizeof(struct ethhdr) || bpf_xdp_load_bytes(ctx, 0, window, len))
		return UNDERLAY_TRUNCATED;
	return classify(window, window + len);
}

SEC("xdp.frags")
int underlay(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	__u8 *end = (void *)(long)ctx->data_end;
	__u32 len = (__u32)bpf_xdp_get_buff_len(ctx);
	int counter;

	if (end - data < WINDOW && len > end - data)
		counter = classify_scattered(ctx, len);
	else
		counter = classify(data, end);

	if (counter == UNDERLAY_REDIRECTED)
		return to_socket(ctx, UNDERLAY_REDIRECTED);
	count(counter);
	if (counter == UNDERLAY_ICMP_ERROR)
		return to_socket(ctx, UNDERLAY_REDIRECTED);
	return counter == UNDERLAY_PASSED ? XDP_PASS : XDP_DROP;
}
