// SPDX-License-Identifier: GPL-2.0
/*
 * Out-of-line static inlines for abstractions/; see helpers.h.
 */

#include <linux/bottom_half.h>
#include <linux/cgroup.h>
#include <linux/highmem.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <uapi/linux/sched/types.h>

#include "helpers.h"

sector_t rnbd_helper_blk_rq_pos(const struct request *rq)
{
	return blk_rq_pos(rq);
}

unsigned int rnbd_helper_blk_rq_bytes(const struct request *rq)
{
	return blk_rq_bytes(rq);
}

bool rnbd_helper_blk_should_fake_timeout(struct request_queue *q)
{
	return blk_should_fake_timeout(q);
}

struct request *rnbd_helper_blk_mq_tag_to_rq(struct blk_mq_tags *tags, unsigned int tag)
{
	return blk_mq_tag_to_rq(tags, tag);
}

struct request *rnbd_helper_rq_list_pop(struct rq_list *list)
{
	return rq_list_pop(list);
}

bool rnbd_helper_blk_mq_add_to_batch(struct request *rq, struct io_comp_batch *batch, bool is_error,
				     void (*complete)(struct io_comp_batch *batch))
{
	return blk_mq_add_to_batch(rq, batch, is_error, complete);
}

int rnbd_helper_blk_mq_tags_lock(struct blk_mq_tag_set *set)
{
	return srcu_read_lock(&set->tags_srcu);
}

void rnbd_helper_blk_mq_tags_unlock(struct blk_mq_tag_set *set, int index)
{
	srcu_read_unlock(&set->tags_srcu, index);
}

bool rnbd_helper_percpu_ref_tryget(struct percpu_ref *ref)
{
	return percpu_ref_tryget(ref);
}

void rnbd_helper_percpu_ref_put(struct percpu_ref *ref)
{
	percpu_ref_put(ref);
}

struct device *rnbd_helper_disk_to_dev(struct gendisk *disk)
{
	return disk_to_dev(disk);
}

struct gendisk *rnbd_helper_dev_to_disk(struct device *dev)
{
	return dev_to_disk(dev);
}

unsigned int rnbd_helper_disk_openers(struct gendisk *disk)
{
	return disk_openers(disk);
}

sector_t rnbd_helper_get_capacity(struct gendisk *disk)
{
	return get_capacity(disk);
}

bool rnbd_helper_get_disk_ro(struct gendisk *disk)
{
	return get_disk_ro(disk);
}

void rnbd_helper_disk_need_part_scan(struct gendisk *disk)
{
	set_bit(GD_NEED_PART_SCAN, &disk->state);
}

void rnbd_helper_disk_clear_need_part_scan(struct gendisk *disk)
{
	clear_bit(GD_NEED_PART_SCAN, &disk->state);
}

void rnbd_helper_dev_set_uevent_suppress(struct device *dev, bool val)
{
	dev_set_uevent_suppress(dev, val);
}

void rnbd_helper_bdev_clear_read_only(struct block_device *bdev)
{
	bdev_clear_flag(bdev, BD_READ_ONLY);
}

/* bdev_set_nr_sectors(), which the block layer keeps for itself. */
void rnbd_helper_bdev_set_nr_sectors(struct block_device *bdev, sector_t sectors)
{
	guard(spinlock)(&bdev->bd_size_lock);
	i_size_write(bdev->bd_mapping->host, (loff_t)sectors << SECTOR_SHIFT);
	bdev->bd_nr_sectors = sectors;
}

void rnbd_helper_queue_limits_cancel_update(struct request_queue *q)
{
	queue_limits_cancel_update(q);
}

void rnbd_helper_blk_queue_disable_discard(struct request_queue *q)
{
	blk_queue_disable_discard(q);
}

void rnbd_helper_blk_queue_disable_write_zeroes(struct request_queue *q)
{
	blk_queue_disable_write_zeroes(q);
}

unsigned int rnbd_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

void rnbd_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

int rnbd_helper_sched_set_batch(struct task_struct *task)
{
	struct sched_attr attr = { .sched_policy = SCHED_BATCH };

	return sched_setattr_nocheck(task, &attr);
}

void rnbd_helper_local_bh_disable(void)
{
	local_bh_disable();
}

void rnbd_helper_local_bh_enable(void)
{
	local_bh_enable();
}

bool rnbd_helper_page_ref_is_one(const struct page *page)
{
	return atomic_read_acquire(&page->_refcount) == 1;
}

void rnbd_helper_memcpy_to_page(struct page *page, size_t offset, const char *from, size_t len)
{
	memcpy_to_page(page, offset, from, len);
}

void rnbd_helper_memcpy_page(struct page *to, size_t to_offset, struct page *from,
			     size_t from_offset, size_t len)
{
	memcpy_page(to, to_offset, from, from_offset, len);
}

void rnbd_helper_copy_highpage(struct page *to, struct page *from)
{
	copy_highpage(to, from);
}

void rnbd_helper_bvec_set_virt(struct bio_vec *bv, void *vaddr, unsigned int len)
{
	bvec_set_virt(bv, vaddr, len);
}

bool rnbd_helper_sk_is_tcp(const struct sock *sk)
{
	return sk_is_tcp(sk);
}

bool rnbd_helper_sk_is_stream_unix(const struct sock *sk)
{
	return sk_is_stream_unix(sk);
}

bool rnbd_helper_sock_can_shutdown(const struct socket *sock)
{
	return sock->ops->shutdown != sock_no_shutdown;
}

