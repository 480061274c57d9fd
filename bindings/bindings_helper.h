/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for bindings/generated.rs: the functions of helpers.h,
 * and constants whose C definitions are casts that bindgen cannot evaluate.
 * Types are not generated here: they are those of kernel::bindings.
 */
#include "helpers.h"

#include <linux/nbd.h>
#include <trace/events/nbd.h>
#include "rnbd_events.h"

#define RNBD_CONST(type, name) const type RNBD_CONST_##name = (__force type)name

RNBD_CONST(blk_status_t, BLK_STS_NOTSUPP);
RNBD_CONST(blk_status_t, BLK_STS_NOSPC);
RNBD_CONST(blk_status_t, BLK_STS_TARGET);
RNBD_CONST(blk_status_t, BLK_STS_RESOURCE);
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
