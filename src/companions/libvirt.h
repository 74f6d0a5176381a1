/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <libvirt/libvirt.h>
#include <systemd/sd-event.h>

#include "companions/tool.h"

/*
 * vmferry-libvirt: libvirt moves the guest, as virsh(1) is told to; beside it the connections go over ssh, from
 * `vmferry-conntrack follow` on the source into `vmferry-libvirt receive` on the target. libvirt is asked to leave the
 * guest paused there (--suspend); receive, which is close to it, resumes it once the last change is in, or after the
 * bound.
 */

#define LIBVIRT_BOUND_MSEC 200

/**
 * struct Transfer - the line of JSON before the entries in receive's input; nothing of it stands on a command line
 * @domain: its name on the target
 * @resume: libvirt leaves it paused, and it is to run
 * @bound:  microseconds
 */
typedef struct Transfer {
	char *domain;
	CtSelect *select;
	bool resume;
	uint64_t bound;
} Transfer;

/** transfer_json() - a transfer, from the verb's options. Return: a new object */
json_object *transfer_json(const Tool *tool, const char *domain, char *const *addresses, bool resume, uint64_t bound);
/** transfer_read() - take the line from @fd, and no byte more. Return: 0, or negative errno with @err set */
int transfer_read(int fd, Transfer *ret, Error **err);
void transfer_done(Transfer *transfer);

/* ---- virsh, helper.c ---- */

/** virsh_quote() - a word as virsh's own command lines have it; free() it */
char *virsh_quote(const char *word);

/** virsh_words() - the beginning of a command line. @uri: NULL for virsh's own default; strv_free() it */
char **virsh_words(const char *uri);

/**
 * virsh_ask() - run virsh's commands and return what they print
 * @commands: one command line, several separated by ";"
 * @usec: it is ended then; 0: never
 * @ret: all of standard output, at most 4 MiB
 * @err: NULL: what it says is of no interest; else that goes to our own standard error
 *
 * Return: 0, or negative errno with @err set to what virsh says.
 */
int virsh_ask(const char *uri, const char *commands, uint64_t usec, char **ret, Error **err);

/* ---- libvirt's library: libvirt-watch.c ---- */

/* What becomes of a domain. */
typedef enum DomainLife {
	LIFE_NONE,    /* not known yet */
	LIFE_COMING,  /* its QEMU waits for memory here */
	LIFE_LEAVING, /* stopped for the switch to another host */
	LIFE_PAUSED,
	LIFE_RUNNING,
	LIFE_GONE, /* or not there yet */
} DomainLife;

typedef struct Watch Watch;

/**
 * struct WatchHandlers - called from the loop
 * @life:    an event
 * @answer:  what it is: once at the beginning, when events are heard, and at each watch_ask(). May be NULL
 * @refused: libvirt does not resume it, and why. May be NULL
 * @lost:    nothing more is heard, or nothing ever was, and why
 */
typedef struct WatchHandlers {
	void (*life)(void *userdata, DomainLife life);
	void (*answer)(void *userdata, DomainLife life);
	void (*refused)(void *userdata, const char *why);
	void (*lost)(void *userdata, const char *why);
} WatchHandlers;

/**
 * watch_new() - hear of a domain, which need not be there yet; one of these in a process. It never waits for libvirt
 * @uri: NULL: as virsh has it
 * @domain: its name
 *
 * Return: 0, or negative errno with @err set; that there is no connection, @handlers hear.
 */
int watch_new(sd_event *event, const char *uri, const char *domain, const WatchHandlers *handlers, void *userdata,
	      Watch **ret, Error **err);
/** watch_ask() - what has become of it? The answer comes to the handlers */
void watch_ask(const Watch *watch);
/** watch_resume() - let it run. That it does is an event, that it cannot comes to the handlers */
void watch_resume(const Watch *watch);
/** watch_free() - close the connection; for a daemon that does not answer it waits a second, and leaves a thread.
 * Return: NULL */
Watch *watch_free(Watch *watch);

/* ---- the domain on the source, libvirt-domain.c ---- */

/* Where addresses may come from; the first that names one is believed. */
typedef enum DomainSource {
	FROM_OPTION,
	FROM_METADATA, /* the operator's word */
	FROM_FILTER,   /* what the host lets it use */
	FROM_LEASE,    /* what libvirt's DHCP server gave to its MAC addresses */
	FROM_AGENT,    /* what the guest says of itself, on interfaces with its MAC addresses */
	_FROM_MAX
} DomainSource;

/** domain_source_name() - what people are told of it */
const char *domain_source_name(DomainSource source);

/**
 * struct Domain - what is known of it before it moves
 * @others: names of all that run there, a line each
 */
typedef struct Domain {
	char *name;
	bool paused;
	char *others;
	char **macs;
	char **addresses;
	DomainSource source;
} Domain;

/**
 * domain_learn() - ask virsh
 * @name: name, number or UUID
 * @given: the operator's addresses
 * @needed: addresses are; without them it may have none
 *
 * Return: 0, or negative errno with @err set; domain_done() it in any case.
 */
int domain_learn(const char *uri, const char *name, char *const *given, bool needed, Domain *ret, Error **err);
void domain_done(Domain *domain);

/**
 * domain_neighbours() - addresses of the other domains there, as far as they are known without asking a guest
 * @name: who is not meant
 * @names: of all that run there, a line each; NULL: they are asked for
 *
 * Return: NULL when there are none or libvirt does not answer within 10 s; strv_free() it.
 */
char **domain_neighbours(const char *uri, const char *name, const char *names);

/* ---- helper processes that say lines ---- */

typedef struct Helper Helper;

typedef struct HelperHandlers {
	void (*line)(Helper *helper, char *line, void *userdata); /* without its newline */
	/* It has ended and all it said was handed out. @status as waitpid(2) has it */
	void (*ended)(Helper *helper, int status, void *userdata);
} HelperHandlers;

/**
 * struct HelperSpec - what to start
 * @name:  for messages
 * @in, @out, @err: its standard fds, stay the caller's; -1: /dev/null, HELPER_LINES: lines of it come to @handlers
 */
typedef struct HelperSpec {
	const char *name;
	char *const *argv;
	int in, out, err;
	bool foreground; /* in the terminal's process group */
	bool outlives;	 /* us, when we are killed */
	const HelperHandlers *handlers;
	void *userdata;
} HelperSpec;
#define HELPER_LINES -2

/** helper_start() - Return: 0, or negative errno with @err set */
int helper_start(sd_event *event, const HelperSpec *spec, Helper **ret, Error **err);
/** helper_signal() - unless it has ended */
void helper_signal(Helper *helper, int signal);
/** helper_running() - whether it has not ended */
bool helper_running(const Helper *helper);
/** helper_free() - SIGTERM, and reap it. Return: NULL */
Helper *helper_free(Helper *helper);

/* Verbs. Return: 0, or negative errno with @err set. */
int libvirt_migrate(const Tool *tool, Error **err);
int libvirt_receive(const Tool *tool, Error **err);
int libvirt_hook(const Tool *tool, Error **err);
