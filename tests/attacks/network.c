/* Attacks over the network: the machine, the cloud it runs in, neighbours, and the link itself. */
#include "attack.h"

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

/* A refusal comes at once; what is silent for so long is dropped, which is one too. */
#define PATIENCE_MILLISECONDS 3000

static struct sockaddr_in at(const char *address, int port) {
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &place.sin_addr);
    return place;
}
/* Zero when connected, or the reason why not. */
static int connecting(const struct sockaddr *place, socklen_t length) {
    int end = socket(place->sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int error = 0;
    socklen_t size = sizeof error;
    if (end == -1)
        return errno;
    if (connect(end, place, length) == -1) {
        error = errno;
        if (error == EINPROGRESS) {
            struct pollfd waiting = {end, POLLOUT, 0};
            if (poll(&waiting, 1, PATIENCE_MILLISECONDS) == 1)
                getsockopt(end, SOL_SOCKET, SO_ERROR, &error, &size);
            else
                error = ETIMEDOUT;
        }
    }
    close(end);
    return error;
}
/* ADDRESS PORT */
static struct outcome tcp(char **arguments) {
    if (!arguments[0] || !arguments[1])
        return WON("no address was given");
    struct sockaddr_in place = at(arguments[0], atoi(arguments[1]));
    errno = connecting((struct sockaddr *)&place, sizeof place);
    return errno ? REFUSED() : WON("connected");
}
#define SCANNED 1100
/* ADDRESS: all of the low ports, and some above, at once: a kernel that answers each only so often is not slow then. */
static struct outcome scan(char **arguments) {
    struct pollfd ends[SCANNED] = {0};
    char detail[64];
    for (int index = 0; index < SCANNED; index++) {
        int port = index < 1024 ? index + 1 : 7000 + (index - 1024) * 13;
        struct sockaddr_in place = at(arguments[0], port);
        ends[index].fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        ends[index].events = POLLOUT;
        connect(ends[index].fd, (struct sockaddr *)&place, sizeof place);
    }
    for (int step = 0; step < PATIENCE_MILLISECONDS / 100; step++)
        usleep(100000);
    poll(ends, SCANNED, 0);
    for (int index = 0; index < SCANNED; index++) {
        int error = 0;
        socklen_t size = sizeof error;
        if (!ends[index].revents || index + 1 == 53)
            continue;
        getsockopt(ends[index].fd, SOL_SOCKET, SO_ERROR, &error, &size);
        /* A closed port that says so is a machine that answers. */
        if (error != EHOSTUNREACH) {
            snprintf(detail, sizeof detail, "port number %d: %s", index, error ? strerror(error) : "open");
            return WON(detail);
        }
    }
    return HELD("no port answers, open or closed");
}
/* ADDRESS */
static struct outcome tcp6(char **arguments) {
    struct sockaddr_in6 place = {.sin6_family = AF_INET6, .sin6_port = htons(80)};
    inet_pton(AF_INET6, arguments[0], &place.sin6_addr);
    errno = connecting((struct sockaddr *)&place, sizeof place);
    return errno ? REFUSED() : WON("connected");
}
/* NAME of a socket of the machine in the abstract namespace, which has no files. */
static struct outcome abstract(char **arguments) {
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    snprintf(place.sun_path + 1, sizeof place.sun_path - 1, "%s", arguments[0]);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arguments[0]);
    errno = connecting((struct sockaddr *)&place, length);
    return errno ? REFUSED() : WON("connected");
}
/* ADDRESS of a neighbour, to be taken for it. */
static struct outcome take_address(char **arguments) {
    struct sockaddr_in place = at(arguments[0], 0);
    int end = socket(AF_INET, SOCK_DGRAM, 0);
    return TRY(bind(end, (struct sockaddr *)&place, sizeof place), "bound");
}
static struct outcome take_address_unseen(char **arguments) {
    struct sockaddr_in place = at(arguments[0], 0);
    int end = socket(AF_INET, SOCK_DGRAM, 0), yes = 1;
    if (setsockopt(end, IPPROTO_IP, IP_TRANSPARENT, &yes, sizeof yes) == -1)
        return REFUSED();
    return TRY(bind(end, (struct sockaddr *)&place, sizeof place), "bound");
}
/* SOURCE TARGET: a datagram to port 9000 that says it came from SOURCE. The caller listens. */
static struct outcome forge(char **arguments) {
    int end = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (end == -1)
        return REFUSED();
    struct {
        struct iphdr ip;
        struct udphdr udp;
        char text[6];
    } packet = {.ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP}, .text = "forged"};
    struct sockaddr_in from = at(arguments[0], 0), to = at(arguments[1], 9000);
    packet.ip.saddr = from.sin_addr.s_addr;
    packet.ip.daddr = to.sin_addr.s_addr;
    packet.udp.source = packet.udp.dest = htons(9000);
    packet.udp.len = htons(sizeof packet.udp + sizeof packet.text);
    if (sendto(end, &packet, sizeof packet, 0, (struct sockaddr *)&to, sizeof to) == -1)
        return REFUSED();
    return HELD("sent");
}

