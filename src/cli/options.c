/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "options.h"

#include <errno.h>
#include <getopt.h>

#include "basic/fs.h"
#include "basic/text.h"

#define FILE_MAX_BYTES 65536
#define THROTTLE_AUTO 80
#define LIMIT_MAX_USEC (24 * 3600 * USEC_PER_SEC)

/* getopt's values for our options start here, above every letter. */
#define FIRST_VALUE 256

int text_parse_duration(const char *s, uint64_t unit, uint64_t *ret_usec)
{
	static const struct {
		const char *name;
		uint64_t usec;
	} units[] = {
		{"", 0},
		{"ms", USEC_PER_MSEC},
		{"s", USEC_PER_SEC},
		{"m", 60 * USEC_PER_SEC},
		{"h", 3600 * USEC_PER_SEC},
	};
	size_t digits = strspn(s, "0123456789");
	_cleanup_free_ char *number = strndup(s, digits);
	uint64_t v;
	int r;

	if (!number)
		return -ENOMEM;
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		uint64_t factor = units[i].usec ? units[i].usec : unit;

		if (!streq(s + digits, units[i].name))
			continue;
		r = text_parse_u64(number, &v);
		if (r < 0)
			return r;
		if (v > UINT64_MAX / factor)
			return -ERANGE;
		*ret_usec = v * factor;
		return 0;
	}
	return -EINVAL;
}

static int bad_value(const OptionSpec *spec, const char *text, const char *right, Error **err)
{
	int r = error_set(err, -EINVAL, "--%s: \"%s\" is not right", spec->name, text);

	error_hint(err, "%s", right);
	return r;
}

static int parse_flag(const OptionSpec *spec, _unused_ const char *text, json_object **ret, _unused_ Error **err)
{
	*ret = json_object_new_boolean(spec->kind == OPTION_FLAG);
	return 0;
}

static int parse_switch(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	if (!streq(text, "on") && !streq(text, "off"))
		return bad_value(spec, text, "say on or off", err);
	*ret = json_object_new_boolean(streq(text, "on"));
	return 0;
}

static int parse_text(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	if (!*text)
		return bad_value(spec, text, "it must not be empty", err);
	*ret = json_object_new_string(text);
	return 0;
}

/* Whether @len bytes of text are one of the words "a|b|c", which end at "=", too. */
static bool is_choice(const char *words, const char *text, size_t len)
{
	while (*words && *words != '=') {
		size_t n = strcspn(words, "|=");

		if (n == len && strncmp(words, text, n) == 0)
			return true;
		words += n + (words[n] == '|');
	}
	return false;
}

static int parse_choice(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	_cleanup_free_ char *right = xasprintf("one of: %s", spec->argument);

	if (!is_choice(spec->argument, text, strlen(text)))
		return bad_value(spec, text, right, err);
	*ret = json_object_new_string(text);
	return 0;
}

static int parse_throttle(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	uint64_t v = streq(text, "off") ? 0 : THROTTLE_AUTO;

	if (!streq(text, "off") && !streq(text, "auto") && (text_parse_u64(text, &v) < 0 || v > 99))
		return bad_value(spec, text, "off, auto, or at most so many percent: 30", err);
	*ret = json_object_new_uint64(v);
	return 0;
}

/* Kept as {NAME: ms}; option_value() joins several. */
static int parse_limits(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	_cleanup_free_ char *right = xasprintf("%s, in seconds or with a unit: no-progress=30", spec->argument);
	size_t len = strcspn(text, "=");
	_cleanup_free_ char *name = strndup(text, len);
	uint64_t usec;

	if (!text[len] || !name || !is_choice(spec->argument, text, len) ||
	    text_parse_duration(text + len + 1, USEC_PER_SEC, &usec) < 0 || usec < USEC_PER_MSEC ||
	    usec > LIMIT_MAX_USEC)
		return bad_value(spec, text, right, err);
	*ret = json_build(name, "u", usec / USEC_PER_MSEC, NULL);
	return 0;
}

