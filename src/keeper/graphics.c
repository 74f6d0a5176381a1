/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Clients of SPICE follow the guest: told before memory moves, and handed over before the source's QEMU goes. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <gnutls/x509.h>
#include <inttypes.h>

#include "keeper/move.h"

#define HAND_OVER_USEC (5 * USEC_PER_SEC)
#define CERTIFICATE_MAX 65536
#define CERT_SUBJECT_MAX 1024

/* An address that is no place to connect to from elsewhere: the host's name has to do. */
static bool only_local(const char *listen)
{
	struct in6_addr six;
	struct in_addr four;

	if (inet_pton(AF_INET, listen, &four) == 1)
		return four.s_addr == htonl(INADDR_ANY) || ntohl(four.s_addr) >> 24 == IN_LOOPBACKNET;
	if (inet_pton(AF_INET6, listen, &six) == 1)
		return IN6_IS_ADDR_UNSPECIFIED(&six) || IN6_IS_ADDR_LOOPBACK(&six);
	return true;
}

/* Loaded for who needs it: QEMU brings it, and it would make every keeper by a quarter larger. */
#define GNUTLS_TABLE(X) X(init) X(import) X(get_dn) X(deinit)
typedef struct Gnutls {
#define X(name) __typeof__(gnutls_x509_crt_##name) *name;
	GNUTLS_TABLE(X)
#undef X
} Gnutls;

static bool load_gnutls(Gnutls *ret)
{
	void *library = dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return false;
#define X(name)                                                                                                        \
	ret->name = (__typeof__(ret->name))dlsym(library, "gnutls_x509_crt_" #name);                                   \
	if (!ret->name)                                                                                                \
		return false;
	GNUTLS_TABLE(X)
#undef X
	return true;
}

static char *subject_of(const Gnutls *tls, const char *pem, size_t len)
{
	gnutls_datum_t datum = {(unsigned char *)(uintptr_t)pem, (unsigned int)len};
	char subject[CERT_SUBJECT_MAX + 1] = "";
	gnutls_x509_crt_t certificate;
	size_t size = sizeof(subject);

	if (tls->init(&certificate) < 0)
		return NULL;
	if (tls->import(certificate, &datum, GNUTLS_X509_FMT_PEM) < 0 || tls->get_dn(certificate, subject, &size) < 0)
		subject[0] = '\0';
	tls->deinit(certificate);
	return *subject ? xstrdup(subject) : NULL;
}

char *graphics_cert_subject(const VmDefinition *def)
{
	_cleanup_free_ char *path = NULL, *pem = NULL;
	Gnutls tls;
	size_t len;

	if (!def->graphics_tls)
		return NULL;
	path = xasprintf("%s/server-cert.pem", def->graphics_tls);
	return file_read(path, CERTIFICATE_MAX, &pem, &len) == 0 && load_gnutls(&tls) ? subject_of(&tls, pem, len) : NULL;
}

static void on_told(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	(void)ret;
	if (!error)
		return;
	m->spice = SPICE_NONE;
	move_warn(m, "graphics clients cannot follow, they have to connect again: %s", error);
}

void graphics_tell(Move *m)
{
	const PrepareReply *p = &m->prepared;
	const char *host = p->graphics_listen;
	json_object *where;

	m->spice = SPICE_NONE;
	if (m->k->def->graphics != GRAPHICS_SPICE || !streq_null(p->graphics, "spice") ||
	    (!p->graphics_port && !p->graphics_tls_port))
		return;
	if (!host || only_local(host))
		host = p->graphics_host ? p->graphics_host : m->hello.host_name;
	where = json_build("protocol", "s", "spice", "hostname", "s", host, NULL);
	if (p->graphics_port)
		json_extend(where, "port", "u", p->graphics_port, NULL);
	if (p->graphics_tls_port)
		json_extend(where, "tls-port", "u", p->graphics_tls_port, NULL);
	if (p->graphics_tls_port && p->graphics_cert_subject)
		json_extend(where, "cert-subject", "s", p->graphics_cert_subject, NULL);
	log_info("SPICE clients go on at %s, port %" PRIu64, host,
		 p->graphics_port ? p->graphics_port : p->graphics_tls_port);
	m->spice = SPICE_TOLD;
	machine_qmp(m->k, "client_migrate_info", where, on_told, m);
}

static void handed_over(Move *m)
{
	bool held = m->spice == SPICE_AWAITED;

	m->spice = SPICE_DONE;
	m->spice_timer = sd_event_source_disable_unref(m->spice_timer);
	if (held)
		machine_kill(m->k);
}

static int on_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)source;
	(void)usec;
	move_warn(m, "SPICE did not hand its clients over in time: they have to connect again");
	handed_over(m);
	return 0;
}

void graphics_handed_over(Move *m)
{
	if (m->spice != SPICE_NONE)
		handed_over(m);
}

bool graphics_hold(Move *m)
{
	if (m->spice != SPICE_TOLD || !m->k->qemu ||
	    sd_event_add_time_relative(m->k->event, &m->spice_timer, CLOCK_MONOTONIC, HAND_OVER_USEC, 0, on_late, m) <
		    0)
		return false;
	m->spice = SPICE_AWAITED;
	return true;
}
