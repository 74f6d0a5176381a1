/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conf.h"

#include <confuse.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "basic/fs.h"
#include "basic/text.h"

/* A value of a CONF_UNIQUE key, in canonical form. */
typedef struct Unique {
	const ConfKey *key;
	const char *value;
	int line;
} Unique;

typedef struct Parse {
	const ConfSection *root;
	const char *origin;
	Error **err;
	char **values; /* canonical values: libconfuse copies them only after its callback has returned */
	Unique *uniques;
	size_t n_uniques;
} Parse;

/* libconfuse's callbacks carry no pointer of ours, and its scanner is global as well. */
static Parse *parse;

static void cfg_freep(cfg_t **cfg)
{
	if (*cfg)
		cfg_free(*cfg);
}

int conf_load(const char *path, char **ret, Error **err)
{
	_cleanup_free_ char *text = NULL;
	size_t len, line = 1;
	int r;

	r = file_read(path, CONF_TEXT_MAX, &text, &len);
	if (r == -EFBIG) {
		error_set(err, -EINVAL, "%s:1: longer than %d KiB", path, CONF_TEXT_MAX / 1024);
		error_hint(err, "is it the right file?");
		return -EINVAL;
	}
	if (r < 0)
		return error_set(err, r, "cannot read %s: %s", path, strerror(-r));
	if (strlen(text) != len) {
		for (const char *p = text; *p; p++)
			line += *p == '\n';
		return error_set(err, -EINVAL, "%s:%zu: control character 0x00 in the text", path, line);
	}
	*ret = TAKE_PTR(text);
	return 0;
}

int conf_fail(const ConfLines *lines, const char *key, Error **err, const char *fmt, ...)
{
	const ConfKey *found = conf_key_find(lines->root, key);
	unsigned int line = found ? lines->line[found - lines->root->keys] : 0;
	_cleanup_free_ char *message = NULL;
	va_list ap;

	va_start(ap, fmt);
	message = xvasprintf(fmt, ap);
	va_end(ap);
	return error_set(err, -EINVAL, "%s:%u: %s", lines->origin, line ? line : lines->last, message);
}

static const ConfKey *find_key(const cfg_t *cfg, const cfg_opt_t *opt)
{
	const ConfKey *section = conf_key_find(parse->root, cfg->name);

	return conf_key_find(section ? section->section : parse->root, opt->name);
}

static int check_unique(const ConfKey *key, const char *value, int line)
{
	for (size_t i = 0; i < parse->n_uniques; i++) {
		const Unique *u = &parse->uniques[i];

		if (u->key != key || !streq(u->value, value))
			continue;
		error_set(parse->err, -EINVAL, "\"%s\" stands here a second time", value);
		error_hint(parse->err, "it is in line %d already", u->line);
		return -EINVAL;
	}
	parse->uniques = xrealloc(parse->uniques, parse->n_uniques + 1, sizeof(Unique));
	parse->uniques[parse->n_uniques++] = (Unique){key, value, line};
	return 0;
}

/* libconfuse has read a value; what is put in @result is stored. */
static int on_value(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result)
{
	const ConfKey *key = find_key(cfg, opt);
	char *canonical;
	int r;

	r = conf_value(key, value, &canonical, parse->err);
	if (r >= 0) {
		strv_push(&parse->values, canonical);
		*(const char **)result = canonical;
		r = key->flags & CONF_UNIQUE ? check_unique(key, canonical, cfg->line) : 0;
	}
	if (r < 0) {
		error_prefix(parse->err, "%s:%d: %s%s%s%s%s: ", parse->origin, cfg->line,
			     streq(cfg->name, "root") ? "" : cfg->name, cfg->title ? " " : "",
			     cfg->title ? cfg->title : "", streq(cfg->name, "root") ? "" : ": ", key->name);
		return -1;
	}
	return 0;
}

static void _printf_(2, 0) on_error(cfg_t *cfg, const char *fmt, va_list ap)
{
	_cleanup_free_ char *message = NULL, *clean = NULL;

	message = xvasprintf(fmt, ap);
	clean = text_clean(message, 200);
	error_set(parse->err, -EINVAL, "%s:%d: %s", parse->origin, cfg->line, clean);
	error_hint(parse->err, "write KEY = \"VALUE\", KEY = { \"VALUE\", \"VALUE\" } or SECTION { ... }");
}

