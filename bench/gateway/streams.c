/* streams ADDRESS PORT COUNT TOKENS FILE: COUNT connections with the request in FILE on each, all streamed at once, one thread.
 *
 * Writes `begun` when each has its first event, and at the end one line of JSON: how many streams ended with `[DONE]` and
 * all their events, and how long after it was written (between two `@`, as engine.c does) an event was here, in
 * microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Nothing measured is silent for so long. */
#define PATIENCE_MS 20000
#define REQUEST_BYTES 4096

struct stream {
    int fd, events, in_number, matched;
    long long number;
};

static const char DONE[] = "[DONE]";

static long long now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

int main(int count_of_arguments, char **arguments) {
    if (count_of_arguments != 6) {
        fprintf(stderr, "usage: streams ADDRESS PORT COUNT TOKENS FILE\n");
        return 2;
    }
    int count = atoi(arguments[3]), tokens = atoi(arguments[4]), left = count, whole = 0, begun = 0;
    char request[REQUEST_BYTES];
    FILE *file = fopen(arguments[5], "r");
    if (!file) return 2;
    size_t length = fread(request, 1, sizeof request, file);
    double *delays = malloc(sizeof *delays * count * tokens);
    size_t known = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2]))};
    if (inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1) return 2;
    struct stream *streams = calloc(count, sizeof *streams);
    int epoll = epoll_create1(0);
    for (int at = 0; at < count; at++) {
        int fd = streams[at].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) || send(fd, request, length, 0) != (ssize_t)length) {
            perror("streams");
            return 1;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &streams[at]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
    while (left > 0) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, PATIENCE_MS);
        if (ready <= 0) break;
        for (int at = 0; at < ready; at++) {
            struct stream *it = events[at].data.ptr;
            char data[16384];
            ssize_t got = recv(it->fd, data, sizeof data, 0);
            long long now = now_ns();
            int over = got <= 0;
            for (ssize_t place = 0; place < got; place++) {
                char letter = data[place];
                if (letter == '@') {
                    if (it->in_number && known < (size_t)count * tokens) {
                        delays[known++] = (now - it->number) / 1e3;
                        if (it->events++ == 0 && ++begun == count) {
                            puts("begun");
                            fflush(stdout);
                        }
                    }
                    it->in_number = !it->in_number;
                    it->number = 0;
                } else if (it->in_number) {
                    it->number = it->number * 10 + (letter - '0');
                }
                it->matched = letter == DONE[it->matched] ? it->matched + 1 : letter == DONE[0];
                if (it->matched == sizeof DONE - 1) {
                    whole += it->events == tokens;
                    over = 1;
                    it->matched = 0;
                }
            }
            if (over) {
                close(it->fd);
                left--;
            }
        }
    }
    qsort(delays, known, sizeof *delays, by_size);
    if (known == 0) return 1;
    printf("{\"whole\": %d, \"events\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"most_us\": %.1f}\n", whole, known,
           delays[known / 2], delays[known * 99 / 100], delays[known - 1]);
    return 0;
}
