/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the operator asks for: which domain, from where to where, and what of virsh's options changes what we do. */
#include "companions/libvirt-task.h"

#include <errno.h>

#include "basic/clock.h"
#include "companions/virsh-words.h"

/* ---- where ---- */

/*
 * The host in a libvirt URI, "driver+transport://[user@]host[:port]/...", as a destination; port and user are ssh's own
 * only where libvirt uses ssh. Return: text, or NULL where there is none: this host.
 */
static char *uri_host(const char *uri)
{
	const char *sep = uri ? strstr(uri, "://") : NULL, *host = sep ? sep + 3 : NULL, *at;
	size_t len = host ? strcspn(host, "/?#") : 0, scheme = sep ? (size_t)(sep - uri) : 0;
	bool ssh = scheme >= 4 && strncmp(sep - 4, "+ssh", 4) == 0;

	if (!len)
		return NULL;
	if (ssh)
		return xasprintf("ssh://%.*s", (int)len, host);
	at = memrchr(host, '@', len);
	if (at) {
		len -= (size_t)(at + 1 - host);
		host = at + 1;
	}
	at = memrchr(host, ':', len);
	if (at && !memchr(at, ']', len - (size_t)(at - host)))
		len = (size_t)(at - host);
	return xasprintf("ssh://%.*s", (int)len, host);
}

static int find_host(const Tool *tool, const char *option, const char *uri, Destination **ret, Error **err)
{
	const char *given = tool_text(tool, option, NULL);
	_cleanup_free_ char *told = given ? NULL : uri_host(uri);
	int r = given || told ? destination_parse(given ?: told, ret, err) : 0;

	if (r < 0)
		error_hint(err, "give --%s", option);
	return r;
}

int migrate_task_command(const Destination *host, char *const *words, char ***ret, Error **err)
{
	_cleanup_free_ char *line = NULL;

	if (!host || host->exec) {
		*ret = host ? strv_copy(host->exec) : NULL;
		for (size_t i = 0; words[i]; i++)
			strv_push(ret, xstrdup(words[i]));
		return 0;
	}
	/* Nothing in them needs quotes: they are ours, addresses, numbers. */
	for (size_t i = 0; words[i]; i++) {
		char *longer = line ? xasprintf("%s %s", line, words[i]) : xstrdup(words[i]);

		free(line);
		line = longer;
	}
	return destination_argv(host, &(DestinationOptions){.ssh = getenv("VMFERRY_SSH"), .remote_command = line}, NULL,
				DESTINATION_COMMAND, ret, err);
}

/* ---- what is to be moved ---- */

static int learn(MigrateTask *t, Error **err)
{
	_cleanup_strv_ char **given = NULL;
	json_object *list;
	int r;

	if (json_get_array(t->tool->options, "address", &list))
		for (size_t i = 0; i < json_object_array_length(list); i++)
			strv_push(&given, xstrdup(json_object_get_string(json_object_array_get_idx(list, i))));
	r = domain_learn(t->uri, t->domain, given, ct_select_empty(t->tool->select), &t->known, err);
	t->resume &= !t->known.paused;
	return r;
}

json_object *migrate_task_addresses(const MigrateTask *t)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; t->known.addresses && t->known.addresses[i]; i++)
		json_object_array_add(list, json_object_new_string(t->known.addresses[i]));
	return list;
}

/* Only where the operator has not named them: what a guest says of itself is to be seen. */
static void say_addresses(const MigrateTask *t)
{
	_cleanup_free_ char *text = xstrdup("");

	if (!strv_length(t->known.addresses) || t->known.source == FROM_OPTION)
		return;
	for (size_t i = 0; t->known.addresses[i]; i++) {
		_cleanup_free_ char *before = text;

		text = xasprintf("%s%s%s", before, i ? ", " : "", t->known.addresses[i]);
	}
	tool_say(t->tool,
		 json_build("event", "s", "addresses", "domain", "s", t->known.name, "addresses", "o",
			    migrate_task_addresses(t), "addresses_from", "s", domain_source_name(t->known.source),
			    NULL),
		 "%s: addresses %s, from its %s", t->known.name, text, domain_source_name(t->known.source));
}

/* Words for virsh that change what we do. */
static int read_words(MigrateTask *t, Error **err)
{
	char *const *args = t->tool->args;
	VirshWords words;

	if (strv_length(args) < 2)
		return error_set(err, -EINVAL, "migrate takes DOMAIN DEST-URI [VIRSH-OPTION...]");
	t->domain = args[0];
	t->desturi = args[1];
	t->hold = tool_number(t->tool, "bound", LIBVIRT_BOUND_MSEC) * USEC_PER_MSEC;
	t->hard = !streq(tool_text(t->tool, "gate", "hard"), "soft");
	virsh_words_read(args + 2, &words);
	if (words.refused)
		return error_set(err, -EINVAL, "%s: there are no connections to carry; use virsh itself",
				 words.refused);
	t->hard &= !words.postcopy; /* a guest that is paused there cannot fetch its pages */
	t->suspend = words.suspend;
	t->verbose = words.verbose;
	t->resume = !words.suspend;
	t->dname = words.dname;
	return 0;
}

char **migrate_task_words(const MigrateTask *t, const char *verb)
{
	char **words = NULL;

	strv_push(&words, xstrdup("vmferry-conntrack"));
	strv_push(&words, xstrdup(verb));
	strv_push(&words, xstrdup("--json"));
	for (size_t i = 0; t->known.addresses && t->known.addresses[i]; i++)
		strv_add(&words, "--address=%s", t->known.addresses[i]);
	for (size_t i = 0; i < 2; i++) {
		static const char *const keys[] = {"mark", "zone"};
		const char *text = tool_text(t->tool, keys[i], NULL);

		if (text)
			strv_add(&words, "--%s=%s", keys[i], text);
	}
	return words;
}

int migrate_task_read(const Tool *tool, MigrateTask *t, Error **err)
{
	int r;

	*t = (MigrateTask){.tool = tool, .uri = tool_text(tool, "connect", NULL)};
	r = read_words(t, err);
	if (r >= 0)
		r = find_host(tool, "from", t->uri ?: getenv("LIBVIRT_DEFAULT_URI"), &t->from, err);
	if (r >= 0)
		r = find_host(tool, "to", t->desturi, &t->to, err);
	if (r >= 0)
		r = learn(t, err);
	if (r < 0)
		return r;
	t->name = t->dname ?: t->known.name;
	say_addresses(t);
	return 0;
}

void migrate_task_done(MigrateTask *t)
{
	destination_free(t->from);
	destination_free(t->to);
	domain_done(&t->known);
}
