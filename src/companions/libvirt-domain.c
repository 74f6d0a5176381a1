/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What libvirt on the source knows of a domain: its name, whether it runs, and which addresses are its own. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <unistd.h>

#include "basic/clock.h"
#include "companions/libvirt.h"

#define NAMESPACE "urn:vmferry:domain:1"
#define ANSWER_USEC (10 * USEC_PER_SEC) /* libvirt gives an agent that is not there 5 s */
#define GUEST_MAX 64			/* what a guest may claim */

static const char *const sources[] = {
	[FROM_OPTION] = "option", [FROM_METADATA] = "metadata", [FROM_FILTER] = "filter",
	[FROM_LEASE] = "lease",	  [FROM_AGENT] = "agent",
};
static_assert(ARRAY_SIZE(sources) == _FROM_MAX, "a name each");

const char *domain_source_name(DomainSource source)
{
	return sources[source];
}

void domain_done(Domain *d)
{
	free(d->name);
	free(d->others);
	strv_free(d->addresses);
	strv_free(d->macs);
}

/* Answers of ask(). An error of the last one is virsh's. */
enum { STATE, METADATA, FILTER, MACS, NAMES, NAME, ANSWERS };

static const char *const questions[ANSWERS] = {
	[METADATA] = "//*[local-name()=\"address\" and namespace-uri()=\"" NAMESPACE "\"]/text()",
	[FILTER] = "//interface/filterref/parameter[@name=\"IP\" or @name=\"IPV6\"]/@value",
	[MACS] = "/domain/devices/interface/mac/@address",
	[NAME] = "/domain/name/text()",
};

/* @ret_text: as everybody writes it */
static bool is_guests(const char *word, char ret_text[static INET6_ADDRSTRLEN])
{
	struct in6_addr six;
	struct in_addr four;

	if (inet_pton(AF_INET, word, &four) == 1) {
		uint32_t a = ntohl(four.s_addr);

		(void)inet_ntop(AF_INET, &four, ret_text, INET6_ADDRSTRLEN);
		return a >> 24 != 0 && a >> 24 != 127 && a >> 16 != 0xa9fe && a >> 28 < 0xe; /* RFC 6890, RFC 3927 */
	}
	return inet_pton(AF_INET6, word, &six) == 1 && inet_ntop(AF_INET6, &six, ret_text, INET6_ADDRSTRLEN) &&
	       !IN6_IS_ADDR_UNSPECIFIED(&six) && !IN6_IS_ADDR_LOOPBACK(&six) && !IN6_IS_ADDR_LINKLOCAL(&six) &&
	       !IN6_IS_ADDR_MULTICAST(&six) && !IN6_IS_ADDR_V4MAPPED(&six);
}

/* Words that are addresses, in XPath's text or in attributes. */
static void addresses_in(const char *text, char ***ret)
{
	_cleanup_free_ char *copy = xstrdup(text);
	char *save = NULL, address[INET6_ADDRSTRLEN];

	for (char *word = strtok_r(copy, " \t\n\"/", &save); word; word = strtok_r(NULL, " \t\n\"/", &save))
		if (is_guests(word, address) && !strv_contains(*ret, address))
			strv_push(ret, xstrdup(address));
}

static void macs_in(const char *text, char ***ret)
{
	_cleanup_free_ char *copy = xstrdup(text);
	char *save = NULL;

	for (char *word = strtok_r(copy, " \t\n\"", &save); word; word = strtok_r(NULL, " \t\n\"", &save))
		if (strchr(word, ':'))
			strv_push(ret, xstrdup(word));
}

static bool has_mac(const Domain *d, const char *mac)
{
	for (size_t i = 0; d->macs && d->macs[i]; i++)
		if (strcasecmp(d->macs[i], mac) == 0)
			return true;
	return false;
}

/* A line of domifaddr --full: name, MAC, protocol, address/prefix. The name may be anything the guest says. */
static void take_interface(Domain *d, char *line)
{
	char *fields[3] = {}, *save = NULL;

	for (char *word = strtok_r(line, " \t", &save); word; word = strtok_r(NULL, " \t", &save)) {
		memmove(fields, fields + 1, 2 * sizeof(*fields));
		fields[2] = word;
	}
	if (fields[0] && has_mac(d, fields[0]) && strv_length(d->addresses) < GUEST_MAX)
		addresses_in(fields[2], &d->addresses);
}

static void ask_interfaces(Domain *d, const char *uri, DomainSource source)
{
	_cleanup_free_ char *domain = virsh_quote(d->name),
			    *script = xasprintf("domifaddr %s --full --source %s", domain, sources[source]),
			    *text = NULL;
	char *save = NULL;

	if (virsh_ask(uri, script, ANSWER_USEC, &text, NULL) < 0)
		return;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		take_interface(d, line);
}

