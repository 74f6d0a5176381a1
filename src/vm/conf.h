/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"
#include "names.h"

/*
 * Configuration texts by schema: one table says which keys there are, what they take, where the value goes in a struct,
 * and what of it a guest can see. Parsing, writing, copying, comparing and freeing all walk that table.
 *
 * The grammar is libconfuse's. A scan of our own goes before it (conf_scan.c), because libconfuse 3.3 by itself expands
 * ${NAME} from the environment, takes an unclosed section, lets the last of two equal keys win, ends a string at \0
 * and miscounts lines after block comments.
 */

#define CONF_TEXT_MAX (64 * 1024)

typedef enum ConfType {
	CONF_TEXT,    /* char * */
	CONF_LIST,    /* char **, NULL terminated */
	CONF_NUMBER,  /* unsigned int or uint64_t, times `scale` */
	CONF_SIZE,    /* uint64_t, bytes */
	CONF_BOOL,    /* bool */
	CONF_WORD,    /* an enum, by `words` */
	CONF_SECTION, /* see ConfSection */
} ConfType;

enum {
	CONF_REQUIRED = 1 << 0,
	CONF_UNIQUE = 1 << 1,	/* no value twice in a text, whatever section it stands in */
	CONF_GUEST = 1 << 2,	/* the guest can see it */
	CONF_PRESENCE = 1 << 3, /* the guest can see whether it is there (WORD: whether it is `absent`) */
	CONF_PINNED = 1 << 4,	/* written even where it has its fallback, which another version may choose otherwise */
};

typedef struct ConfSection ConfSection;

/**
 * struct ConfKey - one key
 * @offset, @size: of the field
 * @fallback: value as text if the key is not given; NULL: NULL, 0 or false
 * @min, @max, @step: bounds of a number or size
 * @scale:    factor between the number in the text and the one in the field (0: 1)
 * @absent:   the word that means "none" (for CONF_PRESENCE)
 * @check:    checks a value of a text or list and gives its canonical form; NULL: anything goes
 * @store:    stores a value instead of the usual way, in fields that own no memory; such a key is only read
 * @differs:  whether the guest sees a difference between two objects; NULL: their values differ
 */
typedef struct ConfKey {
	const char *name;
	ConfType type;
	unsigned int flags;
	size_t offset, size;
	const char *fallback;
	uint64_t min, max, step, scale;
	const NameTable *words;
	int absent;
	int (*check)(const char *value, char **ret, Error **err);
	void (*store)(void *object, const char *value);
	bool (*differs)(const void *a, const void *b);
	const ConfSection *section;
} ConfKey;

/**
 * struct ConfSection - the keys of a text, or of one section of it
 * @max:          how often it may stand there
 * @title_words:  what its title may be; the title goes to @title_offset. NULL: a titled section has an id of its own
 * @titled:       it has a title
 * @element_size: of the array elements its instances are; 0: one instance at most, whose fields are the parent's
 * @array_offset, @count_offset: the array (a pointer) and its length (size_t) in the parent
 * @title_offset: the title's field: char * in the element, or an enum in the parent
 */
struct ConfSection {
	const char *name;
	const ConfKey *keys;
	size_t n_keys;
	size_t max;
	bool titled;
	const NameTable *title_words;
	size_t title_offset, element_size, array_offset, count_offset;
};

#define CONF_FIELD(type, field) .offset = offsetof(type, field), .size = sizeof(((type *)0)->field)

/* Line of every key of the root section, by its index there; 0: not given. */
#define CONF_KEYS_MAX 32
typedef struct ConfLines {
	const char *origin;
	const ConfSection *root;
	unsigned int line[CONF_KEYS_MAX];
	unsigned int last;
} ConfLines;

/**
 * conf_parse() - parse and check a text, fill a zeroed object
 * @lines: of the keys, for checks of one key against another, may be NULL
 *
 * Return: 0, or -EINVAL with @err set; what is in @object then is to be freed too.
 */
int conf_parse(const ConfSection *root, const char *text, const char *origin, void *object, ConfLines *lines,
	       Error **err);

/** conf_load() - read a text of at most CONF_TEXT_MAX bytes without NUL. Return: 0 or negative errno with @err set */
int conf_load(const char *path, char **ret, Error **err);

/** conf_fail() - set "FILE:LINE: ..." where LINE is that of a root key (or the last line). Return: -EINVAL */
int conf_fail(const ConfLines *lines, const char *key, Error **err, const char *fmt, ...) _printf_(4, 5);

/** conf_scan() - the scan before libconfuse. @ret: the text with its comments blanked. Return: 0 or -EINVAL, @err set
 */
int conf_scan(const ConfSection *root, const char *text, const char *origin, ConfLines *lines, char **ret, Error **err);

/** conf_key_find() - Return: the key of that name, or NULL */
const ConfKey *conf_key_find(const ConfSection *section, const char *name);

/** conf_value() - check one value for a key. @ret: its canonical form. Return: 0 or -EINVAL with @err set */
int conf_value(const ConfKey *key, const char *value, char **ret, Error **err);

/** conf_store() - put a canonical value into the key's field; lists grow by it */
void conf_store(const ConfKey *key, void *object, const char *value);

/** conf_value_text() - a field as it would be written, unquoted; free() it. NULL: not set. Not for lists, sections */
char *conf_value_text(const ConfKey *key, const void *object);

/**
 * conf_text() - the text of an object: every key that is set, and has another value than the one it has when it is not
 * given; of those only what is CONF_PINNED. So a version that does not know a key yet reads what makes no use of it.
 *
 * Return: text, free() it.
 */
char *conf_text(const ConfSection *root, const void *object);

/** conf_clear() - free what an object's fields own */
void conf_clear(const ConfSection *section, void *object);

/** conf_copy() - copy all fields into a zeroed object */
void conf_copy(const ConfSection *section, const void *from, void *to);

static inline void *conf_field(const ConfKey *key, void *object)
{
	return (char *)object + key->offset;
}

static inline const void *conf_field_const(const ConfKey *key, const void *object)
{
	return (const char *)object + key->offset;
}

/* Checks of values (conf_values.c), for ConfKey.check. */
int conf_check_id(const char *value, char **ret, Error **err);
int conf_check_helper(const char *value, char **ret, Error **err);
int conf_check_mark(const char *value, char **ret, Error **err);
int conf_check_lease_name(const char *value, char **ret, Error **err);
int conf_check_path(const char *value, char **ret, Error **err);
int conf_check_directory(const char *value, char **ret, Error **err);
int conf_check_binary(const char *value, char **ret, Error **err);
int conf_check_mac(const char *value, char **ret, Error **err);
int conf_check_address(const char *value, char **ret, Error **err);
int conf_check_prefix(const char *value, char **ret, Error **err);
int conf_check_bridge(const char *value, char **ret, Error **err);
int conf_check_uuid(const char *value, char **ret, Error **err);
int conf_check_machine(const char *value, char **ret, Error **err);
int conf_check_cpu(const char *value, char **ret, Error **err);
int conf_check_serial(const char *value, char **ret, Error **err);
int conf_check_nic_model(const char *value, char **ret, Error **err);
int conf_check_host_name(const char *value, char **ret, Error **err);
int conf_check_host_id(const char *value, char **ret, Error **err);
int conf_check_ports(const char *value, char **ret, Error **err);
int conf_check_listen(const char *value, char **ret, Error **err);
int conf_check_user(const char *value, char **ret, Error **err);
int conf_check_command(const char *value, char **ret, Error **err);
int conf_check_mask(const char *value, char **ret, Error **err);
