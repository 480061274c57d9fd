
#if IS_ENABLED(CONFIG_BLK_DEV_RUST_NBD)
#include <linux/nbd.h>
#include <trace/events/nbd.h>
#include "../../drivers/block/rust_nbd/rnbd_events.h"
#endif