static void unescape(char *text)
{
	static const struct {
		const char *entity;
		char c;
	} entities[] = {{"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}, {"&amp;", '&'}};
	char *to = text;

	while (*text) {
		size_t i;

		for (i = 0; i < ARRAY_SIZE(entities) && !startswith(text, entities[i].entity); i++)
			;
		*to++ = i < ARRAY_SIZE(entities) ? entities[i].c : *text;
		text += i < ARRAY_SIZE(entities) ? strlen(entities[i].entity) : 1;
	}
	*to = '\0';
}

static char *command_for(size_t i, const char *domain, bool addresses)
{
	if (!addresses && (i == METADATA || i == FILTER || i == MACS))
		return xstrdup("echo");
	if (i == STATE)
		return xasprintf("domstate %s", domain);
	return i == NAMES ? xstrdup("list --name") : xasprintf("dumpxml %s --xpath '%s'", domain, questions[i]);
}

/* One virsh for all: the answers are told apart by a mark that is new each time. */
static int ask(const char *uri, const char *name, bool addresses, char **answers, Error **err)
{
	_cleanup_free_ char *domain = virsh_quote(name), *mark = text_random_id(), *script = NULL, *text = NULL;
	char *at;
	int r;

	for (size_t i = 0; i < ANSWERS; i++) {
		_cleanup_free_ char *before = script, *command = command_for(i, domain, addresses);

		script = before ? xasprintf("%s; echo %s; %s", before, mark, command) : xstrdup(command);
	}
	r = virsh_ask(uri, script, 0, &text, err);
	if (r < 0)
		return r;
	at = text;
	for (size_t i = 0; i < ANSWERS; i++) {
		char *end = strstr(at, mark);

		if (!end != (i == ANSWERS - 1))
			return error_set(err, -EPROTO, "virsh's answer about %s cannot be read", name);
		answers[i] = strndup(at, end ? (size_t)(end - at) : strlen(at));
		at = end ? end + strlen(mark) : at;
	}
	return 0;
}

static void take_answers(Domain *d, char **answers)
{
	d->name = xstrdup(answers[NAME]);
	d->name[strcspn(d->name, "\n")] = '\0';
	unescape(d->name);
	d->paused = startswith(answers[STATE], "paused");
	d->others = TAKE_PTR(answers[NAMES]);
	macs_in(answers[MACS], &d->macs);
}

/* The first that names one. */
static void find_addresses(Domain *d, const char *uri, char *const *given, char *const *answers, bool needed)
{
	d->addresses = strv_copy(given);
	d->source = FROM_OPTION;
	for (DomainSource s = FROM_METADATA; s < _FROM_MAX && !strv_length(d->addresses); s++) {
		d->source = s;
		if (s == FROM_METADATA || s == FROM_FILTER)
			addresses_in(answers[s == FROM_METADATA ? METADATA : FILTER], &d->addresses);
		else if (needed)
			ask_interfaces(d, uri, s);
	}
}

/* A question about each domain but one. Return: virsh's commands, or NULL for none */
static char *script_for_others(const char *name, const char *names)
{
	_cleanup_free_ char *all = xstrdup(names);
	char *script = NULL, *save = NULL;

	for (char *other = strtok_r(all, "\n", &save); other; other = strtok_r(NULL, "\n", &save)) {
		_cleanup_free_ char *word = virsh_quote(other), *before = script;

		if (streq(other, name))
			script = TAKE_PTR(before);
		else
			script = xasprintf("%sdumpxml %s --xpath '%s'; dumpxml %s --xpath '%s'; "
					   "domifaddr %s --source lease; ",
					   before ?: "", word, questions[METADATA], word, questions[FILTER], word);
	}
	return script;
}

char **domain_neighbours(const char *uri, const char *name, const char *names)
{
	_cleanup_free_ char *asked = NULL, *script = NULL, *all = NULL, *text = NULL;
	char **addresses = NULL;

	if (!names && virsh_ask(uri, "list --name", ANSWER_USEC, &asked, NULL) < 0)
		return NULL;
	script = script_for_others(name, names ?: asked);
	if (!script)
		return NULL;
	all = xasprintf("%secho", script); /* whose status counts */
	if (virsh_ask(uri, all, ANSWER_USEC, &text, NULL) >= 0)
		addresses_in(text, &addresses);
	return addresses;
}

/* What a guest claims is not another's. */
static void drop_claimed(Domain *d, const char *uri)
{
	_cleanup_strv_ char **others = domain_neighbours(uri, d->name, d->others), **claimed = TAKE_PTR(d->addresses);

	for (size_t i = 0; claimed && claimed[i]; i++)
		if (strv_contains(others, claimed[i]))
			fprintf(stderr,
				"vmferry-libvirt: warning: the guest agent of %s claims %s, which is another "
				"domain's\n",
				d->name, claimed[i]);
		else
			strv_push(&d->addresses, xstrdup(claimed[i]));
}

int domain_learn(const char *uri, const char *name, char *const *given, bool needed, Domain *ret, Error **err)
{
	char *answers[ANSWERS] = {};
	int r = ask(uri, name, !strv_length(given), answers, err);

	if (r >= 0) {
		take_answers(ret, answers);
		find_addresses(ret, uri, given, answers, needed);
		if (ret->source == FROM_AGENT && strv_length(ret->addresses))
			drop_claimed(ret, uri);
	}
	for (size_t i = 0; i < ANSWERS; i++)
		free(answers[i]);
	if (r < 0 || strv_length(ret->addresses) || !needed)
		return r;
	error_set(err, -EINVAL, "whose entries? Nothing says which addresses %s has", ret->name);
	error_hint(err, "give --address, or put them into the domain's metadata: see vmferry-libvirt(1)");
	return -EINVAL;
}
