/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What travels with a frame to user space: 32 bytes directly in front of the
 * Ethernet header, in host byte order. `FrameMeta` in Rust has the same layout.
 */
#pragma once

#include <linux/types.h>

/* The fields from gso_type to vlan_proto come from the kernel's sk_buff. */
#define META_SKB 1
/* The sum at csum_start + csum_offset covers the pseudo header only. */
#define META_CSUM_PARTIAL 2
/* The receiving device verified the checksum (CHECKSUM_UNNECESSARY). */
#define META_CSUM_UNNECESSARY 4
/* A VLAN tag is carried beside the frame and is not among its bytes. */
#define META_VLAN 8
/* The device summed the whole packet (CHECKSUM_COMPLETE). */
#define META_CSUM_COMPLETE 16

#define META_MAGIC 0x434c5654

struct frame_meta {
	__u32 flags;
	__u32 gso_type;
	__u16 gso_size;
	__u16 gso_segs;
	__u16 csum_start; /* from the first byte of the Ethernet header */
	__u16 csum_offset; /* from csum_start */
	__u16 vlan_tci;
	__u16 vlan_proto;
	__u32 ifindex;
	__u32 rx_queue;
	__u32 magic;
};

_Static_assert(sizeof(struct frame_meta) == 32, "metadata length is part of the contract");
