// SPDX-License-Identifier: GPL-2.0
/*
 * Out-of-line static inlines of generic netlink; see genetlink.h.
 */

#include "genetlink.h"

struct sk_buff *rnbd_helper_genlmsg_new(size_t payload, gfp_t flags)
{
	return genlmsg_new(payload, flags);
}

int rnbd_helper_genlmsg_multicast(const struct genl_family *family, struct sk_buff *skb,
				  u32 portid, unsigned int group, gfp_t flags)
{
	return genlmsg_multicast(family, skb, portid, group, flags);
}

void rnbd_helper_genlmsg_end(struct sk_buff *skb, void *hdr)
{
	genlmsg_end(skb, hdr);
}

void rnbd_helper_nlmsg_free(struct sk_buff *skb)
{
	nlmsg_free(skb);
}

int rnbd_helper_genl_has_listeners(const struct genl_family *family, struct net *net,
				   unsigned int group)
{
	return genl_has_listeners(family, net, group);
}