static int parse_count(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	uint64_t v;

	if (text_parse_u64(text, &v) < 0 || v < 1 || v > 64)
		return bad_value(spec, text, "a number from 1 to 64", err);
	*ret = json_object_new_uint64(v);
	return 0;
}

static int parse_rate(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	uint64_t v;

	if (text_parse_size(text, &v) < 0 || v == 0 || v > INT64_MAX)
		return bad_value(spec, text, "bytes a second, with K, M, G or T if you like: 500M", err);
	*ret = json_object_new_uint64(v);
	return 0;
}

static int parse_duration(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	bool ms = spec->kind == OPTION_MSEC;
	uint64_t unit = ms ? USEC_PER_MSEC : USEC_PER_SEC, v;

	if (text_parse_duration(text, unit, &v) < 0 || v < unit)
		return bad_value(spec, text,
				 ms ? "milliseconds, or with a unit: 300, 300ms, 2s"
				    : "seconds, or with a unit: 90, 90s, 5m",
				 err);
	*ret = json_object_new_uint64(v / unit);
	return 0;
}

static int parse_file(const OptionSpec *spec, const char *text, json_object **ret, Error **err)
{
	_cleanup_free_ char *data = NULL;
	size_t len;
	int r;

	r = file_read(text, FILE_MAX_BYTES, &data, &len);
	if (r < 0)
		return error_set(err, r, "--%s: cannot read %s: %s", spec->name, text, strerror(-r));
	if (strlen(data) != len)
		return error_set(err, -EINVAL, "--%s: %s is not a text file", spec->name, text);
	*ret = json_object_new_string(data);
	return 0;
}

static const struct {
	bool argument;
	int (*parse)(const OptionSpec *spec, const char *text, json_object **ret, Error **err);
} kinds[] = {
	[OPTION_FLAG] = {false, parse_flag},	    [OPTION_NO] = {false, parse_flag},
	[OPTION_SWITCH] = {true, parse_switch},	    [OPTION_TEXT] = {true, parse_text},
	[OPTION_CHOICE] = {true, parse_choice},	    [OPTION_RATE] = {true, parse_rate},
	[OPTION_MSEC] = {true, parse_duration},	    [OPTION_SEC] = {true, parse_duration},
	[OPTION_FILE] = {true, parse_file},	    [OPTION_LIST] = {true, parse_text},
	[OPTION_COUNT] = {true, parse_count},	    [OPTION_LIMITS] = {true, parse_limits},
	[OPTION_THROTTLE] = {true, parse_throttle},
};
static_assert(ARRAY_SIZE(kinds) == _OPTION_KIND_MAX, "a parser for each kind");

int option_value(const OptionSpec *spec, const char *text, json_object *values, Error **err)
{
	json_object *value, *list;
	int r = kinds[spec->kind].parse(spec, text, &value, err);

	if (r < 0)
		return r;
	if (spec->kind == OPTION_LIST) {
		if (json_get_array(values, spec->key, &list))
			return json_object_array_add(list, value);
		list = json_object_new_array();
		json_object_array_add(list, value);
		value = list;
	}
	if (spec->kind == OPTION_LIMITS && json_get_object(values, spec->key, &list)) {
		json_object_object_foreach(value, name, limit)
			json_object_object_add(list, name, json_object_get(limit));
		json_object_put(value);
		return 0;
	}
	json_object_object_add(values, spec->key, value);
	return 0;
}

const OptionSpec *option_find(const OptionSpec *specs, const char *name)
{
	for (; specs && specs->name; specs++)
		if (streq(specs->name, name))
			return specs;
	return NULL;
}

/* The row another host is given instead of a file's name: the hidden one that takes the text for the same key. */
static const OptionSpec *text_row(const OptionSpec *specs, const OptionSpec *file)
{
	for (; specs->name; specs++)
		if (specs->kind == OPTION_TEXT && streq(specs->key, file->key))
			return specs;
	return file;
}

