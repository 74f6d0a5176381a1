/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unprivileged.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int unprivileged_look_up(const char *user, Unprivileged *ret, Error **err)
{
	Unprivileged u = {0};
	struct passwd pw, *found = NULL;
	char buffer[16384];
	struct stat st;
	int r;

	r = getpwnam_r(user, &pw, buffer, sizeof(buffer), &found);
	if (!found) {
		r = error_set(err, r == 0 ? -ENOENT : -r, "no user %s on this host to run QEMU as", user);
		error_hint(err,
			   "make it (useradd --system --shell /usr/sbin/nologin %s), or name another one in host.conf",
			   user);
		return r;
	}
	if (pw.pw_uid == 0) {
		error_set(err, -EPERM, "user %s is root by another name: QEMU never runs as root", user);
		error_hint(err, "name a user of its own in host.conf");
		return -EPERM;
	}
	u.uid = pw.pw_uid;
	u.gid = pw.pw_gid;
	if (stat("/dev/kvm", &st) == 0 && st.st_gid != 0)
		u.groups[u.n_groups++] = st.st_gid;
	while (prctl(PR_CAPBSET_READ, u.last_cap + 1, 0, 0, 0) >= 0)
		u.last_cap++;
	*ret = u;
	return 0;
}

int unprivileged_become(const Unprivileged *u)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

	for (int cap = 0; cap <= u->last_cap; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			return -errno;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	/* The system calls themselves: glibc's wrappers take locks to tell other threads, and there are none here. */
	if (syscall(SYS_setgroups, u->n_groups, u->groups) < 0)
		return -errno;
	if (syscall(SYS_setresgid, u->gid, u->gid, u->gid) < 0)
		return -errno;
	if (syscall(SYS_setresuid, u->uid, u->uid, u->uid) < 0)
		return -errno;
	if (syscall(SYS_capset, &header, none) < 0)
		return -errno;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}
