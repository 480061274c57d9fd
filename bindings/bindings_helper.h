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

RNBD_CONST(u8, BLK_STS_NOTSUPP);
RNBD_CONST(u8, BLK_STS_NOSPC);
RNBD_CONST(u8, BLK_STS_TARGET);
RNBD_CONST(u8, BLK_STS_RESOURCE);
RNBD_CONST(u8, BLK_STS_OFFLINE);
RNBD_CONST(u8, BLK_STS_IOERR);

RNBD_CONST(u32, BLK_FEAT_WRITE_CACHE);
RNBD_CONST(u32, BLK_FEAT_FUA);
RNBD_CONST(u32, BLK_FEAT_ROTATIONAL);

RNBD_CONST(u32, BLK_OPEN_EXCL);
RNBD_CONST(u32, BLK_OPEN_WRITE);

RNBD_CONST(u32, GFP_NOIO);

RNBD_CONST(u32, REQ_FUA);
RNBD_CONST(u32, REQ_NOUNMAP);
RNBD_CONST(u64, BLK_MAX_BLOCK_SIZE);
