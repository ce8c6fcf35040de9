/* What every attack shares: a name, a body, and how it says what became of it.
 *
 * An attack returns REFUSED(errno) when the kernel or the sandbox said no, HELD when it was let do something that turned
 * out to be worth nothing, and WON with a word about the damage when it got what it wanted. It must be harmless where it
 * wins, because the positive control runs it outside of any sandbox. */
#ifndef ATTACK_H
#define ATTACK_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct outcome {
    enum { refused, held, won } kind;
    int error;
    char detail[200];
};

struct attack {
    const char *name;
    struct outcome (*run)(char **arguments);
    /* Whether it needs arguments, such as an address; those without run in one go. */
    int arguments;
};

static inline struct outcome ended(int kind, int error, const char *detail) {
    struct outcome outcome = {.kind = kind, .error = error};
    strncat(outcome.detail, detail ? detail : "", sizeof outcome.detail - 1);
    return outcome;
}

#define REFUSED() ended(refused, errno, NULL)
#define HELD(detail) ended(held, 0, detail)
#define WON(detail) ended(won, 0, detail)
/* The outcome of a call that must fail. */
#define TRY(call, damage) ((call) == -1 ? REFUSED() : WON(damage))

extern const struct attack kernel_attacks[], file_attacks[], network_attacks[], resource_attacks[];

#endif
