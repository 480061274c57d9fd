/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for bindings/generated_genetlink.rs: generic netlink, which
 * kernel::bindings does not have before 7.3, and out-of-line copies of its static
 * inlines. Types are generated here too, those of <net/genetlink.h> and
 * <net/netlink.h> alone.
 */
#ifndef RNBD_GENETLINK_H
#define RNBD_GENETLINK_H

#include <net/genetlink.h>
#include <net/netlink.h>

struct sk_buff *rnbd_helper_genlmsg_new(size_t payload, gfp_t flags);
int rnbd_helper_genlmsg_multicast(const struct genl_family *family, struct sk_buff *skb,
				  u32 portid, unsigned int group, gfp_t flags);
void rnbd_helper_genlmsg_end(struct sk_buff *skb, void *hdr);
void rnbd_helper_nlmsg_free(struct sk_buff *skb);
int rnbd_helper_genl_has_listeners(const struct genl_family *family, struct net *net,
				   unsigned int group);

#endif /* RNBD_GENETLINK_H */