/* libconfuse's options for a section; it copies them. */
static cfg_opt_t *make_options(const ConfSection *section)
{
	cfg_opt_t *opts = xcalloc(section->n_keys + 1, sizeof(*opts));

	for (size_t i = 0; i < section->n_keys; i++) {
		const ConfKey *key = &section->keys[i];

		opts[i].name = key->name;
		if (key->type == CONF_SECTION) {
			opts[i].type = CFGT_SEC;
			opts[i].flags = CFGF_MULTI | (key->section->titled ? CFGF_TITLE : 0);
			opts[i].subopts = make_options(key->section);
			continue;
		}
		opts[i].type = CFGT_STR;
		opts[i].flags = CFGF_NODEFAULT | (key->type == CONF_LIST ? CFGF_LIST : 0);
		opts[i].parsecb = on_value;
	}
	return opts;
}

static void free_options(cfg_opt_t *opts)
{
	for (cfg_opt_t *opt = opts; opt->name; opt++)
		if (opt->subopts)
			free_options(opt->subopts);
	free(opts);
}

static void store_section(const ConfSection *section, cfg_t *cfg, void *object);

/* All instances of one section: array elements, or fields of the parent. */
static void store_instances(const ConfSection *section, cfg_opt_t *opt, void *object)
{
	size_t n = opt ? cfg_opt_size(opt) : 0;
	char *array;

	if (!section->element_size) {
		cfg_t *cfg = n ? cfg_opt_getnsec(opt, 0) : NULL;

		if (cfg && section->title_words)
			*(int *)((char *)object + section->title_offset) =
				name_table_find(section->title_words, cfg_title(cfg));
		store_section(section, cfg, object);
		return;
	}
	array = xcalloc(n, section->element_size);
	*(void **)((char *)object + section->array_offset) = array;
	*(size_t *)((char *)object + section->count_offset) = n;
	for (size_t i = 0; i < n; i++) {
		cfg_t *cfg = cfg_opt_getnsec(opt, (unsigned int)i);
		char *element = array + i * section->element_size;

		*(char **)(element + section->title_offset) = xstrdup(cfg_title(cfg));
		store_section(section, cfg, element);
	}
}

/* @cfg: NULL for a section that is not there: its keys' fallbacks are stored */
static void store_section(const ConfSection *section, cfg_t *cfg, void *object)
{
	for (size_t i = 0; i < section->n_keys; i++) {
		const ConfKey *key = &section->keys[i];
		cfg_opt_t *opt = cfg ? cfg_getopt(cfg, key->name) : NULL;
		unsigned int n = opt ? cfg_opt_size(opt) : 0;

		if (key->type == CONF_SECTION) {
			store_instances(key->section, opt, object);
			continue;
		}
		for (unsigned int j = 0; j < n; j++)
			conf_store(key, object, cfg_opt_getnstr(opt, j));
		if (n == 0 && key->fallback)
			conf_store(key, object, key->fallback);
	}
}

static int parse_text(const ConfSection *root, const char *text, void *object, Error **err)
{
	_cleanup_(cfg_freep)
	cfg_t *cfg = NULL;
	cfg_opt_t *opts = make_options(root);

	cfg = cfg_init(opts, CFGF_NONE);
	free_options(opts);
	if (!cfg)
		abort();
	cfg_set_error_function(cfg, on_error);
	if (cfg_parse_buf(cfg, text) != CFG_SUCCESS)
		return error_set(err, -EINVAL, "%s:%d: this is not understood", parse->origin, cfg->line);
	store_section(root, cfg, object);
	return 0;
}

int conf_parse(const ConfSection *root, const char *text, const char *origin, void *object, ConfLines *lines,
	       Error **err)
{
	_cleanup_error_ Error *local = NULL;
	_cleanup_free_ char *blanked = NULL;
	ConfLines unwanted;
	Parse p = {.root = root, .origin = origin, .err = err ? err : &local};
	int r;

	if (strlen(text) > CONF_TEXT_MAX)
		return error_set(err, -EINVAL, "%s:1: longer than %d KiB", origin, CONF_TEXT_MAX / 1024);
	r = conf_scan(root, text, origin, lines ? lines : &unwanted, &blanked, p.err);
	if (r < 0)
		return r;
	parse = &p;
	r = parse_text(root, blanked, object, p.err);
	parse = NULL;
	strv_free(p.values);
	free(p.uniques);
	return r;
}
