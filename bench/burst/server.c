/* server: a static HTTP server of one thread, on the socket it was handed (as systemd hands them over) or on port 8000.
 *
 * One program for the platform and for its peer, so that what differs is how it is started and how requests reach it.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define HANDED_FD 3
#define PORT 8000
/* More than one burst. */
#define BACKLOG 1024

static const char ANSWER[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\nconnection: close\r\n\r\nHello\n";

static int listening(void) {
    if (getenv("LISTEN_FDS")) return HANDED_FD;
    int fd = socket(AF_INET6, SOCK_STREAM, 0), yes = 1, no = 0;
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, BACKLOG)) exit(1);
    return fd;
}

int main(void) {
    /* The first process of a namespace dies of no signal that it does not ask for. */
    signal(SIGTERM, exit);
    int listener = listening(), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event events[128];
        int ready = epoll_wait(epoll, events, 128, -1);
        for (int at = 0; at < ready; at++) {
            int fd = events[at].data.fd;
            if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                event.data.fd = client;
                if (client >= 0) epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
                continue;
            }
            /* A request of the burst fits one segment. */
            char request[2048];
            ssize_t got = recv(fd, request, sizeof request, 0);
            if (got > 0) send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
            close(fd);
        }
    }
}
