# SPDX-License-Identifier: GPL-2.0-or-later
# Thin front of meson and tools/. Every target sees to what it needs; tests, demo and bench need root.

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=

all: deps
	@tools/build $(BUILD)

deps:
	@tools/install-deps

demo: all
	@tools/demo

check: deps
	@tools/check

check-long: deps
	@VMFERRY_TEST_LONG=1 tools/check

model: all
	@model/check $(BUILD) exhaustive

bench: all
	@bench/conntrack
	@bench/upgrade
	@bench/run
	@bench/answers

install: deps
	@tools/build $(BUILD) -Dprefix=$(PREFIX)
	@DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD) build-asan

.PHONY: all deps demo check check-long model bench install clean
