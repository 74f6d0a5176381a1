/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "basic/text.h"

/*
 * The scan before libconfuse: it splits the text into the same tokens, blanks the comments, and answers for the text's
 * structure: known keys, none twice, none missing, every string, comment and section closed. What a value must look
 * like, and the grammar between the tokens, is left to libconfuse and the schema.
 */

#define SEEN_MAX 4096

typedef struct Token {
	const char *start;
	size_t len;
} Token;

/* A key or a titled section that has been met: @scope is the number of the section it stands in, 0 the root. */
typedef struct Seen {
	unsigned int scope;
	const char *name;
	char *title;
	unsigned int line;
} Seen;

typedef struct Scan {
	const char *p;
	char *out; /* the copy whose comments are blanked, @p's twin at out + (p - text) */
	const char *text;
	ConfLines *lines;
	unsigned int line;
	Error **err;

	Token before, last; /* the two tokens before the current one; empty after punctuation */
	char punctuation;   /* the punctuation character before the current token, if nothing stands between */
	bool in_list;
	const ConfSection *section; /* NULL: at the root */
	unsigned int scope, scopes, opened;
	char *title;

	Seen seen[SEEN_MAX];
	size_t n_seen;
} Scan;

static int _printf_(2, 3) fail(Scan *s, const char *fmt, ...)
{
	_cleanup_free_ char *message = NULL;
	va_list ap;

	va_start(ap, fmt);
	message = xvasprintf(fmt, ap);
	va_end(ap);
	return error_set(s->err, -EINVAL, "%s:%u: %s", s->lines->origin, s->line, message);
}

static const ConfSection *current(const Scan *s)
{
	return s->section ? s->section : s->lines->root;
}

/* "disk vda", or "the file" at the root, for messages. */
static char *where(const Scan *s)
{
	if (!s->section)
		return xstrdup(s->lines->root->name);
	return xasprintf("%s%s%s", s->section->name, s->title ? " " : "", s->title ? s->title : "");
}

const ConfKey *conf_key_find(const ConfSection *section, const char *name)
{
	for (size_t i = 0; i < section->n_keys; i++)
		if (streq(section->keys[i].name, name))
			return &section->keys[i];
	return NULL;
}

/* Number of single-character edits between two words of at most 31 bytes. */
static size_t distance(const char *a, const char *b)
{
	size_t row[32], la = strlen(a), lb = strlen(b);

	if (la > 31 || lb > 31)
		return 99;
	for (size_t j = 0; j <= lb; j++)
		row[j] = j;
	for (size_t i = 1; i <= la; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= lb; j++) {
			size_t cost = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			if (row[j - 1] + 1 < cost)
				cost = row[j - 1] + 1;
			if (row[j] + 1 < cost)
				cost = row[j] + 1;
			row[j] = cost;
		}
	}
	return row[lb];
}

static int unknown_key(Scan *s, const char *name)
{
	_cleanup_free_ char *place = where(s), *clean = text_clean(name, 60), *known = xstrdup("");
	const ConfSection *section = current(s);
	const char *nearest = NULL;
	size_t best = strlen(name) / 3 + 2;

	fail(s, "unknown key \"%s\" in %s", clean, place);
	for (size_t i = 0; i < section->n_keys; i++) {
		_cleanup_free_ char *old = known;
		size_t d = distance(name, section->keys[i].name);

		if (d < best) {
			best = d;
			nearest = section->keys[i].name;
		}
		known = xasprintf("%s%s%s", old, i ? ", " : "", section->keys[i].name);
	}
	if (nearest)
		error_hint(s->err, "did you mean \"%s\"?", nearest);
	else
		error_hint(s->err, "known keys here: %s", known);
	return -EINVAL;
}

