/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "macros.h"

typedef enum LogLevel { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG } LogLevel;

/* Where log lines go besides standard error and the file: the peer, watching clients. */
typedef void (*LogSink)(LogLevel level, const char *message, void *userdata);

/**
 * log_open() - write log lines to a file as well
 * @path: appended to; at 1 MiB it is renamed to PATH.1 (replacing the one before) and begun anew
 *
 * Return: 0 or negative errno. Standard error stays in use when @path is NULL.
 */
int log_open(const char *path);

/** log_set_sink() - also hand every line up to info to @sink (NULL: no more) */
void log_set_sink(LogSink sink, void *userdata);

/** log_set_level() - lines above this level are not written (default: info; VMFERRY_LOG=debug raises it) */
void log_set_level(LogLevel level);

/** log_line() - write a line; control characters in it become "?" */
void log_line(LogLevel level, const char *fmt, ...) _printf_(2, 3);

#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
