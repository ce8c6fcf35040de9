/* attacks NAME [ARGUMENTS…] | attacks --all [BUT…]: tries to break out of where it runs, and says what became of it.
 *
 * Each attack runs in a process of its own, so that one that is killed is told as such. A line of output is the name, the
 * outcome (refused ERRNO, held, WON, died SIGNAL) and a detail. The caller knows which outcome is right. */
#include "attack.h"

#include <signal.h>
#include <sys/wait.h>

/* An attack that hangs is a program that is broken. */
#define SECONDS_MAX 20

static const struct attack *const tables[] = {kernel_attacks, file_attacks, network_attacks, resource_attacks};

static void try(const struct attack *attack, char **arguments) {
    fflush(stdout);
    pid_t child = fork();
    if (child == -1) {
        printf("%s\tdied\tcannot fork: %s\n", attack->name, strerror(errno));
        return;
    }
    if (child == 0) {
        alarm(SECONDS_MAX);
        struct outcome outcome = attack->run(arguments);
        if (outcome.kind == refused)
            printf("%s\trefused %s\t\n", attack->name, strerrorname_np(outcome.error));
        else
            printf("%s\t%s\t%s\n", attack->name, outcome.kind == held ? "held" : "WON", outcome.detail);
        fflush(stdout);
        _exit(0);
    }
    int status = 0;
    while (waitpid(child, &status, 0) == -1 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        printf("%s\tdied SIG%s\t\n", attack->name, sigabbrev_np(WTERMSIG(status)));
}

static int is_named(char **words, const char *name) {
    while (*words && strcmp(*words, name))
        words++;
    return *words != NULL;
}

int main(int count, char **words) {
    int all = count >= 2 && !strcmp(words[1], "--all");
    int found = 0;
    for (size_t table = 0; count >= 2 && table < sizeof tables / sizeof *tables; table++)
        for (const struct attack *attack = tables[table]; attack->name; attack++)
            if (all ? !attack->arguments && !is_named(words + 2, attack->name) : !strcmp(attack->name, words[1])) {
                try(attack, words + 2);
                found = 1;
            }
    if (!found)
        fprintf(stderr, "usage: attacks NAME [ARGUMENTS...] | attacks --all [BUT...]\n");
    return !found;
}