static void add_word(const OptionSet *set, const OptionSpec *spec, const char *text, char ***words)
{
	if (spec->kind == OPTION_FILE) {
		spec = text_row(set->specs, spec);
		json_get_string(set->values, spec->key, &text);
	}
	if (text)
		strv_add(words, "--%s=%s", spec->name, text);
	else
		strv_add(words, "--%s", spec->name);
}

/* What getopt needs, built from the tables. */
typedef struct Flat {
	struct option *longs;
	char *shorts;
	const OptionSpec **specs;
	const OptionSet **sets;
	size_t n;
} Flat;

static void flat_done(Flat *flat)
{
	free(flat->longs);
	free(flat->shorts);
	free(flat->specs);
	free(flat->sets);
}

static void flatten(const OptionSet *sets, bool stop, Flat *flat)
{
	size_t n = 0, s = 0;

	for (const OptionSet *set = sets; set->values; set++)
		for (const OptionSpec *o = set->specs; o && o->name; o++)
			n++;
	flat->longs = xcalloc(n + 1, sizeof(*flat->longs));
	flat->specs = xcalloc(n, sizeof(*flat->specs));
	flat->sets = xcalloc(n, sizeof(*flat->sets));
	flat->shorts = xcalloc(1, 2 * n + 3);
	if (stop)
		flat->shorts[s++] = '+';
	flat->shorts[s++] = ':';
	for (const OptionSet *set = sets; set->values; set++)
		for (const OptionSpec *o = set->specs; o && o->name; o++) {
			bool arg = kinds[o->kind].argument;

			flat->longs[flat->n] = (struct option){o->name, arg ? required_argument : no_argument, NULL,
							       FIRST_VALUE + (int)flat->n};
			flat->specs[flat->n] = o;
			flat->sets[flat->n++] = set;
			if (o->letter)
				flat->shorts[s++] = o->letter;
			if (o->letter && arg)
				flat->shorts[s++] = ':';
		}
}

static size_t flat_index(const Flat *flat, int value)
{
	for (size_t i = 0; i < flat->n; i++)
		if (value == FIRST_VALUE + (int)i || (flat->specs[i]->letter && value == flat->specs[i]->letter))
			return i;
	abort();
}

static int usage_error(const Flat *flat, char **argv, int value, Error **err)
{
	if (value == ':')
		return error_set(err, -EINVAL, "%s needs a value", argv[optind - 1]);
	if (optopt >= FIRST_VALUE)
		return error_set(err, -EINVAL, "--%s takes no value", flat->specs[flat_index(flat, optopt)]->name);
	if (optopt)
		return error_set(err, -EINVAL, "unknown option -%c", optopt);
	return error_set(err, -EINVAL, "unknown option %s", argv[optind - 1]);
}

int options_parse(const OptionSet *sets, int argc, char **argv, bool stop, char ***words, Error **err)
{
	_cleanup_(flat_done)
	Flat flat = {0};
	int value, r;

	flatten(sets, stop, &flat);
	optind = 0;
	opterr = 0;
	while ((value = getopt_long(argc, argv, flat.shorts, flat.longs, NULL)) >= 0) {
		size_t i;

		if (value == '?' || value == ':')
			return usage_error(&flat, argv, value, err);
		i = flat_index(&flat, value);
		r = option_value(flat.specs[i], optarg, flat.sets[i]->values, err);
		if (r < 0)
			return r;
		if (words)
			add_word(flat.sets[i], flat.specs[i], optarg, words);
	}
	return optind;
}

void options_help(const OptionSpec *specs, FILE *out)
{
	for (; specs && specs->name; specs++) {
		_cleanup_free_ char *left = NULL;
		char letter[] = "-x, ";

		if (!specs->help)
			continue;
		letter[1] = specs->letter;
		left = xasprintf("%s--%s%s%s", specs->letter ? letter : "    ", specs->name,
				 kinds[specs->kind].argument ? "=" : "", specs->argument ? specs->argument : "");
		if (strlen(left) > 28)
			fprintf(out, "  %s\n  %-28s  %s\n", left, "", specs->help);
		else
			fprintf(out, "  %-28s  %s\n", left, specs->help);
	}
}
