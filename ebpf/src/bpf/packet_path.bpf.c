// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The programs that share maps are one object, so that sharing needs no pins:
 * each map exists once, and the loader may still load each program or leave it.
 */
#include "tenant.bpf.c"
#include "underlay.bpf.c"
#include "metadata.bpf.c"
#include "guard.bpf.c"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
