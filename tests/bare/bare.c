/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest without an operating system: up in a blink, and it notices whatever a migration does to it.
 *
 * A hundred times a second it checks some pages of memory against what it wrote there last, writes something new, and does
 * the same with its disk (virtio-blk, if there is one). Once through it all it says so on the serial console:
 *
 *     READY                    at boot
 *     ok BOOT N                memory is as it was left, N times now; BOOT tells one boot from another
 *     BAD WHAT WHERE           it is not, or the disk is not
 *
 * The power button turns it off. Multiboot (version 1), 32 bits, no paging; for QEMU's "pc" and "q35" machines.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HZ 100
#define MEMORY ((uint32_t *)0x400000)
#define PAGES 1024U /* 4 MiB */
#define PAGE_WORDS 1024U
#define SLICE 64U /* pages a tick: once through it all takes 160 ms */

#define MULTIBOOT_MAGIC 0x1badb002U
#define COM1 0x3f8
#define ACPI_PM 0x600 /* where SeaBIOS puts it on both machines: PM1 status, enable; control at + 4 */
#define POWER_BUTTON 0x100
#define SLEEP_S5 0x2000

__attribute__((section(".multiboot"), used)) static const uint32_t multiboot[] = {MULTIBOOT_MAGIC, 0, -MULTIBOOT_MAGIC};

/* ---- ports ---- */

static inline void outb(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t v)
{
	__asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t v;

	__asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static inline void barrier(void)
{
	__asm__ volatile("" : : : "memory");
}

/* gcc may call it even here. */
void *memset(void *to, int c, size_t n);
void *memset(void *to, int c, size_t n)
{
	for (uint8_t *p = to; n > 0; n--)
		*p++ = (uint8_t)c;
	return to;
}

/* ---- console ---- */

static void put(const char *s)
{
	for (; *s; s++) {
		for (int i = 0; i < 100000 && !(inb(COM1 + 5) & 0x20); i++)
			;
		outb(COM1, (uint8_t)*s);
	}
}

static void put_number(uint32_t v, uint32_t base)
{
	char text[12];
	size_t i = sizeof(text) - 1;

	text[i] = '\0';
	do
		text[--i] = "0123456789abcdef"[v % base];
	while ((v /= base) && i > 0);
	put(&text[i]);
}

static void bad(const char *what, uint32_t where)
{
	put("BAD ");
	put(what);
	put(" ");
	put_number(where, 16);
	put("\n");
}

/* ---- memory ---- */

static uint32_t written[PAGES];

static inline uint32_t pattern(uint32_t n, uint32_t place)
{
	return (n * 2654435761U) ^ (place * 40503U) ^ (n >> 7);
}

static void check_page(uint32_t page)
{
	uint32_t *words = MEMORY + page * PAGE_WORDS;

	for (uint32_t i = 0; i < PAGE_WORDS; i++) {
		if (words[i] != pattern(written[page], page * PAGE_WORDS + i)) {
			bad("memory", (uint32_t)&words[i]);
			break;
		}
	}
}

static void write_page(uint32_t page, uint32_t n)
{
	uint32_t *words = MEMORY + page * PAGE_WORDS;

	written[page] = n;
	for (uint32_t i = 0; i < PAGE_WORDS; i++)
		words[i] = pattern(n, page * PAGE_WORDS + i);
}

/* ---- disk: virtio-blk as a transitional device, virtio 1.0 section 2.1 and 4.1.4.8 ("legacy interface") ---- */

#define PCI_ID_BLK 0x10011af4U
#define QUEUE_MAX 1024U
#define PLACES 64U /* clusters of the image that are written, one sector in each */
#define STRIDE 128U
#define DESC_NEXT 1
#define DESC_WRITE 2

typedef struct Desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
} Desc;

typedef struct Request {
	uint32_t type, reserved;
	uint64_t sector;
} Request;

static uint8_t queue[QUEUE_MAX * 16 + 4096 * 4 + QUEUE_MAX * 8] __attribute__((aligned(4096)));
static struct {
	uint16_t port, size, seen;
	volatile uint16_t *avail, *used;
	bool busy, reading;
	uint32_t n, place, last[PLACES];
	Request request;
	uint32_t data[128];
	volatile uint8_t status;
} disk;

static uint32_t pci_read(uint32_t slot, uint32_t reg)
{
	outl(0xcf8, 0x80000000U | slot << 11 | reg);
	return inl(0xcfc);
}

static void pci_write(uint32_t slot, uint32_t reg, uint32_t v)
{
	outl(0xcf8, 0x80000000U | slot << 11 | reg);
	outl(0xcfc, v);
}

static void disk_open(void)
{
	uint32_t slot = 0;

	while (slot < 32 && pci_read(slot, 0) != PCI_ID_BLK)
		slot++;
	if (slot == 32)
		return;
	pci_write(slot, 4, pci_read(slot, 4) | 5); /* I/O, bus master */
	disk.port = (uint16_t)(pci_read(slot, 0x10) & ~3U);
	outb(disk.port + 18, 0);
	outb(disk.port + 18, 3); /* acknowledge, driver */
	outl(disk.port + 4, 0);
	outw(disk.port + 14, 0);
	disk.size = inw(disk.port + 12);
	if (disk.size == 0 || disk.size > QUEUE_MAX) {
		disk.port = 0;
		bad("queue", disk.size);
		return;
	}
	disk.avail = (volatile uint16_t *)(queue + disk.size * 16U);
	disk.used = (volatile uint16_t *)(((uint32_t)(disk.avail + 3 + disk.size) + 4095) & ~4095U);
	disk.avail[0] = 1; /* no interrupt */
	outl(disk.port + 8, (uint32_t)queue >> 12);
	outb(disk.port + 18, 7);
}