int rnbd_helper_sock_disconnect(struct socket *sock)
{
	struct sockaddr nowhere = { .sa_family = AF_UNSPEC };

	/* Kernels differ in what they call an address. */
	return kernel_connect(sock, (void *)&nowhere, sizeof(nowhere), 0);
}

void rnbd_helper_sock_set_noio(struct sock *sk)
{
	sk->sk_allocation = GFP_NOIO | __GFP_MEMALLOC;
	sk->sk_use_task_frag = false;
}

void rnbd_helper_sk_store_sndtimeo(struct sock *sk, long timeo)
{
	WRITE_ONCE(sk->sk_sndtimeo, timeo);
}

#ifdef CONFIG_DEBUG_LOCK_ALLOC
/* One class pair a family, so that lockdep does not mix them with ordinary sockets. */
static struct lock_class_key rnbd_sk_key[3];
static struct lock_class_key rnbd_slock_key[3];

/*
 * A socket keeps its class's module loaded, and lets go of it once: to classify it again would leak
 * that.
 */
static bool rnbd_sk_is_classified(const struct sock *sk)
{
#if IS_ENABLED(CONFIG_PROVE_LOCKING) && IS_ENABLED(CONFIG_MODULES)
	return sk->sk_owner;
#else
	return false;
#endif
}

void rnbd_helper_sock_reclassify(struct sock *sk)
{
	/* The same socket may be offered by two tasks. */
	static DEFINE_MUTEX(lock);

	guard(mutex)(&lock);
	if (rnbd_sk_is_classified(sk) || !sock_allow_reclassification(sk))
		return;

	switch (sk->sk_family) {
	case AF_INET:
		sock_lock_init_class_and_name(sk, "slock-AF_INET-RNBD", &rnbd_slock_key[0],
					      "sk_lock-AF_INET-RNBD", &rnbd_sk_key[0]);
		break;
	case AF_INET6:
		sock_lock_init_class_and_name(sk, "slock-AF_INET6-RNBD", &rnbd_slock_key[1],
					      "sk_lock-AF_INET6-RNBD", &rnbd_sk_key[1]);
		break;
	case AF_UNIX:
		sock_lock_init_class_and_name(sk, "slock-AF_UNIX-RNBD", &rnbd_slock_key[2],
					      "sk_lock-AF_UNIX-RNBD", &rnbd_sk_key[2]);
		break;
	}
}
#else
void rnbd_helper_sock_reclassify(struct sock *sk)
{
}
#endif

bool rnbd_helper_sk_has_data(const struct sock *sk)
{
	return !skb_queue_empty_lockless(&sk->sk_receive_queue);
}

wait_queue_head_t *rnbd_helper_sk_sleep(struct sock *sk)
{
	return sk_sleep(sk);
}

u32 rnbd_helper_sock_poll(struct socket *sock)
{
	/*
	 * With a table, poll_wait() would order this behind what it adds to the
	 * queue. Pairs with the barrier in wq_has_sleeper().
	 */
	smp_mb();
	return (__force u32)READ_ONCE(sock->ops)->poll(sock->file, sock, NULL);
}

void rnbd_helper_sockfd_put(struct socket *sock)
{
	sockfd_put(sock);
}

unsigned int rnbd_helper_memalloc_noreclaim_save(void)
{
	return memalloc_noreclaim_save();
}

void rnbd_helper_memalloc_noreclaim_restore(unsigned int flags)
{
	memalloc_noreclaim_restore(flags);
}

const struct cred *rnbd_helper_override_kernel_creds(void)
{
	return override_creds(kernel_cred());
}

void rnbd_helper_revert_creds(const struct cred *cred)
{
	revert_creds(cred);
}

struct nlattr *rnbd_helper_nla_nest_start_noflag(struct sk_buff *skb, int attrtype)
{
	return nla_nest_start_noflag(skb, attrtype);
}

int rnbd_helper_nla_nest_end_safe(struct sk_buff *skb, struct nlattr *start)
{
	return nla_nest_end_safe(skb, start);
}

void rnbd_helper_nla_nest_cancel(struct sk_buff *skb, struct nlattr *start)
{
	nla_nest_cancel(skb, start);
}

int rnbd_helper_genlmsg_reply(struct sk_buff *skb, struct genl_info *info)
{
	return genlmsg_reply(skb, info);
}

bool rnbd_helper_try_module_get(struct module *module)
{
	return try_module_get(module);
}

void rnbd_helper_module_put(struct module *module)
{
	module_put(module);
}

struct pid *rnbd_helper_get_pid(struct pid *pid)
{
	return get_pid(pid);
}

struct pid *rnbd_helper_current_tgid(void)
{
	return task_tgid(current);
}

/* The caller holds the RCU read lock. */
struct pid *rnbd_helper_parent_tgid(void)
{
	return task_tgid(rcu_dereference(current->real_parent));
}

int rnbd_helper_current_pid_nr(void)
{
	return task_pid_nr(current);
}

bool rnbd_helper_task_exiting(const struct task_struct *task)
{
	return READ_ONCE(task->flags) & PF_EXITING;
}

/* From when its cgroup is frozen until it goes on. */
bool rnbd_helper_task_freezes(struct task_struct *task)
{
	return (READ_ONCE(task->jobctl) & JOBCTL_TRAP_FREEZE) || data_race(cgroup_task_frozen(task));
}

int rnbd_helper_signal_live(const struct task_struct *task)
{
	return atomic_read(&task->signal->live);
}