static struct outcome raw(char **_) { return TRY(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), "sees and forges packets"); }
static struct outcome packets(char **_) { return TRY(socket(AF_PACKET, SOCK_RAW, 0), "sees and forges frames"); }
static struct outcome hypervisor(char **_) { return TRY(socket(AF_VSOCK, SOCK_STREAM, 0), "speaks to the hypervisor"); }
static struct outcome kernel_crypto(char **_) { return TRY(socket(AF_ALG, SOCK_SEQPACKET, 0), "kernel crypto"); }
static struct outcome bluetooth(char **_) { return TRY(socket(AF_BLUETOOTH, SOCK_RAW, 1), "a radio"); }
static struct outcome firewall(char **_) {
    int end = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    if (end == -1)
        return REFUSED();
    /* A batch that begins and makes the table "attack": 10 is nf_tables, 0 is a new table. */
    struct {
        struct nlmsghdr head;
        uint8_t family, version;
        uint16_t resource;
    } begin = {{sizeof begin, 0x10, NLM_F_REQUEST | NLM_F_ACK, 0, 0}, 0, 0, htons(10)};
    if (send(end, &begin, sizeof begin, 0) == -1)
        return REFUSED();
    struct {
        struct nlmsghdr head;
        int error;
        struct nlmsghdr of;
    } answer = {0};
    struct pollfd waiting = {end, POLLIN, 0};
    if (poll(&waiting, 1, PATIENCE_MILLISECONDS) != 1 || recv(end, &answer, sizeof answer, 0) == -1)
        return HELD("no answer");
    errno = -answer.error;
    return errno ? REFUSED() : WON("changes the firewall");
}
/* One change by rtnetlink, with the kernel's answer. */
static struct outcome route_change(struct nlmsghdr *request) {
    int end = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (end == -1)
        return REFUSED();
    request->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    if (send(end, request, request->nlmsg_len, 0) == -1)
        return REFUSED();
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
    } answer = {0};
    if (recv(end, &answer, sizeof answer, 0) == -1)
        return REFUSED();
    errno = -answer.error.error;
    return errno ? REFUSED() : WON("changed");
}
static struct outcome link_down(char **_) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg link;
    } request = {{sizeof request, RTM_NEWLINK, 0, 0, 0}, {.ifi_index = 1, .ifi_flags = IFF_UP, .ifi_change = IFF_UP}};
    return route_change(&request.head);
}
static struct outcome address_add(char **_) {
    struct {
        struct nlmsghdr head;
        struct ifaddrmsg address;
        struct rtattr attribute;
        struct in_addr value;
    } request = {{sizeof request, RTM_NEWADDR, NLM_F_CREATE, 0, 0},
                 {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = 1},
                 {sizeof(struct rtattr) + 4, IFA_LOCAL},
                 {htonl(0x7f090909)}};
    return route_change(&request.head);
}
static struct outcome promiscuous(char **_) {
    int end = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = {.ifr_name = "lo"};
    if (ioctl(end, SIOCGIFFLAGS, &request) == -1)
        return REFUSED();
    request.ifr_flags |= IFF_PROMISC;
    if (ioctl(end, SIOCSIFFLAGS, &request) == -1)
        return REFUSED();
    request.ifr_flags &= ~IFF_PROMISC;
    ioctl(end, SIOCSIFFLAGS, &request);
    return WON("hears everybody");
}

const struct attack network_attacks[] = {
    {"tcp", tcp, 1},
    {"tcp6", tcp6, 1},
    {"scan", scan, 1},
    {"abstract-socket", abstract, 1},
    {"take-address", take_address, 1},
    {"take-address-unseen", take_address_unseen, 1},
    {"forge", forge, 1},
    {"raw-socket", raw, 0},
    {"packet-socket", packets, 0},
    {"vsock", hypervisor, 0},
    {"kernel-crypto", kernel_crypto, 0},
    {"bluetooth", bluetooth, 0},
    {"firewall", firewall, 0},
    {"link-change", link_down, 0},
    {"address-add", address_add, 0},
    {"promiscuous", promiscuous, 0},
    {0},
};
