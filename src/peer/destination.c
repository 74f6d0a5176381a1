/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/destination.h"

#include <ctype.h>
#include <errno.h>
#include <sys/un.h>

#include "basic/text.h"

#define DIRECT "direct:"
#define DESTINATION_MAX 400 /* must fit a journal record */

static int bad(Error **err, const char *text)
{
	error_set(err, -EINVAL, "'%s' is no destination", text);
	error_hint(err, "a destination is HOST, ssh://[USER@]HOST[:PORT] or exec:COMMAND");
	return -EINVAL;
}

static bool host_valid(const char *host)
{
	const char *at = strrchr(host, '@');
	const char *name = at ? at + 1 : host;

	if (*host == '-' || !*name || *name == '-')
		return false;
	for (const char *p = host; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("@._-:%", *p))
			return false;
	return true;
}

/* One line of printable text: it goes into the journal and into messages. */
static bool one_line(const char *text)
{
	for (const char *p = text; *p; p++)
		if (iscntrl((unsigned char)*p))
			return false;
	return true;
}

/* "[user@]host[:port]", the host perhaps an IPv6 address in brackets. */
static int parse_ssh(Destination *d, const char *rest, Error **err)
{
	_cleanup_free_ char *host = xstrdup(rest);
	char *port = strrchr(host, ':'), *bracket = strchr(host, ']'), *open;
	uint64_t number;

	if (port && (!bracket || port > bracket)) {
		*port++ = '\0';
		if (text_parse_u64(port, &number) < 0 || number < 1 || number > 65535)
			return bad(err, d->text);
		d->port = (unsigned int)number;
	}
	if (bracket) {
		open = strchr(host, '[');
		if (!open || bracket[1] || (open > host && open[-1] != '@'))
			return bad(err, d->text);
		*bracket = '\0';
		memmove(open, open + 1, strlen(open + 1) + 1);
	}
	if (!host_valid(host) || (!bracket && strchr(host, ':')))
		return bad(err, d->text);
	d->host = TAKE_PTR(host);
	return 0;
}

static int parse(const char *text, bool direct_too, Destination **ret, Error **err);

/* What a client will open has the same form, and is checked here as well: it goes into the journal. */
static int parse_direct(Destination *d, const char *rest, Error **err)
{
	_cleanup_(destination_freep) Destination *inner = NULL;

	d->direct = true;
	return parse(rest, false, &inner, err);
}

static int parse(const char *text, bool direct_too, Destination **ret, Error **err)
{
	_cleanup_(destination_freep) Destination *d = NULL;
	const char *rest;
	int r = 0;

	if (strlen(text) > DESTINATION_MAX)
		return error_set(err, -EINVAL, "the destination is longer than %d bytes", DESTINATION_MAX);
	if (!one_line(text))
		return error_set(err, -EINVAL, "the destination is not one line of text");
	d = xcalloc(1, sizeof(*d));
	d->text = xstrdup(text);
	if (direct_too && (rest = startswith(text, DIRECT))) {
		r = parse_direct(d, rest, err);
	} else if ((rest = startswith(text, "exec:"))) {
		if (strv_split_words(rest, &d->exec) < 0)
			return bad(err, text);
	} else if ((rest = startswith(text, "ssh://"))) {
		r = parse_ssh(d, rest, err);
	} else if (!host_valid(text) || strchr(text, ':')) {
		return bad(err, text);
	} else {
		d->host = xstrdup(text);
	}
	if (r < 0)
		return r;
	*ret = TAKE_PTR(d);
	return 0;
}

int destination_parse(const char *text, Destination **ret, Error **err)
{
	return parse(text, true, ret, err);
}

void destination_free(Destination *d)
{
	if (!d)
		return;
	free(d->text);
	strv_free(d->exec);
	free(d->host);
	free(d);
}

/* ssh adds a dot and 16 characters while it makes the socket, and expands "%" and "${". */
bool destination_login_usable(const char *path)
{
	return strlen(path) + 17 < sizeof(((struct sockaddr_un *)NULL)->sun_path) && !strpbrk(path, " \"'%\\$");
}

/* The user's own ssh_config(5) may say otherwise of each of these. */
static void add_login(char ***argv, const DestinationOptions *options, DestinationUse use)
{
	strv_add(argv, "-oControlMaster=%s", use == DESTINATION_LOGIN ? "yes" : "no");
	strv_add(argv, "-oControlPath=%s", options->login);
	if (use == DESTINATION_LOGIN)
		strv_add(argv, "-oControlPersist=no");
	if (use == DESTINATION_LOGIN && options->aes)
		strv_add(argv, "-oCiphers=^aes256-gcm@openssh.com");
	if (use == DESTINATION_FORWARD)
		strv_add(argv, "-Oforward");
}

int destination_argv(const Destination *d, const DestinationOptions *options, char *const *extra, DestinationUse use,
		     char ***ret, Error **err)
{
	_cleanup_strv_ char **argv = NULL;

	if (d->direct)
		return error_set(err, -EINVAL, "only the client that relays can open %s", d->text);
	if (d->exec) {
		*ret = strv_copy(d->exec);
		return 0;
	}
	if (strv_split_words(options->ssh && *options->ssh ? options->ssh : "ssh", &argv) < 0)
		return error_set(err, -EINVAL, "cannot split the ssh command '%s' into words", options->ssh);
	strv_add(&argv, "-oBatchMode=yes");
	strv_add(&argv, "-oEscapeChar=none");
	strv_add(&argv, "-T");
	if (options->login)
		add_login(&argv, options, use);
	for (size_t i = 0; extra && extra[i]; i++)
		strv_push(&argv, xstrdup(extra[i]));
	if (d->port)
		strv_add(&argv, "-p%u", d->port);
	strv_add(&argv, "--");
	strv_push(&argv, xstrdup(d->host));
	if (use != DESTINATION_FORWARD)
		strv_push(&argv, xstrdup(options->remote_command ? options->remote_command : "vmferry receive"));
	*ret = TAKE_PTR(argv);
	return 0;
}