/* Notes a key or section (@title not NULL); twice in one scope is an error. */
static int note(Scan *s, const char *name, const char *title)
{
	for (size_t i = 0; i < s->n_seen; i++) {
		const Seen *seen = &s->seen[i];

		if (seen->scope != s->scope || !streq(seen->name, name) || !streq_null(seen->title, title))
			continue;
		fail(s, "%s%s%s stands here a second time", name, title ? " " : "", title ? title : "");
		error_hint(s->err, "it is in line %u already: remove one of them", seen->line);
		return -EINVAL;
	}
	if (s->n_seen == SEEN_MAX)
		return fail(s, "too many keys");
	s->seen[s->n_seen++] = (Seen){s->scope, name, xstrdup(title), s->line};
	return 0;
}

static void note_line(Scan *s, const ConfKey *key)
{
	if (!s->section)
		s->lines->line[key - s->lines->root->keys] = s->line;
}

static char *token_text(Token t)
{
	char *text = strndup(t.start ? t.start : "", t.len);

	if (!text)
		abort();
	return text;
}

/* "=" has been read: the token before it is a key. */
static int on_assign(Scan *s)
{
	_cleanup_free_ char *name = token_text(s->last);
	const ConfKey *key = conf_key_find(current(s), name);

	if (!s->last.start)
		return fail(s, "there is no key before \"=\"");
	if (!key)
		return unknown_key(s, name);
	if (key->type == CONF_SECTION) {
		fail(s, "\"%s\" is a section and takes no \"=\"", name);
		error_hint(s->err, "write %s%s { ... }", name, key->section->titled ? " NAME" : "");
		return -EINVAL;
	}
	note_line(s, key);
	return note(s, key->name, NULL);
}

static int check_title(Scan *s, const ConfSection *section, const char *title)
{
	_cleanup_free_ char *words = NULL, *canonical = NULL, *clean = text_clean(title, 60);
	_cleanup_error_ Error *err = NULL;

	if (section->title_words) {
		if (name_table_find(section->title_words, title) > 0)
			return 0;
		words = name_table_words(section->title_words, 1);
		fail(s, "%s \"%s\" is not known", section->name, clean);
		error_hint(s->err, "%s is one of %s", section->name, words);
		return -EINVAL;
	}
	if (conf_check_id(title, &canonical, &err) == 0)
		return 0;
	fail(s, "%s \"%s\": %s", section->name, clean, err->message);
	error_hint(s->err, "%s", err->hint);
	return -EINVAL;
}

static int note_section(Scan *s, const ConfKey *key, const char *title)
{
	const ConfSection *section = key->section;
	size_t n = 1;
	int r;

	for (size_t i = 0; i < s->n_seen; i++)
		n += s->seen[i].scope == 0 && streq(s->seen[i].name, section->name);
	r = note(s, section->name, title);
	if (r < 0)
		return r;
	if (n > section->max)
		return fail(s, "more than %zu section%s \"%s\"", section->max, section->max == 1 ? "" : "s",
			    section->name);
	/* Ids are unique among all sections: QEMU has one name space of devices. */
	for (size_t i = 0; title && !section->title_words && i + 1 < s->n_seen; i++)
		if (streq_null(s->seen[i].title, title))
			return fail(s, "the name \"%s\" is taken by %s %s in line %u", title, s->seen[i].name, title,
				    s->seen[i].line);
	return 0;
}

/* "{" has been read and no list begins: a section does. */
static int on_open(Scan *s)
{
	bool titled = s->before.start;
	_cleanup_free_ char *name = token_text(titled ? s->before : s->last);
	_cleanup_free_ char *title = titled ? token_text(s->last) : NULL;
	const ConfKey *key = conf_key_find(current(s), name);
	int r;

	if (!s->last.start)
		return fail(s, "there is no section name before \"{\"");
	if (!key)
		return unknown_key(s, name);
	if (key->type != CONF_SECTION) {
		fail(s, "\"%s\" is not a section", name);
		error_hint(s->err, "write %s = ...", name);
		return -EINVAL;
	}
	if (key->section->titled != titled) {
		fail(s, "section \"%s\" %s", name, titled ? "takes no name" : "has no name");
		error_hint(s->err, titled ? "write %s { ... }" : "write %s NAME { ... }", name);
		return -EINVAL;
	}
	r = titled ? check_title(s, key->section, title) : 0;
	if (r < 0)
		return r;
	note_line(s, key);
	r = note_section(s, key, title);
	if (r < 0)
		return r;
	s->section = key->section;
	s->scope = ++s->scopes;
	s->opened = s->line;
	s->title = TAKE_PTR(title);
	return 0;
}

