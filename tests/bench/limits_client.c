/* The other side of the limits that bench/run.py and bench/stack.py measure: only bytes.
 *
 *   limits_client MODE ADDRESS PORT DEPTH SECONDS [CONNECTIONS]
 *
 * tcp-rr, udp-rr   messages of 128 bytes, DEPTH in flight on each of CONNECTIONS, each answered with
 *                  128 bytes
 * tcp-send         as many bytes as possible, in pieces of 1 MiB
 * tcp-receive      read as many bytes as come
 * tcp-open         connections are opened, and closed when the server has closed them
 * tcp-idle         CONNECTIONS are opened and held until the input ends
 * udp-send         datagrams cut by the kernel from 44 KiB (UDP_SEGMENT)
 * Prints one line: messages seconds bytes
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define MESSAGE 128
#define PIECE (1 << 20)
#define DATAGRAM 1472
#define SUPER (DATAGRAM * 30)
#define CONNECTIONS_MAX 20000

static char buffer[PIECE];
static struct sockaddr_in to = {.sin_family = AF_INET};
static unsigned long long messages, bytes;
static double until;
static int stream;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int connected(void)
{
    int one = 1, fd = socket(AF_INET, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    if (stream)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* One connection: without poll, which would cost as much as the rest. */
static void request_one(int depth)
{
    int fd = connected(), i;
    ssize_t n;
    for (i = 0; i < depth; i++)
        if (send(fd, buffer, MESSAGE, 0) != MESSAGE)
            die("send");
    while (now() < until) {
        n = recv(fd, buffer, stream ? PIECE : MESSAGE, 0);
        if (n <= 0)
            die("recv");
        bytes += n;
        for (; messages < bytes / MESSAGE; messages++)
            if (send(fd, buffer, MESSAGE, 0) != MESSAGE)
                die("send");
    }
}

static void request_many(int depth, int count)
{
    static struct pollfd each[CONNECTIONS_MAX];
    static unsigned long long got[CONNECTIONS_MAX], answered[CONNECTIONS_MAX];
    int i, j;
    ssize_t n;
    for (i = 0; i < count; i++) {
        each[i].fd = connected();
        each[i].events = POLLIN;
    }
    for (i = 0; i < count; i++)
        for (j = 0; j < depth; j++)
            if (send(each[i].fd, buffer, MESSAGE, 0) != MESSAGE)
                die("send");
    while (now() < until) {
        if (poll(each, count, 1000) < 0)
            die("poll");
        for (i = 0; i < count; i++) {
            if (!each[i].revents)
                continue;
            if ((n = recv(each[i].fd, buffer, PIECE, 0)) <= 0)
                die("recv");
            got[i] += n;
            for (; answered[i] < got[i] / MESSAGE; answered[i]++, messages++)
                if (send(each[i].fd, buffer, MESSAGE, 0) != MESSAGE)
                    die("send");
        }
    }
    bytes = messages * MESSAGE;
}

static void receive(void)
{
    int fd = connected();
    ssize_t n;
    while (now() < until) {
        if ((n = recv(fd, buffer, PIECE, 0)) <= 0)
            die("recv");
        bytes += n;
    }
}

static void send_all(void)
{
    int fd = connected(), size = DATAGRAM;
    ssize_t n;
    if (!stream && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size))
        die("UDP_SEGMENT");
    while (now() < until) {
        if ((n = send(fd, buffer, stream ? PIECE : SUPER, 0)) < 0)
            die("send");
        bytes += n;
        messages++;
    }
}

/* The server closes first, and keeps TIME-WAIT: our ports are free again at once. */
static void open_and_close(void)
{
    while (now() < until) {
        int fd = connected();
        if (recv(fd, buffer, 1, 0) != 0)
            die("recv");
        close(fd);
        messages++;
    }
}

static void hold(int count)
{
    struct rlimit files;
    int i;
    if (getrlimit(RLIMIT_NOFILE, &files))
        die("getrlimit");
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files))
        die("setrlimit");
    for (i = 0; i < count; i++, messages++)
        connected();
    printf("open\n");
    fflush(stdout);
    while (read(0, buffer, 1) > 0)
        ;
}

int main(int argc, char **argv)
{
    int depth, count;
    double start;

    if (argc < 6) {
        fprintf(stderr, "usage: limits_client MODE ADDRESS PORT DEPTH SECONDS [CONNECTIONS]\n");
        return 2;
    }
    stream = !strncmp(argv[1], "tcp", 3);
    to.sin_port = htons(atoi(argv[3]));
    if (!inet_aton(argv[2], &to.sin_addr))
        die("address");
    depth = atoi(argv[4]);
    count = argc > 6 ? atoi(argv[6]) : 1;
    if (count < 1 || count > CONNECTIONS_MAX)
        return 2;
    start = now();
    until = start + atof(argv[5]);
    if (!strcmp(argv[1] + 4, "rr"))
        count == 1 ? request_one(depth) : request_many(depth, count);
    else if (!strcmp(argv[1], "tcp-receive"))
        receive();
    else if (!strcmp(argv[1], "tcp-open"))
        open_and_close();
    else if (!strcmp(argv[1], "tcp-idle"))
        hold(count);
    else
        send_all();
    printf("%llu %.6f %llu\n", messages, now() - start, bytes);
    return 0;
}
