/* engine: answers as an engine does, and computes nothing. One thread, on the port that `PORT` says.
 *
 * A GET is answered with a list of no models, a POST with one chat completion. A POST whose body says `"stream":true` is
 * answered with as many events as `"max_tokens":` says, one every INTERVAL_MS, each with the time at which it was written
 * between two `@` (nanoseconds of the monotonic clock), then with what it cost and `[DONE]`.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 4096
#define CONNECTIONS 8192
/* A question of these benchmarks is far smaller. */
#define REQUEST_BYTES 4096
#define INTERVAL_MS 50
#define TICK_NS 1000000

static const char COMPLETION[] =
    "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"mock\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The mistral is a strong, cold wind that "
    "blows from the north through the valley of the Rhone.\"},\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":21,\"total_tokens\":33}}";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[]}";
static const char STREAM[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

struct connection {
    size_t got;
    /* Of a stream: events that are still to come, and when the next one is due. */
    int left;
    long long due;
    char request[REQUEST_BYTES];
};

static struct connection *of[CONNECTIONS];
static int highest;

static long long now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void whole(int fd, const char *body) {
    char out[2048];
    int length = snprintf(out, sizeof out,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
    send(fd, out, length, MSG_NOSIGNAL);
}

static void chunk(int fd, const char *data, int length) {
    char out[1024];
    int all = snprintf(out, sizeof out, "%x\r\n%.*s\r\n", length, length, data);
    send(fd, out, all, MSG_NOSIGNAL);
}

static void event(int fd) {
    char data[512];
    int length = snprintf(data, sizeof data,
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@%lld@\"},\"finish_reason\":null}]}\n\n",
        now_ns());
    chunk(fd, data, length);
}

static void last(int fd) {
    static const char cost[] =
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"mock\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":100,\"total_tokens\":112}}"
        "\n\ndata: [DONE]\n\n";
    chunk(fd, cost, sizeof cost - 1);
    send(fd, "0\r\n\r\n", 5, MSG_NOSIGNAL);
}

static int number(const char *text, const char *name, int otherwise) {
    const char *found = strstr(text, name);
    return found ? atoi(found + strlen(name)) : otherwise;
}

/* Answers what has come whole; what is of the next request stays. */
static void answer(int fd, struct connection *it) {
    while (it->left == 0) {
        it->request[it->got] = 0;
        char *end = strstr(it->request, "\r\n\r\n");
        if (!end) return;
        *end = 0;
        const char *length = strcasestr(it->request, "\r\ncontent-length:");
        size_t body = length ? strtoul(length + 17, NULL, 10) : 0, head = end + 4 - it->request;
        *end = '\r';
        if (head + body >= REQUEST_BYTES) exit(1);
        if (it->got < head + body) return;
        char kept = it->request[head + body];
        it->request[head + body] = 0;
        const char *asked = it->request + head;
        if (it->request[0] == 'G') {
            whole(fd, MODELS);
        } else if (strstr(asked, "\"stream\":true")) {
            send(fd, STREAM, sizeof STREAM - 1, MSG_NOSIGNAL);
            it->left = number(asked, "\"max_tokens\":", 1);
            it->due = now_ns();
        } else {
            whole(fd, COMPLETION);
        }
        it->request[head + body] = kept;
        it->got -= head + body;
        memmove(it->request, it->request + head + body, it->got);
    }
}

static void over(int fd) {
    close(fd);
    free(of[fd]);
    of[fd] = NULL;
}

static void tick(void) {
    long long now = now_ns();
    for (int fd = 0; fd <= highest; fd++) {
        struct connection *it = of[fd];
        if (!it || it->left == 0 || it->due > now) continue;
        event(fd);
        it->due += INTERVAL_MS * 1000000LL;
        if (--it->left == 0) {
            last(fd);
            answer(fd, it);
        }
    }
}

int main(void) {
    /* The first process of a namespace dies of no signal that it does not ask for. */
    signal(SIGTERM, exit);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1, epoll = epoll_create1(0);
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 0)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) exit(1);
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {.it_interval.tv_nsec = TICK_NS, .it_value.tv_nsec = TICK_NS};
    timerfd_settime(timer, 0, &every, NULL);
    int own[] = {listener, timer};
    for (int at = 0; at < 2; at++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = own[at]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, own[at], &event);
    }
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int at = 0; at < ready; at++) {
            int fd = events[at].data.fd;
            if (fd == timer) {
                unsigned long long times;
                if (read(timer, &times, sizeof times) > 0) tick();
            } else if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0) continue;
                if (client >= CONNECTIONS) {
                    close(client);
                    continue;
                }
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                of[client] = calloc(1, sizeof **of);
                if (client > highest) highest = client;
                struct epoll_event event = {.events = EPOLLIN, .data.fd = client};
                epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
            } else if (of[fd]) {
                struct connection *it = of[fd];
                ssize_t got = recv(fd, it->request + it->got, REQUEST_BYTES - 1 - it->got, 0);
                if (got <= 0) {
                    over(fd);
                    continue;
                }
                it->got += got;
                answer(fd, it);
            }
        }
    }
}