/* A section or the text ends: is all there that must be? */
static int check_required(Scan *s)
{
	_cleanup_free_ char *place = where(s);
	const ConfSection *section = current(s);

	for (size_t i = 0; i < section->n_keys; i++) {
		const ConfKey *key = &section->keys[i];
		bool found = !(key->flags & CONF_REQUIRED);

		for (size_t j = 0; !found && j < s->n_seen; j++)
			found = s->seen[j].scope == s->scope && streq(s->seen[j].name, key->name);
		if (found)
			continue;
		if (s->section)
			s->line = s->opened;
		fail(s, "%s has no \"%s\"", place, key->name);
		error_hint(s->err, "add %s = ...", key->name);
		return -EINVAL;
	}
	return 0;
}

static int on_close(Scan *s)
{
	int r;

	if (s->in_list) {
		s->in_list = false;
		return 0;
	}
	if (!s->section)
		return fail(s, "\"}\" closes nothing");
	r = check_required(s);
	if (r < 0)
		return r;
	s->section = NULL;
	s->scope = 0;
	free(s->title);
	s->title = NULL;
	return 0;
}

static int on_punctuation(Scan *s, char c)
{
	int r = 0;

	if (c == '=')
		r = on_assign(s);
	else if (c == '}')
		r = on_close(s);
	else if (c == '{' && s->in_list)
		r = fail(s, "a list within a list");
	else if (c == '{' && s->punctuation == '=')
		s->in_list = true;
	else if (c == '{')
		r = on_open(s);
	s->punctuation = c;
	s->before = s->last = (Token){0};
	return r;
}

static void on_word(Scan *s, const char *start, size_t len)
{
	/* The word after "=" is a value: what comes next begins anew. */
	bool value = s->in_list || s->punctuation == '=';

	s->before = value ? (Token){0} : s->last;
	s->last = value ? (Token){0} : (Token){start, len};
	s->punctuation = 0;
}

static void blank(Scan *s, size_t n)
{
	for (; n; n--, s->p++) {
		if (*s->p == '\n')
			s->line++;
		else
			s->out[s->p - s->text] = ' ';
	}
}

/* Skips white space and comments. Return: 0, or -EINVAL for a comment that does not end. */
static int skip_blanks(Scan *s)
{
	for (;;) {
		const char *end;

		if (*s->p == '#' || startswith(s->p, "//")) {
			blank(s, strcspn(s->p, "\n"));
		} else if (startswith(s->p, "/*")) {
			end = strstr(s->p + 2, "*/");
			if (!end)
				return fail(s, "a comment begins here and does not end");
			blank(s, (size_t)(end + 2 - s->p));
		} else if (*s->p == ' ' || *s->p == '\t' || *s->p == '\n') {
			blank(s, 1);
		} else {
			return 0;
		}
	}
}

/* Length of the UTF-8 character at @p (RFC 3629), 0 if it is none. */
static size_t utf8_length(const char *p)
{
	const unsigned char *u = (const unsigned char *)p;
	size_t n = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < n; i++)
		if ((u[i] & 0xc0) != 0x80)
			return 0;
	if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xed && u[1] > 0x9f) || (u[0] == 0xf0 && u[1] < 0x90) ||
	    (u[0] == 0xf4 && u[1] > 0x8f))
		return 0;
	return n;
}

