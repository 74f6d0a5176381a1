/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "process.h"

/* Mapping hugetlb pages shared reserves them for the file, and the reservation stays when the mapping goes: so the
 * lack of them is found here and not by a QEMU that dies (Documentation/admin-guide/mm/hugetlbpage.rst). */
static int reserve_huge(int fd, uint64_t size, Error **err)
{
	struct stat st;
	void *p;
	int r;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "huge pages: %m");
	if (size % (uint64_t)st.st_blksize != 0) {
		r = error_set(err, -EINVAL, "memory of %llu bytes is not a whole number of huge pages of %llu KiB",
			      (unsigned long long)size, (unsigned long long)st.st_blksize / 1024);
		error_hint(err, "change memory, or use memory-backing = \"shared\"");
		return r;
	}
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		r = error_set(err, -errno, "not enough free huge pages: %llu of %llu KiB are needed",
			      (unsigned long long)(size / (uint64_t)st.st_blksize),
			      (unsigned long long)st.st_blksize / 1024);
		error_hint(err, "raise vm.nr_hugepages (sysctl), or use memory-backing = \"shared\"");
		return r;
	}
	munmap(p, size);
	return 0;
}

int qemu_tmpfs_new(const char *const *options)
{
	_cleanup_fd_ int context = fsopen("tmpfs", FSOPEN_CLOEXEC);
	int fd;

	if (context < 0)
		return -errno;
	for (size_t i = 0; options[i]; i += 2)
		if (fsconfig(context, FSCONFIG_SET_STRING, options[i], options[i + 1], 0) < 0)
			return -errno;
	if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	fd = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * A file on a tmpfs of our own, mounted nowhere: unlike memfd_create()'s it can have transparent huge pages where QEMU
 * asks for them (madvise), whatever shmem_enabled says. Reading a hole of shared memory allocates it, so a migration of a
 * sparse guest takes a page fault for every page that is none: 512 times fewer of them shorten it, and the pause.
 * Source: tmpfs(5) huge=advise.
 *
 * Return: fd, or negative errno where this is not to be had.
 */
static int tmpfs_file(void)
{
	static const char *const options[] = {"huge", "advise", "size", "0", NULL};
	_cleanup_fd_ int mount = qemu_tmpfs_new(options);
	int fd;

	if (mount < 0)
		return mount;
	fd = openat(mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define SLOWER "a large guest is slower under KVM than with memory-backing = \"huge\" or \"private\""

const char *qemu_memory_advice_for(const char *setting, bool own_tmpfs)
{
	if (!setting)
		return "this kernel has no transparent huge pages for shared memory: " SLOWER;
	if (strstr(setting, "[deny]"))
		return "shared memory gets no huge pages, " SHMEM_ENABLED " is \"deny\": " SLOWER
		       " (echo advise >" SHMEM_ENABLED ")";
	if (!own_tmpfs && strstr(setting, "[never]"))
		return "vmferry may not mount a tmpfs of its own, and for other shared memory " SHMEM_ENABLED
		       " is \"never\": " SLOWER " (echo advise >" SHMEM_ENABLED ")";
	return NULL;
}

const char *qemu_memory_advice(const VmDefinition *def)
{
	_cleanup_free_ char *setting = NULL;
	_cleanup_fd_ int fd = -1;

	if (def->memory_backing != MEMORY_SHARED)
		return NULL;
	(void)file_read(SHMEM_ENABLED, 256, &setting, NULL);
	fd = tmpfs_file();
	return qemu_memory_advice_for(setting, fd >= 0);
}

static int memory_file(bool huge)
{
	int fd = huge ? -ENOTSUP : tmpfs_file();

	return fd >= 0 ? fd : memfd_create("vmferry", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
}

int qemu_memfd_new(const VmDefinition *def, Error **err)
{
	bool huge = def->memory_backing == MEMORY_HUGE;
	_cleanup_fd_ int fd = -1;
	int r;

	if (def->memory_backing == MEMORY_PRIVATE)
		return error_set(err, -EINVAL, "memory-backing = \"private\" has no file");
	fd = memory_file(huge);
	if (fd < 0) {
		r = error_set(err, -errno, "cannot make guest memory: %m");
		if (huge)
			error_hint(err, "does this kernel have huge pages? (CONFIG_HUGETLBFS)");
		return r;
	}
	/* QEMU opens it again, by /proc/self/fd and as another user. It has no name that anyone else could open. */
	if (fchmod(fd, 0666) < 0 || ftruncate(fd, (off_t)def->memory) < 0)
		return error_set(err, -errno, "cannot make guest memory of %llu bytes: %m",
				 (unsigned long long)def->memory);
	if (huge) {
		r = reserve_huge(fd, def->memory, err);
		if (r < 0)
			return r;
	}
	return TAKE_FD(fd);
}
