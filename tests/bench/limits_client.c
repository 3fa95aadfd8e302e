/* The other side of the limits that bench/run.py measures: no RPC, no NFS, only bytes.
 *
 *   limits_client MODE ADDRESS PORT DEPTH SECONDS
 *
 * tcp-rr, udp-rr   messages of 128 bytes, DEPTH in flight, each answered with 128 bytes
 * tcp-send         as many bytes as possible, in pieces of 1 MiB
 * tcp-receive      read as many bytes as come
 * udp-send         datagrams cut by the kernel from 44 KiB (UDP_SEGMENT)
 * Prints one line: messages seconds bytes
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

int main(int argc, char **argv)
{
    static char buffer[PIECE];
    struct sockaddr_in to = {.sin_family = AF_INET};
    unsigned long long messages = 0, bytes = 0;
    int fd, depth, one = 1, size = DATAGRAM, stream, i;
    double start, until;
    ssize_t n;

    if (argc != 6) {
        fprintf(stderr, "usage: limits_client MODE ADDRESS PORT DEPTH SECONDS\n");
        return 2;
    }
    stream = !strncmp(argv[1], "tcp", 3);
    to.sin_port = htons(atoi(argv[3]));
    if (!inet_aton(argv[2], &to.sin_addr))
        die("address");
    depth = atoi(argv[4]);
    fd = socket(AF_INET, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    if (stream)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    start = now();
    until = start + atof(argv[5]);
    if (!strcmp(argv[1] + 4, "rr")) {
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
    } else if (!strcmp(argv[1], "tcp-receive")) {
        while (now() < until) {
            if ((n = recv(fd, buffer, PIECE, 0)) <= 0)
                die("recv");
            bytes += n;
        }
    } else {
        if (!stream && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size))
            die("UDP_SEGMENT");
        while (now() < until) {
            if ((n = send(fd, buffer, stream ? PIECE : SUPER, 0)) < 0)
                die("send");
            bytes += n;
            messages++;
        }
    }
    printf("%llu %.6f %llu\n", messages, now() - start, bytes);
    return 0;
}