/* Checks the character at s->p, which is in no comment. Return: its length, or -EINVAL. */
static int check_character(Scan *s)
{
	unsigned char c = (unsigned char)*s->p;
	size_t n = utf8_length(s->p);

	if (c == '$' && s->p[1] == '{') {
		fail(s, "\"${\" is not allowed");
		error_hint(s->err, "nothing is taken from the environment: write the value itself");
		return -EINVAL;
	}
	if (c == '\r') {
		fail(s, "carriage return (0x0d) in the text");
		error_hint(s->err, "save the file with UNIX line ends");
		return -EINVAL;
	}
	if ((c < 0x20 && c != '\t') || c == 0x7f || (c == 0xc2 && (unsigned char)s->p[1] < 0xa0))
		return fail(s, "control character 0x%02x in the text", c == 0xc2 ? (unsigned char)s->p[1] : c);
	if (n == 0)
		return fail(s, "byte 0x%02x is not UTF-8", c);
	return (int)n;
}

/* A string in quotes; s->p is at the opening one. */
static int scan_string(Scan *s)
{
	const char quote = *s->p, *start = ++s->p;

	while (*s->p != quote) {
		int n;

		if (!*s->p || *s->p == '\n') {
			fail(s, "a string begins here and is not closed in its line");
			error_hint(s->err, "add the missing %c", quote);
			return -EINVAL;
		}
		n = check_character(s);
		if (n < 0)
			return n;
		if (*s->p == '\t')
			return fail(s, "a tab within a string");
		if (*s->p == '\\' && (s->p[1] == quote || s->p[1] == '\\')) {
			n = 2;
		} else if (*s->p == '\\' && quote == '"') {
			fail(s, "\"\\%c\" is not an escape",
			     utf8_length(s->p + 1) == 1 && s->p[1] > ' ' ? s->p[1] : '?');
			error_hint(s->err, "only \\\\ and \\\" are; in '...' a backslash stands for itself");
			return -EINVAL;
		}
		s->p += n;
	}
	on_word(s, start, (size_t)(s->p - start));
	s->p++;
	return 0;
}

static int scan_word(Scan *s)
{
	const char *start = s->p;

	while (*s->p && !strchr(" \t\n#\"'={}()+,*", *s->p)) {
		int n = check_character(s);

		if (n < 0)
			return n;
		s->p += n;
	}
	if (s->p == start) {
		fail(s, "\"%c\" does not belong here", *s->p);
		error_hint(s->err, "put the value in quotes");
		return -EINVAL;
	}
	on_word(s, start, (size_t)(s->p - start));
	return 0;
}

static int scan_tokens(Scan *s)
{
	for (;;) {
		int r = skip_blanks(s);

		if (r < 0)
			return r;
		if (!*s->p)
			break;
		if (strchr("={},", *s->p)) {
			r = on_punctuation(s, *s->p);
			s->p++;
		} else if (*s->p == '"' || *s->p == '\'') {
			r = scan_string(s);
		} else {
			r = scan_word(s);
		}
		if (r < 0)
			return r;
	}
	s->lines->last = s->line;
	if (s->section) {
		_cleanup_free_ char *place = where(s);

		s->line = s->opened;
		fail(s, "section %s begins here and is not closed", place);
		error_hint(s->err, "add the missing \"}\"");
		return -EINVAL;
	}
	if (s->in_list)
		return fail(s, "a list is not closed: \"}\" is missing");
	return check_required(s);
}

int conf_scan(const ConfSection *root, const char *text, const char *origin, ConfLines *lines, char **ret, Error **err)
{
	_cleanup_free_ char *out = xstrdup(text);
	_cleanup_free_ Scan *s = xcalloc(1, sizeof(*s));
	int r;

	*lines = (ConfLines){.origin = origin, .root = root};
	*s = (Scan){.p = text, .text = text, .out = out, .lines = lines, .line = 1, .err = err};
	r = scan_tokens(s);
	for (size_t i = 0; i < s->n_seen; i++)
		free(s->seen[i].title);
	free(s->title);
	if (r == 0)
		*ret = TAKE_PTR(out);
	return r;
}
