/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for bindings/generated.rs: the functions of helpers.h,
 * and constants whose C definitions are casts that bindgen cannot evaluate.
 * Types are not generated here: they are those of kernel::bindings. So are the
 * numbers of nbd's uapi headers, which neither kernel::uapi nor kernel::bindings has.
 */
#include "helpers.h"

#include <linux/nbd.h>
#include <linux/nbd-netlink.h>
#include <trace/events/nbd.h>
#include "rnbd_events.h"

/* Rust has it as bytes: see mod.rs. */
static_assert(sizeof(struct nbd_request) == 28);

#define RNBD_CONST(type, name) const type RNBD_CONST_##name = (__force type)name

RNBD_CONST(blk_status_t, BLK_STS_NOTSUPP);
RNBD_CONST(blk_status_t, BLK_STS_NOSPC);
RNBD_CONST(blk_status_t, BLK_STS_TARGET);
RNBD_CONST(blk_status_t, BLK_STS_OFFLINE);
RNBD_CONST(blk_status_t, BLK_STS_IOERR);

RNBD_CONST(blk_features_t, BLK_FEAT_WRITE_CACHE);
RNBD_CONST(blk_features_t, BLK_FEAT_FUA);
RNBD_CONST(blk_features_t, BLK_FEAT_ROTATIONAL);

RNBD_CONST(blk_mode_t, BLK_OPEN_EXCL);
RNBD_CONST(blk_mode_t, BLK_OPEN_WRITE);

RNBD_CONST(gfp_t, GFP_NOIO);

RNBD_CONST(blk_opf_t, REQ_FUA);
RNBD_CONST(blk_opf_t, REQ_NOUNMAP);

/* Named otherwise, for bindgen can evaluate it in some configurations. */
const u64 RNBD_CONST_BLK_LARGEST_BLOCK = BLK_MAX_BLOCK_SIZE;

/* uapi: what an ioctl's number is made of, bindgen does not look into. */
RNBD_CONST(u32, NBD_SET_SOCK);
RNBD_CONST(u32, NBD_SET_BLKSIZE);
RNBD_CONST(u32, NBD_SET_SIZE);
RNBD_CONST(u32, NBD_DO_IT);
RNBD_CONST(u32, NBD_CLEAR_SOCK);
RNBD_CONST(u32, NBD_CLEAR_QUE);
RNBD_CONST(u32, NBD_PRINT_DEBUG);
RNBD_CONST(u32, NBD_SET_SIZE_BLOCKS);
RNBD_CONST(u32, NBD_DISCONNECT);
RNBD_CONST(u32, NBD_SET_TIMEOUT);
RNBD_CONST(u32, NBD_SET_FLAGS);
