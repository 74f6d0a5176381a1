/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/error.h"

/*
 * A worker: a child process that does for the loop what may take long, or never come back, because the storage it is
 * done on does not answer. Requests go to it one after the other; their answers are events of the loop.
 *
 * A process and no thread: one that sleeps in the kernel for good would keep ours from ending, from becoming another
 * program, and from closing its files, among them the lock of the VM. What a worker is doing when it is given up may
 * still come true, an hour later; what would have come after that does not, for SIGKILL is there first. The one step
 * that must not come true behind our back asks worker_may().
 */
typedef struct Worker Worker;

#define WORKER_DATA 1024

/* What became of a request. */
typedef struct WorkerAnswer {
	int r;
	Error *err; /* of r < 0; may be taken */
	int fd;	    /* one that came with it, may be taken; -1: none */
	char data[WORKER_DATA];
} WorkerAnswer;

/* In the worker. Return: 0 or negative errno; @answer's other members are filled in. */
typedef int (*WorkerServe)(const char *request, WorkerAnswer *answer, void *userdata);
/* In the loop. A @request's answer, or that there will be none: r is -ETIMEDOUT then, and err NULL. */
typedef void (*WorkerDone)(WorkerAnswer *answer, void *userdata);

/**
 * struct WorkerJob - what a worker does
 * @serve:    called for each request
 * @watch_fd: what the worker looks at between two requests: readable, it calls @notice; NULL: nothing
 * @notice:   as @serve; what it returns below 0 is told to @noticed
 * @noticed:  in the loop
 * @userdata: of @serve, @watch_fd, @notice: the worker has a copy of all our memory
 * @owner:    of @noticed
 * @keep_fd:  the one fd of ours that it keeps; -1: none
 * @lock:     a file that only one worker at a time has locked: the next one does nothing before the one that was given
 * up is gone. NULL: none
 */
typedef struct WorkerJob {
	WorkerServe serve;
	int (*watch_fd)(void *userdata);
	int (*notice)(WorkerAnswer *answer, void *userdata);
	WorkerDone noticed;
	void *userdata, *owner;
	int keep_fd;
	const char *lock;
} WorkerJob;

/** worker_new() - start one. Return: 0 or negative errno with @err set */
int worker_new(sd_event *event, const WorkerJob *job, Worker **ret, Error **err);

/** worker_free() - give it up: no answer comes any more, and nobody waits for its end. Return: NULL */
Worker *worker_free(Worker *w);

/**
 * worker_ask() - send it a request
 * @request: at most WORKER_DATA bytes
 * @usec:    how long to wait for the answer; 0: for ever
 *
 * @done is called from the loop, or by worker_wait(); not any more once the worker is freed. It may free the worker.
 *
 * Return: 0 or negative errno: then @done is not called.
 */
int worker_ask(Worker *w, const void *request, size_t len, uint64_t usec, WorkerDone done, void *userdata);

/** worker_busy() - whether an answer is awaited */
bool worker_busy(const Worker *w);

/** worker_wait() - outside of any pause: let its answers come, until none is awaited or @usec are over */
void worker_wait(Worker *w, uint64_t usec);

/** worker_may() - in the worker: whether it may go on to what cannot be taken back, because it was not given up; once a
 * request */
bool worker_may(void);

/** worker_stop() - the answer is not wanted any more. Return: whether that came before worker_may(), which says no then
 */
bool worker_stop(Worker *w);

/**
 * worker_run() - one request to a worker of its own, which ends then
 * @ret: worker_free() it to give it up; it is NULL, and freed, when @done is called
 */
int worker_run(sd_event *event, WorkerServe serve, void *context, int keep_fd, uint64_t usec, WorkerDone done,
	       void *userdata, Worker **ret, Error **err);
