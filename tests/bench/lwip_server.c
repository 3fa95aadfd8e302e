/* The services of stack_server.py on lwIP, a small TCP/IP stack in C, as Debian has it.
 *
 *   lwip_server TAP ADDRESS
 *
 * Ports: 9000 echo, 9001 sink, 9002 source, 9003 closes at once. The TAP has no offload, which lwIP
 * does not know. It ends with its input.
 */
#include <lwip/ip_addr.h>
#include <lwip/netif.h>
#include <lwip/tcp.h>
#include <lwip/tcpip.h>
#include <netif/tapif.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PIECE 0xffff

static char text[PIECE];
static sem_t running;

static err_t ended(struct tcp_pcb *pcb)
{
    tcp_recv(pcb, NULL);
    tcp_sent(pcb, NULL);
    return tcp_close(pcb);
}

static err_t echo(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t error)
{
    struct pbuf *part;
    if (!p)
        return ended(pcb);
    for (part = p; part; part = part->next)
        if (tcp_write(pcb, part->payload, part->len, TCP_WRITE_FLAG_COPY) != ERR_OK)
            return ERR_MEM; /* it is given to us again */
    tcp_recved(pcb, p->tot_len);
    pbuf_free(p);
    return tcp_output(pcb);
}

static err_t sink(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t error)
{
    if (!p)
        return ended(pcb);
    tcp_recved(pcb, p->tot_len);
    pbuf_free(p);
    return ERR_OK;
}

static err_t more(void *arg, struct tcp_pcb *pcb, u16_t length)
{
    u16_t room = tcp_sndbuf(pcb);
    if (room && tcp_write(pcb, text, room, 0) == ERR_OK)
        return tcp_output(pcb);
    return ERR_OK;
}

static err_t accept_echo(void *arg, struct tcp_pcb *pcb, err_t error)
{
    tcp_nagle_disable(pcb);
    tcp_recv(pcb, echo);
    return ERR_OK;
}

static err_t accept_sink(void *arg, struct tcp_pcb *pcb, err_t error)
{
    tcp_recv(pcb, sink);
    return ERR_OK;
}

static err_t accept_source(void *arg, struct tcp_pcb *pcb, err_t error)
{
    tcp_recv(pcb, sink);
    tcp_sent(pcb, more);
    return more(NULL, pcb, 0);
}

static err_t accept_close(void *arg, struct tcp_pcb *pcb, err_t error)
{
    return ended(pcb);
}

static void listen_on(u16_t port, tcp_accept_fn accept)
{
    struct tcp_pcb *pcb = tcp_new();
    if (!pcb || tcp_bind(pcb, IP4_ADDR_ANY, port) != ERR_OK || !(pcb = tcp_listen(pcb)))
        exit(1);
    tcp_accept(pcb, accept);
}

static void started(void *arg)
{
    sem_post(&running);
}

int main(int argc, char **argv)
{
    static struct netif netif;
    ip4_addr_t address, mask, gateway;
    char byte;

    if (argc != 3 || !ip4addr_aton(argv[2], &address))
        return 2;
    setenv("PRECONFIGURED_TAPIF", argv[1], 1);
    sem_init(&running, 0, 0);
    tcpip_init(started, NULL);
    sem_wait(&running);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    ip4_addr_set_zero(&gateway);
    LOCK_TCPIP_CORE();
    if (!netif_add(&netif, &address, &mask, &gateway, NULL, tapif_init, tcpip_input))
        return 1;
    netif_set_default(&netif);
    netif_set_up(&netif);
    netif_set_link_up(&netif);
    listen_on(9000, accept_echo);
    listen_on(9001, accept_sink);
    listen_on(9002, accept_source);
    listen_on(9003, accept_close);
    UNLOCK_TCPIP_CORE();
    printf("ready\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
