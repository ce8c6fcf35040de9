/* Attacks on what everybody shares: each takes as much as it gets, says how much that was, and gives it back. */
#include "attack.h"

#include <mqueue.h>
#include <pthread.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

/* Far above what an instance may have, and far below what would hurt a machine where it wins. */
#define MANY 2000000

static struct outcome many(int count, int bound, const char *what) {
    char detail[100];
    snprintf(detail, sizeof detail, "%d %s, then %s", count, what, strerrorname_np(errno));
    return count > bound ? WON(detail) : HELD(detail);
}
/* Writes a file until it is told to stop. */
static struct outcome fill(const char *path, long mebibytes_max) {
    static char block[1 << 20];
    int file = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (file == -1)
        return REFUSED();
    long written = 0;
    memset(block, 'x', sizeof block);
    while (written <= mebibytes_max && write(file, block, sizeof block) == (ssize_t)sizeof block)
        written++;
    int error = errno;
    unlink(path);
    errno = error;
    return many((int)written, (int)mebibytes_max, "MiB");
}

static struct outcome files_open(char **_) {
    int count = 0;
    while (count < MANY && dup(0) != -1)
        count++;
    return many(count, 1 << 20, "descriptors");
}
static struct outcome shared_memory(char **_) { return fill("/dev/shm/fill", 64); }
static struct outcome device_folder(char **_) {
    struct outcome outcome = fill("/dev/fill", 1);
    return outcome;
}
static struct outcome terminals(char **_) {
    int count = 0;
    while (count < MANY && open("/dev/ptmx", O_RDWR | O_NOCTTY) != -1)
        count++;
    /* The machine has 4096 for everybody. */
    return many(count, 256, "terminals");
}
static struct outcome watches(char **_) {
    int count = 0;
    while (count < MANY && inotify_init1(0) != -1)
        count++;
    /* The machine's root has 8192 by us, and 128 otherwise. */
    return many(count, 1024, "inotify instances");
}
static struct outcome queues(char **_) {
    int count = 0;
    char name[32];
    struct mq_attr size = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    for (; count < 4096; count++) {
        snprintf(name, sizeof name, "/attack-%d", count);
        if (mq_open(name, O_CREAT | O_RDWR, 0600, &size) == -1)
            break;
    }
    int error = errno;
    for (int made = 0; made < count; made++) {
        snprintf(name, sizeof name, "/attack-%d", made);
        mq_unlink(name);
    }
    errno = error;
    return many(count, 512, "message queues");
}
static void *idle(void *_) {
    pause();
    return NULL;
}
static struct outcome threads(char **_) {
    int count = 0;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (pthread_t thread; count < 100000; count++) {
        errno = pthread_create(&thread, &small, idle, NULL);
        if (errno)
            break;
    }
    return many(count, 4096, "threads");
}
static struct outcome pipes(char **_) {
    /* Buffers of pipes are the kernel's memory; they count as the instance's. */
    int count = 0, ends[2];
    while (count < 512 && pipe(ends) != -1) {
        if (fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) == -1)
            break;
        count++;
    }
    return many(count, 512, "MiB of pipes");
}
static struct outcome locked_memory(char **_) {
    size_t size = 64UL << 20;
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return TRY(mlock(block, size), "memory that cannot be taken back");
}

const struct attack resource_attacks[] = {
    {"files-open", files_open, 0},
    {"shared-memory", shared_memory, 0},
    {"device-folder", device_folder, 0},
    {"terminals", terminals, 0},
    {"inotify", watches, 0},
    {"message-queues", queues, 0},
    {"threads", threads, 0},
    {"pipes", pipes, 0},
    {"locked-memory", locked_memory, 0},
    {0},
};
