/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Out-of-line copies of the static inlines and macros that abstractions/
 * needs and that the kernel's own rust/helpers does not have. Nothing here
 * decides anything: each function is the one C construct that its name says.
 */
#ifndef RNBD_HELPERS_H
#define RNBD_HELPERS_H

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/cred.h>
#include <linux/pagemap.h>
#include <linux/pid.h>
#include <net/genetlink.h>
#include <net/sock.h>

/* block/mq/request */
sector_t rnbd_helper_blk_rq_pos(const struct request *rq);
unsigned int rnbd_helper_blk_rq_bytes(const struct request *rq);
bool rnbd_helper_blk_should_fake_timeout(struct request_queue *q);
struct request *rnbd_helper_blk_mq_tag_to_rq(struct blk_mq_tags *tags, unsigned int tag);
struct request *rnbd_helper_rq_list_pop(struct rq_list *list);
bool rnbd_helper_blk_mq_add_to_batch(struct request *rq, struct io_comp_batch *batch, bool is_error,
				     void (*complete)(struct io_comp_batch *batch));
int rnbd_helper_blk_mq_tags_lock(struct blk_mq_tag_set *set);
void rnbd_helper_blk_mq_tags_unlock(struct blk_mq_tag_set *set, int index);
bool rnbd_helper_percpu_ref_tryget(struct percpu_ref *ref);
void rnbd_helper_percpu_ref_put(struct percpu_ref *ref);

/* block/mq/gen_disk */
struct device *rnbd_helper_disk_to_dev(struct gendisk *disk);
struct gendisk *rnbd_helper_dev_to_disk(struct device *dev);
unsigned int rnbd_helper_disk_openers(struct gendisk *disk);
sector_t rnbd_helper_get_capacity(struct gendisk *disk);
bool rnbd_helper_get_disk_ro(struct gendisk *disk);
void rnbd_helper_disk_need_part_scan(struct gendisk *disk);
void rnbd_helper_disk_clear_need_part_scan(struct gendisk *disk);
void rnbd_helper_dev_set_uevent_suppress(struct device *dev, bool val);
void rnbd_helper_bdev_clear_read_only(struct block_device *bdev);
void rnbd_helper_bdev_set_nr_sectors(struct block_device *bdev, sector_t sectors);
void rnbd_helper_queue_limits_cancel_update(struct request_queue *q);
void rnbd_helper_blk_queue_disable_discard(struct request_queue *q);
void rnbd_helper_blk_queue_disable_write_zeroes(struct request_queue *q);
unsigned int rnbd_helper_memalloc_noio_save(void);
void rnbd_helper_memalloc_noio_restore(unsigned int flags);

/* net/staging */
bool rnbd_helper_page_ref_is_one(const struct page *page);
void rnbd_helper_memcpy_to_page(struct page *page, size_t offset, const char *from, size_t len);
void rnbd_helper_memcpy_page(struct page *to, size_t to_offset, struct page *from,
			     size_t from_offset, size_t len);
void rnbd_helper_copy_highpage(struct page *to, struct page *from);

/* bvec */
void rnbd_helper_bvec_set_virt(struct bio_vec *bv, void *vaddr, unsigned int len);

/* kthread */
int rnbd_helper_sched_set_batch(struct task_struct *task);

/* bottom_half */
void rnbd_helper_local_bh_disable(void);
void rnbd_helper_local_bh_enable(void);

/* net/socket */
bool rnbd_helper_sk_is_tcp(const struct sock *sk);
bool rnbd_helper_sk_is_stream_unix(const struct sock *sk);
bool rnbd_helper_sock_can_shutdown(const struct socket *sock);
int rnbd_helper_sock_disconnect(struct socket *sock);
void rnbd_helper_sock_set_noio(struct sock *sk);
void rnbd_helper_sk_store_sndtimeo(struct sock *sk, long timeo);
void rnbd_helper_sock_reclassify(struct sock *sk);
bool rnbd_helper_sk_has_data(const struct sock *sk);
wait_queue_head_t *rnbd_helper_sk_sleep(struct sock *sk);
u32 rnbd_helper_sock_poll(struct socket *sock);
void rnbd_helper_sockfd_put(struct socket *sock);
unsigned int rnbd_helper_memalloc_noreclaim_save(void);
void rnbd_helper_memalloc_noreclaim_restore(unsigned int flags);
const struct cred *rnbd_helper_override_kernel_creds(void);
void rnbd_helper_revert_creds(const struct cred *cred);

/* net/genetlink */
struct nlattr *rnbd_helper_nla_nest_start_noflag(struct sk_buff *skb, int attrtype);
int rnbd_helper_nla_nest_end_safe(struct sk_buff *skb, struct nlattr *start);
void rnbd_helper_nla_nest_cancel(struct sk_buff *skb, struct nlattr *start);
int rnbd_helper_genlmsg_reply(struct sk_buff *skb, struct genl_info *info);

/* module_ref: in a kernel without modules these do nothing, inline. */
bool rnbd_helper_try_module_get(struct module *module);
void rnbd_helper_module_put(struct module *module);

/* pid */
struct pid *rnbd_helper_get_pid(struct pid *pid);
struct pid *rnbd_helper_current_tgid(void);
struct pid *rnbd_helper_parent_tgid(void);
int rnbd_helper_current_pid_nr(void);
bool rnbd_helper_task_exiting(const struct task_struct *task);
bool rnbd_helper_task_freezes(struct task_struct *task);
int rnbd_helper_signal_live(const struct task_struct *task);

/* net/socket: exported, but not in the kernel crate's headers. */
void sk_set_memalloc(struct sock *sk);

#endif /* RNBD_HELPERS_H */
