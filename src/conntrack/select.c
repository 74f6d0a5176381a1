/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <stdlib.h>

#include "basic/text.h"
#include "record.h"

/* More than any VM has; the kernel filter's program and every look-up grow with it. */
#define SELECT_MAX 256

static int parse(const char *text, CtAddress *ret, Error **err)
{
	static const uint8_t unspecified[16];
	_cleanup_free_ char *clean = NULL;

	*ret = (CtAddress){};
	ret->family = strchr(text, ':') ? AF_INET6 : AF_INET;
	if (inet_pton(ret->family, text, ret->bytes) == 1 && memcmp(ret->bytes, unspecified, 16) != 0)
		return 0;
	clean = text_clean(text, 60);
	return error_set(err, -EINVAL, "'%s' is not an address of a VM", clean);
}

int ct_select_new(char *const *addresses, CtSelect **ret, Error **err)
{
	_cleanup_(ct_select_freep)
	CtSelect *select = xcalloc(1, sizeof(*select));
	size_t n = strv_length(addresses);
	int r;

	if (n > SELECT_MAX)
		return error_set(err, -E2BIG, "%zu addresses are more than %d", n, SELECT_MAX);
	select->addresses = xcalloc(n, sizeof(CtAddress));
	for (; select->n_addresses < n; select->n_addresses++) {
		r = parse(addresses[select->n_addresses], &select->addresses[select->n_addresses], err);
		if (r < 0)
			return r;
	}
	select->by_address = n > 0;
	*ret = TAKE_PTR(select);
	return 0;
}

int ct_select_mark(CtSelect *select, const char *text, Error **err)
{
	if (text_parse_mark(text, &select->mark, &select->mark_mask) < 0) {
		_cleanup_free_ char *clean = text_clean(text, 60);

		error_set(err, -EINVAL, "'%s' is not a mark", clean);
		error_hint(err, "VALUE or VALUE/MASK, no bits outside the mask: 0x100/0xff00");
		return -EINVAL;
	}
	select->by_mark = true;
	return 0;
}

int ct_select_zone(CtSelect *select, const char *text, Error **err)
{
	uint64_t value;

	if (text_parse_u64(text, &value) < 0 || value > UINT16_MAX) {
		_cleanup_free_ char *clean = text_clean(text, 60);

		return error_set(err, -EINVAL, "'%s' is not a zone (0 to 65535)", clean);
	}
	select->by_zone = true;
	select->zone = (uint16_t)value;
	return 0;
}

static bool address_of(const struct sockaddr *sa, CtAddress *ret)
{
	*ret = (CtAddress){.family = sa ? (uint8_t)sa->sa_family : 0};
	if (ret->family == AF_INET)
		memcpy(ret->bytes, &((const struct sockaddr_in *)sa)->sin_addr, 4);
	else if (ret->family == AF_INET6)
		memcpy(ret->bytes, &((const struct sockaddr_in6 *)sa)->sin6_addr, 16);
	return ret->family == AF_INET || ret->family == AF_INET6;
}

int ct_select_own(CtSelect **ret, Error **err)
{
	CtSelect *select = xcalloc(1, sizeof(*select));
	struct ifaddrs *all;

	if (getifaddrs(&all) < 0) {
		free(select);
		return error_set(err, -errno, "Cannot list this host's addresses: %m");
	}
	for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
		CtAddress address;

		if (!address_of(i->ifa_addr, &address))
			continue;
		select->addresses = xrealloc(select->addresses, select->n_addresses + 1, sizeof(CtAddress));
		select->addresses[select->n_addresses++] = address;
	}
	freeifaddrs(all);
	select->by_address = select->n_addresses > 0;
	*ret = select;
	return 0;
}

void ct_select_join(CtSelect *select, const CtSelect *more, const CtSelect *less)
{
	size_t n = 0;

	for (size_t i = 0; more && i < more->n_addresses; i++) {
		select->addresses = xrealloc(select->addresses, select->n_addresses + 1, sizeof(CtAddress));
		select->addresses[select->n_addresses++] = more->addresses[i];
	}
	for (size_t i = 0; i < select->n_addresses; i++)
		if (!less || !ct_select_has(less, select->addresses[i].family, select->addresses[i].bytes))
			select->addresses[n++] = select->addresses[i];
	select->n_addresses = n;
	select->by_address = n > 0;
}

bool ct_select_empty(const CtSelect *select)
{
	return !select->by_address && !select->by_mark && !select->by_zone;
}

CtSelect *ct_select_copy(const CtSelect *select)
{
	CtSelect *copy = xcalloc(1, sizeof(*copy));

	*copy = *select;
	copy->addresses = xcalloc(select->n_addresses, sizeof(CtAddress));
	if (select->n_addresses)
		memcpy(copy->addresses, select->addresses, select->n_addresses * sizeof(CtAddress));
	return copy;
}

void ct_select_free(CtSelect *select)
{
	if (!select)
		return;
	free(select->addresses);
	free(select);
}

bool ct_select_has(const CtSelect *select, uint8_t family, const uint8_t *address)
{
	size_t n = ct_address_length(family);

	for (size_t i = 0; i < select->n_addresses; i++)
		if (select->addresses[i].family == family && memcmp(select->addresses[i].bytes, address, n) == 0)
			return true;
	return false;
}
