/* Shifts the wall clock of the process that it is preloaded into (LD_PRELOAD), and no other clock.

   The shift, in nanoseconds, is the first eight bytes of the file that STEPPED_CLOCK_OFFSET names; it is mapped, so whoever
   writes there steps the clock of the running process. Deadlines by the wall clock that are handed to the kernel are shifted
   back, since the kernel's own clock was not stepped; who waited for one already as the step came is not woken by it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
#define WALL_SINCE_S 1000000000 /* A deadline later than this, in 2001, is one by the wall clock; no machine is up for so long. */

static _Atomic int64_t *offset_ns;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("STEPPED_CLOCK_OFFSET");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(int64_t)) != 0) {
        perror("stepped_clock: STEPPED_CLOCK_OFFSET");
        abort();
    }
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        perror("stepped_clock: mmap");
        abort();
    }
    close(fd);
    offset_ns = mapped;
}

static struct timespec shifted(struct timespec at, int sign) {
    int64_t ns = at.tv_sec * SECOND_NS + at.tv_nsec + (offset_ns == NULL ? 0 : sign * *offset_ns);
    return (struct timespec){.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS};
}

static struct timespec for_kernel(const struct timespec *deadline) {
    return deadline->tv_sec > WALL_SINCE_S ? shifted(*deadline, -1) : *deadline;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI)) *now = shifted(*now, 1);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec at;
    int failed = clock_gettime(CLOCK_REALTIME, &at);
    if (!failed) *now = (struct timeval){.tv_sec = at.tv_sec, .tv_usec = at.tv_nsec / 1000};
    return failed;
}

time_t time(time_t *into) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (into != NULL) *into = at.tv_sec;
    return at.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (real == NULL) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"); /* there is an older one on x86-64 */
    if (real == NULL) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec until = for_kernel(deadline);
    return real(cond, mutex, &until);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline) {
    static int (*real)(sem_t *, const struct timespec *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec until = for_kernel(deadline);
    return real(semaphore, &until);
}

long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (real == NULL) real = dlsym(RTLD_NEXT, "syscall");
    va_list rest;
    va_start(rest, number);
    long args[6];
    for (int each = 0; each < 6; each++) args[each] = va_arg(rest, long);
    va_end(rest);
    struct timespec until;
    if (number == SYS_futex && (args[1] & FUTEX_CLOCK_REALTIME) && args[3] != 0) {
        until = for_kernel((const struct timespec *)args[3]);
        args[3] = (long)&until;
    }
    return real(number, args[0], args[1], args[2], args[3], args[4], args[5]);
}
