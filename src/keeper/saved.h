/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"
#include "vm/definition.h"

/*
 * The state of a guest in a file, while it is in no QEMU (--way=save), and the record of that: STATE_DIR/NAME/saved,
 * synced. The record decides. As long as it says "whole", the file has the guest: no QEMU may run it, the file is not
 * removed, and whoever starts the VM loads it. It says "used" before the guest may run again. It outlives a reboot, and a
 * file on a disk does so, too; one in a tmpfs is gone then, and the VM is off, as after a power cut.
 */
#define SAVED_KINDS(X)                                                        \
	X(WRITING, "writing") /* it is of no use: the guest is in its QEMU */ \
	X(WHOLE, "whole")     /* it has the guest */                          \
	X(USED, "used")	      /* the guest is in a QEMU that has loaded it */
#define X(id, name) SAVED_##id,
typedef enum SavedKind { SAVED_KINDS(X) _SAVED_KIND_MAX } SavedKind;
#undef X

typedef struct Saved {
	SavedKind kind;
	char id[33];	    /* the upgrade's */
	char *file;	    /* absolute path */
	uint64_t size;	    /* bytes, of a whole one */
	bool running;	    /* the guest ran, and is to run again */
	bool lease;	    /* it held its lease */
	bool fell_back;	    /* used: by the old version */
	char *old, *fresh; /* definitions: of the QEMU that wrote it, and of the one that is to load it */
} Saved;

/** saved_new() - what an upgrade is going to save. @dir: NULL: a directory of ours in the runtime directory */
Saved *saved_new(const char *name, const char *id, const char *dir);
void saved_free(Saved *saved);
DEFINE_CLEANUP(Saved *, saved_free)

/** saved_in_runtime() - whether the file is in the runtime directory, and so goes with a reboot */
bool saved_in_runtime(const Saved *saved);

/** saved_read() - the record. Return: 0, -ENOENT if there is none, or negative errno with @err set: it is damaged */
int saved_read(const char *name, Saved **ret, Error **err);
/** saved_write() - write it, synced. Return: 0 or negative errno with @err set */
int saved_write(const char *name, const Saved *saved, Error **err);
/** saved_remove() - remove the file, then the record */
void saved_remove(const char *name, const Saved *saved);
/** saved_remove_file() - the one. Return: 0, also if it is gone, or negative errno with @err set */
int saved_remove_file(const Saved *saved, Error **err);
/** saved_remove_record() - the other */
void saved_remove_record(const char *name);

/** saved_create() - make the file, empty. Return: fd (close-on-exec), or negative errno with @err set */
int saved_create(const Saved *saved, Error **err);
/** saved_open() - open a whole one to read it. Return: fd; -ENOENT or -EBADMSG if it is not there, or not whole, with @err set */
int saved_open(const Saved *saved, Error **err);

/** saved_size_max() - as large as it can get, bytes */
uint64_t saved_size_max(const VmDefinition *def);
/** saved_directory() - where it is made; free() it */
char *saved_directory(const char *dir);
/**
 * saved_room() - whether its file system has room for @bytes
 * @ret_memory: whether that is memory (tmpfs(5))
 *
 * Return: 0, -ENOSPC or another negative errno with @err set.
 */
int saved_room(const char *dir, uint64_t bytes, bool *ret_memory, Error **err);
