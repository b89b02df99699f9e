// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Every frame of a tenant goes to the socket of its device and queue, or nowhere. */
#include "common.h"

SEC("xdp.frags")
int tenant(struct xdp_md *ctx)
{
	return to_socket(ctx, TENANT_REDIRECTED);
}