static void disk_submit(bool reading)
{
	Desc *d = (Desc *)queue;

	disk.reading = reading;
	disk.busy = true;
	disk.status = 0xff;
	disk.request = (Request){.type = !reading, .sector = (uint64_t)disk.place * STRIDE};
	for (uint32_t i = 0; i < 128; i++)
		disk.data[i] = reading ? 0 : pattern(disk.n, disk.place * 128 + i);
	d[0] = (Desc){(uint32_t)&disk.request, sizeof(disk.request), DESC_NEXT, 1};
	d[1] = (Desc){(uint32_t)disk.data, sizeof(disk.data), DESC_NEXT | (reading ? DESC_WRITE : 0), 2};
	d[2] = (Desc){(uint32_t)&disk.status, 1, DESC_WRITE, 0};
	disk.avail[2 + disk.avail[1] % disk.size] = 0;
	barrier();
	disk.avail[1]++;
	barrier();
	outw(disk.port + 16, 0);
}

static void disk_check(void)
{
	for (uint32_t i = 0; i < 128; i++) {
		if (disk.data[i] != pattern(disk.last[disk.place], disk.place * 128 + i)) {
			bad("disk", disk.place);
			return;
		}
	}
}

/* One request a tick: a place is read and checked if it was written before, then written. */
static void disk_tick(void)
{
	if (!disk.port)
		return;
	if (disk.busy) {
		if (disk.used[1] == disk.seen)
			return;
		disk.seen++;
		disk.busy = false;
		if (disk.status != 0)
			bad("disk-status", disk.status);
		if (disk.reading) {
			disk_check();
			disk_submit(false);
			return;
		}
		disk.last[disk.place] = disk.n;
	}
	disk.n++;
	disk.place = (disk.place + 1) % PLACES;
	disk_submit(disk.last[disk.place] != 0);
}

/* ---- interrupts ---- */

typedef struct Gate {
	uint16_t low, selector, flags, high;
} Gate;

static struct {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed)) descriptor;
static Gate gates[48];

/* A segment of 4 GiB for code, one for data: multiboot's own table may be anywhere. */
static uint64_t segments[] = {0, 0x00cf9a000000ffffULL, 0x00cf92000000ffffULL};

__attribute__((naked)) static void on_timer(void)
{
	__asm__ volatile("push %eax; mov $0x20, %al; outb %al, $0x20; pop %eax; iret");
}

static void load_segments(void)
{
	descriptor.limit = sizeof(segments) - 1;
	descriptor.base = (uint32_t)segments;
	__asm__ volatile("lgdt %0; ljmp $8, $1f; 1: mov $16, %%eax; mov %%ax, %%ds; mov %%ax, %%es; mov %%ax, %%ss"
			 :
			 : "m"(descriptor)
			 : "eax", "memory");
}

static void start_timer(void)
{
	static const uint8_t words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4},
					   {0xa1, 2},	 {0x21, 1},    {0xa1, 1},    {0x21, 0xfe}, {0xa1, 0xff}};
	uint32_t handler = (uint32_t)on_timer, divisor = 1193182 / HZ;

	gates[0x20] = (Gate){(uint16_t)handler, 8, 0x8e00, (uint16_t)(handler >> 16)};
	descriptor.limit = sizeof(gates) - 1;
	descriptor.base = (uint32_t)gates;
	__asm__ volatile("lidt %0" : : "m"(descriptor));
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		outb(words[i][0], words[i][1]);
	outb(0x43, 0x34);
	outb(0x40, (uint8_t)divisor);
	outb(0x40, (uint8_t)(divisor >> 8));
}

static void power(void)
{
	if (!(inw(ACPI_PM) & POWER_BUTTON))
		return;
	outw(ACPI_PM, POWER_BUTTON);
	put("off\n");
	outw(ACPI_PM + 4, SLEEP_S5);
}

/* ---- all of it ---- */

static void run(void)
{
	uint32_t boot, high, n = 0;

	__asm__ volatile("rdtsc" : "=a"(boot), "=d"(high));
	boot ^= high << 24;
	for (uint32_t page = 0; page < PAGES; page++)
		write_page(page, boot + page);
	disk_open();
	outw(ACPI_PM + 2, POWER_BUTTON);
	put("READY\n");
	for (uint32_t page = 0;; page = (page + SLICE) % PAGES) {
		for (uint32_t i = page; i < page + SLICE; i++) {
			check_page(i);
			write_page(i, written[i] + 1);
		}
		disk_tick();
		power();
		if (page + SLICE == PAGES) {
			put("ok ");
			put_number(boot, 16);
			put(" ");
			put_number(++n, 10);
			put("\n");
		}
		__asm__ volatile("sti; hlt; cli" : : : "memory");
	}
}

static uint8_t stack[16384] __attribute__((aligned(16), used));

void main_c(void);
void main_c(void)
{
	load_segments();
	start_timer();
	run();
}

__attribute__((naked, used)) void _start(void);
void _start(void)
{
	__asm__ volatile("cli; mov $stack + 16384, %esp; call main_c");
}
