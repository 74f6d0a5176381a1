/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "basic/error.h"
#include "vm/definition.h"
#include "vm/lease.h"

/*
 * A QEMU process: started unprivileged and sandboxed, found again after the keeper was killed, killed.
 *
 * RUNTIME_DIR/NAME/qemu.N/ is generation N's: qmp, serial and agent sockets, stderr, `pid`, `lock`. The
 * `lock` file is flock()ed by QEMU itself through an inherited fd: held means alive, whatever became of its parent.
 * The directory is root's (0711); all that QEMU needs of it, it gets as open fds. `pid` is one line, "PID STARTTIME
 * BOOTID", written by the child before it becomes QEMU (proc(5) stat field 22, kernel/random/boot_id).
 */
typedef struct QemuProcess {
	pid_t pid;
	int pidfd;
	unsigned int generation;
	char *dir; /* RUNTIME_DIR/NAME/qemu.N */
} QemuProcess;

typedef struct QemuStart {
	const VmDefinition *definition; /* pinned; `binary` already decided */
	const char *user;	/* who QEMU runs as: without groups (but /dev/kvm's), capabilities and ways to get any */
	const char *dir;	/* RUNTIME_DIR/NAME/qemu.N; made here */
	unsigned int generation;
	bool incoming;		/* -incoming defer */
	int memfd;		/* guest memory for MEMORY_SHARED and MEMORY_HUGE, else -1; stays the caller's */
	char *const *disk_paths; /* disks are below one of these, wherever links lead; NULL: anywhere */
	Lease *lease;		/* that QEMU is to hold, or NULL; stays the caller's */
} QemuStart;

/**
 * qemu_process_start() - start a QEMU, always with -S; taps are made here (see tap.h) but not put on their bridges
 *
 * Returns as soon as the process has been started: the QMP socket (DIR/qmp) is listening already and takes a
 * connection at once, so nobody waits for a file to appear. What QEMU then has against its command line it says on
 * standard error: qemu_process_last_words(). QEMU is a child of the caller, who reaps it (or dies before it). The limit
 * of open files is raised to what the caller may have.
 *
 * Return: 0, or negative errno with @err set; nothing is left behind on failure. -EBUSY: one lives in @dir already, it is
 * left alone; -ENOENT: no such user, program or disk.
 */
int qemu_process_start(const QemuStart *start, QemuProcess **ret, Error **err);

/**
 * qemu_process_adopt() - find a QEMU that is alive
 *
 * Alive is who holds DIR/lock; who that is says the pid record the child wrote, checked against start time, boot and the
 * lock's inode in /proc/PID/fd. The one who asks must be the only keeper (it holds the VM's lock).
 *
 * Return: 0; -ESRCH if none lives in @dir; -EAGAIN for the few milliseconds in which the lock is held but QEMU is only
 * starting (a keeper was killed right after fork) or dying already: ask again; or negative errno.
 */
int qemu_process_adopt(const char *dir, unsigned int generation, QemuProcess **ret, Error **err);

/** qemu_process_kill() - send SIGKILL by pidfd. Return: 0 or negative errno; -ESRCH (gone already) counts as 0 */
int qemu_process_kill(QemuProcess *process);

/**
 * qemu_process_last_words() - the last message on its standard error with QEMU's hints, as one line that is cleaned for
 * printing ("" if there is none); free() it
 */
char *qemu_process_last_words(const char *dir);

/** qemu_process_trim_words() - keep the end of its standard error only, if that has grown over 256 KiB */
void qemu_process_trim_words(const char *dir);

/** qemu_process_free() - forget it (the process lives on) */
void qemu_process_free(QemuProcess *process);
DEFINE_CLEANUP(QemuProcess *, qemu_process_free)
#define _cleanup_qemu_process_ _cleanup_(qemu_process_freep)

/**
 * qemu_process_memfd() - the guest's memory again, from a living QEMU's /proc/PID/fd
 * Return: fd; -ENOENT if it has none (private memory); -ESRCH if it is gone; or negative errno.
 */
int qemu_process_memfd(const QemuProcess *process);

/** qemu_process_memory() - bytes that it and its guest's memory take by now, 0 if it is gone. proc(5): RssAnon; stat(2) */
uint64_t qemu_process_memory(const QemuProcess *process);

/**
 * qemu_process_tap_fd() - a copy of the tap fd of NIC number @index (pidfd_getfd), for injecting frames "from the guest"
 *
 * As long as a copy is open the tap outlives its QEMU: close it soon.
 * Return: fd; -ENOENT or -EBADF if there is no such NIC; or negative errno.
 */
int qemu_process_tap_fd(const QemuProcess *process, size_t index);

/**
 * qemu_process_lease_fd() - a copy of what QEMU inherited of its lease (pidfd_getfd)
 * Return: fd; -EBADF if it has none; or negative errno.
 */
int qemu_process_lease_fd(const QemuProcess *process);

/**
 * qemu_process_shutdown_sockets() - shutdown() every TCP socket of QEMU that is connected to @address:@port
 * @address: IPv4 or IPv6 text; a scope is not compared, an IPv4-mapped address is its IPv4 address
 *
 * The way out when a silent peer holds QEMU's main loop: see rule 7 of the design. pidfd_getfd(2).
 * Return: number of sockets shut; -EINVAL if @address is none; -ESRCH if QEMU is gone; or negative errno.
 */
int qemu_process_shutdown_sockets(const QemuProcess *process, const char *address, unsigned int port);

/**
 * qemu_memfd_new() - guest memory for a definition with MEMORY_SHARED or MEMORY_HUGE
 *
 * Huge pages are reserved here, so that their lack is an error here and not the end of a QEMU later.
 * Source: memfd_create(2), Documentation/admin-guide/mm/hugetlbpage.rst.
 *
 * Return: fd (close-on-exec), or negative errno with @err set.
 */
int qemu_memfd_new(const VmDefinition *def, Error **err);

/**
 * qemu_tmpfs_new() - a tmpfs of our own, mounted nowhere: it lives as long as somebody has it open. fsopen(2), fsmount(2)
 * @options: of tmpfs(5), name and value by turns, NULL at the end
 *
 * Return: its root directory (O_PATH, close-on-exec), or negative errno.
 */
int qemu_tmpfs_new(const char *const *options);

/**
 * qemu_memory_advice() - what memory-backing = "shared" costs on this host, if it does
 *
 * Return: a sentence for people, or NULL: such memory has transparent huge pages here.
 */
const char *qemu_memory_advice(const VmDefinition *def);
/**
 * qemu_memory_advice_for() - the same, pure
 * @setting:   contents of transparent_hugepage/shmem_enabled, NULL: not there. Documentation/admin-guide/mm/transhuge.rst
 * @own_tmpfs: whether guest memory lies in a tmpfs of our own, with huge=advise
 */
const char *qemu_memory_advice_for(const char *setting, bool own_tmpfs);
