/* client PORT HOST COUNT: COUNT connections at once, one request on each, from one thread.
 *
 * Prints a line for each: the milliseconds from the start of its connection to the first byte of its answer, or why it
 * was lost. An answer counts when its status is 200 and it ends as its length says or with the connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* More than any of the programs measured takes to start; who is not answered by then is lost. */
#define DEADLINE_MS 60000.0
/* The answers measured are far smaller. */
#define ANSWER_BYTES 4096

struct call {
    int fd, sent, done;
    double started, first;
    size_t got;
    char answer[ANSWER_BYTES];
};

static double now_ms(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e3 + at.tv_nsec / 1e6;
}

static void end(struct call *call, const char *lost, int *left) {
    if (lost) printf("lost: %s\n", lost);
    else printf("%.3f\n", call->first - call->started);
    close(call->fd);
    call->done = 1;
    --*left;
}

int main(int count_of_arguments, char **arguments) {
    if (count_of_arguments != 4) {
        fprintf(stderr, "usage: client PORT HOST COUNT\n");
        return 2;
    }
    int count = atoi(arguments[3]), left = count, epoll = epoll_create1(0);
    char request[512];
    int length = snprintf(request, sizeof request, "GET / HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n", arguments[2]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    struct call *calls = calloc(count, sizeof *calls);
    /* Sockets are made before the first connection starts: the burst is of connections. */
    for (int at = 0; at < count; at++) calls[at].fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    double begin = now_ms();
    for (int at = 0; at < count; at++) {
        struct call *call = &calls[at];
        call->started = now_ms();
        if (connect(call->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
            end(call, strerror(errno), &left);
            continue;
        }
        struct epoll_event event = {.events = EPOLLOUT | EPOLLIN, .data.ptr = call};
        epoll_ctl(epoll, EPOLL_CTL_ADD, call->fd, &event);
    }
    while (left > 0) {
        double rest = begin + DEADLINE_MS - now_ms();
        struct epoll_event events[128];
        int ready = rest > 0 ? epoll_wait(epoll, events, 128, (int)rest + 1) : 0;
        if (ready <= 0) {
            for (int at = 0; at < count; at++)
                if (!calls[at].done) end(&calls[at], "no answer in time", &left);
            break;
        }
        for (int at = 0; at < ready; at++) {
            struct call *call = events[at].data.ptr;
            if (call->done) continue;
            if (!call->sent && events[at].events & (EPOLLOUT | EPOLLERR)) {
                if (send(call->fd, request, length, MSG_NOSIGNAL) != length) {
                    end(call, strerror(errno), &left);
                    continue;
                }
                call->sent = 1;
                struct epoll_event event = {.events = EPOLLIN, .data.ptr = call};
                epoll_ctl(epoll, EPOLL_CTL_MOD, call->fd, &event);
            }
            if (!(events[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            for (;;) {
                ssize_t more = recv(call->fd, call->answer + call->got, ANSWER_BYTES - 1 - call->got, 0);
                if (more < 0 && errno == EAGAIN) break;
                if (more < 0) { end(call, strerror(errno), &left); break; }
                if (more > 0) {
                    if (!call->got) call->first = now_ms();
                    call->got += more;
                    if (call->got == ANSWER_BYTES - 1) { end(call, "the answer is too long", &left); break; }
                    continue;
                }
                char *body = strstr(call->answer, "\r\n\r\n");
                char *stated = strcasestr(call->answer, "content-length:");
                if (!call->got) end(call, "closed without an answer", &left);
                else if (strncmp(call->answer, "HTTP/1.1 200", 12)) {
                    call->answer[strcspn(call->answer, "\r\n")] = 0;
                    end(call, call->answer, &left);
                } else if (!body || (stated && call->got - (body + 4 - call->answer) != (size_t)atoi(stated + 15)))
                    end(call, "cut off", &left);
                else end(call, NULL, &left);
                break;
            }
        }
    }
    return 0;
}
