/* Moves the clocks of a program while it runs, by what stands in a file: preload it, with the
 * file's name in MOVED_CLOCKS. Two 64-bit numbers of nanoseconds: how far CLOCK_REALTIME is ahead
 * (it was set), and how far CLOCK_BOOTTIME is (the host was suspended). CLOCK_MONOTONIC stays. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_gettime)(clockid_t, struct timespec *);
static const volatile int64_t *moved;
static const int64_t unmoved[2];

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("MOVED_CLOCKS");
	int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;

	real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	moved = unmoved;
	if (file >= 0) {
		void *page = mmap(NULL, sizeof(unmoved), PROT_READ, MAP_SHARED, file, 0);
		if (page != MAP_FAILED)
			moved = page;
		close(file);
	}
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
	int64_t by = 0, total;

	if (!real_gettime)
		begin();
	if (real_gettime(clock, at) != 0)
		return -1;
	if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
		by = moved[0];
	else if (clock == CLOCK_BOOTTIME)
		by = moved[1];
	total = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec + by;
	at->tv_sec = total / 1000000000;
	at->tv_nsec = total % 1000000000;
	return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
	struct timespec now;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &now);
	at->tv_sec = now.tv_sec;
	at->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *at)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (at)
		*at = now.tv_sec;
	return now.tv_sec;
}
