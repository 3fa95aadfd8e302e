/* A load generator on libnfs' raw interface: one kind of call, many in flight, counted.
 *
 *   nfs_client SERVER EXPORT OPERATION DEPTH SECONDS [CONNECTIONS [SERVER_PID]]
 *
 * OPERATION: null getattr lookup read write read4k readdirplus create
 * Prints one line: calls seconds bytes server_cpu_seconds
 *
 * read and write go through a file of FILE_BYTES in calls of 1 MiB (read reads what write or the
 * preparation has written); read4k reads 4 KiB at random places of it; readdirplus lists the whole
 * directory "many" (one count is one listing); create makes a file and writes 4 KiB, FILE_SYNC
 * (one count is both calls).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <nfsc/libnfs.h>
#include <nfsc/libnfs-raw.h>
#include <nfsc/libnfs-raw-mount.h>
#include <nfsc/libnfs-raw-nfs.h>

#define MIB (1 << 20)
#define FILE_BYTES (256ull * MIB)
#define SMALL 4096
#define SLOTS_MAX 1024
#define MANY 1000

struct slot {
    struct rpc_context *rpc;
    int number;
    struct nfs_fh3 file; /* create: the file that is being written */
    uint64_t cookie;     /* readdirplus */
    char verifier[NFS3_COOKIEVERFSIZE];
};

static struct slot slots[SLOTS_MAX];
static struct nfs_fh3 root, file, many;
static char *megabyte;
static double until;
static uint64_t calls, bytes, serial, in_flight;
static void (*launch)(struct slot *);

static void die(const char *what)
{
    fprintf(stderr, "nfs_client: %s\n", what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* User and system time of a process, in seconds. */
static double cpu_of(int pid)
{
    char path[64], line[1024], *p;
    unsigned long user, system;
    FILE *f;
    if (!pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    f = fopen(path, "r");
    if (!f || !fgets(line, sizeof line, f))
        die("no such server process");
    fclose(f);
    p = strrchr(line, ')');
    if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        die("cannot read the server's times");
    return (double)(user + system) / sysconf(_SC_CLK_TCK);
}

static void keep(struct nfs_fh3 *to, const struct nfs_fh3 *from)
{
    to->data.data_val = realloc(to->data.data_val, from->data.data_len);
    to->data.data_len = from->data.data_len;
    memcpy(to->data.data_val, from->data.data_val, from->data.data_len);
}

/* One call is done: count it, and send the next one. */
static void again(struct slot *slot, uint64_t count)
{
    calls += count;
    if (now() < until)
        launch(slot);
    else
        in_flight--;
}

static void check(int status, int nfs_status, const char *what)
{
    if (status != RPC_STATUS_SUCCESS || nfs_status != NFS3_OK) {
        fprintf(stderr, "nfs_client: %s: rpc %d, nfs %d\n", what, status, nfs_status);
        exit(1);
    }
}

static void sent(int rc)
{
    if (rc)
        die("cannot queue a call");
}

/* --- the operations --------------------------------------------------------------- */

static void null_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    (void)rpc, (void)data;
    check(status, 0, "NULL");
    again(slot, 1);
}

static void launch_null(struct slot *s)
{
    sent(rpc_nfs3_null_async(s->rpc, null_done, s));
}

static void getattr_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    (void)rpc;
    check(status, data ? ((GETATTR3res *)data)->status : 0, "GETATTR");
    again(slot, 1);
}

static void launch_getattr(struct slot *s)
{
    GETATTR3args args = {.object = file};
    sent(rpc_nfs3_getattr_async(s->rpc, getattr_done, &args, s));
}

static void lookup_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    (void)rpc;
    check(status, data ? ((LOOKUP3res *)data)->status : 0, "LOOKUP");
    again(slot, 1);
}

static void launch_lookup(struct slot *s)
{
    LOOKUP3args args = {.what = {.dir = root, .name = "bench.data"}};
    sent(rpc_nfs3_lookup_async(s->rpc, lookup_done, &args, s));
}

static void read_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    READ3res *res = data;
    (void)rpc;
    check(status, res ? res->status : 0, "READ");
    bytes += res->READ3res_u.resok.count;
    again(slot, 1);
}

static void launch_read(struct slot *s)
{
    READ3args args = {.file = file, .offset = serial++ * MIB % FILE_BYTES, .count = MIB};
    sent(rpc_nfs3_read_async(s->rpc, read_done, &args, s));
}

static void launch_read4k(struct slot *s)
{
    READ3args args = {.file = file, .offset = (uint64_t)random() % (FILE_BYTES / SMALL) * SMALL,
                      .count = SMALL};
    sent(rpc_nfs3_read_async(s->rpc, read_done, &args, s));
}

static void write_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    WRITE3res *res = data;
    (void)rpc;
    check(status, res ? res->status : 0, "WRITE");
    bytes += res->WRITE3res_u.resok.count;
    again(slot, 1);
}

static void send_write(struct slot *s, struct nfs_fh3 *to, uint64_t offset, uint32_t count,
                       stable_how stable)
{
    WRITE3args args = {.file = *to, .offset = offset, .count = count, .stable = stable,
                       .data = {.data_len = count, .data_val = megabyte}};
    sent(rpc_nfs3_write_async(s->rpc, write_done, &args, s));
}

static void launch_write(struct slot *s)
{
    send_write(s, &file, serial++ * MIB % FILE_BYTES, MIB, UNSTABLE);
}

static void launch_readdirplus(struct slot *s);

static void readdirplus_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    READDIRPLUS3res *res = data;
    struct slot *s = slot;
    struct entryplus3 *entry;
    (void)rpc;
    check(status, res ? res->status : 0, "READDIRPLUS");
    for (entry = res->READDIRPLUS3res_u.resok.reply.entries; entry; entry = entry->nextentry)
        s->cookie = entry->cookie;
    memcpy(s->verifier, res->READDIRPLUS3res_u.resok.cookieverf, sizeof s->verifier);
    if (res->READDIRPLUS3res_u.resok.reply.eof) {
        s->cookie = 0;
        memset(s->verifier, 0, sizeof s->verifier);
        again(slot, 1);
    } else {
        launch_readdirplus(s);
    }
}

static void launch_readdirplus(struct slot *s)
{
    READDIRPLUS3args args = {.dir = many, .cookie = s->cookie, .dircount = 65536, .maxcount = MIB / 2};
    memcpy(args.cookieverf, s->verifier, sizeof args.cookieverf);
    sent(rpc_nfs3_readdirplus_async(s->rpc, readdirplus_done, &args, s));
}

static void create_done(struct rpc_context *rpc, int status, void *data, void *slot)
{
    CREATE3res *res = data;
    struct slot *s = slot;
    (void)rpc;
    check(status, res ? res->status : 0, "CREATE");
    keep(&s->file, &res->CREATE3res_u.resok.obj.post_op_fh3_u.handle);
    send_write(s, &s->file, 0, SMALL, FILE_SYNC);
}

static void send_create(struct slot *s, struct nfs_fh3 *dir, char *name, rpc_cb done)
{
    CREATE3args args = {.where = {.dir = *dir, .name = name}, .how = {.mode = UNCHECKED}};
    sent(rpc_nfs3_create_async(s->rpc, done, &args, s));
}

static void launch_create(struct slot *s)
{
    char name[64];
    snprintf(name, sizeof name, "c%d.%llu", (int)getpid(), (unsigned long long)serial++);
    send_create(s, &root, name, create_done);
}

/* --- preparation --------------------------------------------------------------------- */

static int waiting;

static void turn(struct rpc_context **rpcs, int count)
{
    static struct pollfd fds[SLOTS_MAX];
    int i;
    for (i = 0; i < count; i++) {
        fds[i].fd = rpc_get_fd(rpcs[i]);
        fds[i].events = rpc_which_events(rpcs[i]);
    }
    if (poll(fds, count, 10000) <= 0)
        die("no answer for 10 seconds");
    for (i = 0; i < count; i++)
        if (fds[i].revents && rpc_service(rpcs[i], fds[i].revents) < 0)
            die(rpc_get_error(rpcs[i]));
}

static void connected(struct rpc_context *rpc, int status, void *data, void *private)
{
    (void)data, (void)private;
    if (status != RPC_STATUS_SUCCESS)
        die(rpc_get_error(rpc));
    waiting = 0;
}

static struct rpc_context *connect_to(const char *server, int program)
{
    struct rpc_context *rpc = rpc_init_context();
    waiting = 1;
    if (!rpc || rpc_connect_program_async(rpc, server, program, 3, connected, NULL))
        die("cannot connect");
    while (waiting)
        turn(&rpc, 1);
    return rpc;
}

static void mounted(struct rpc_context *rpc, int status, void *data, void *private)
{
    mountres3 *res = data;
    struct nfs_fh3 handle;
    (void)rpc, (void)private;
    check(status, res ? (int)res->fhs_status : 0, "MNT");
    handle.data.data_len = res->mountres3_u.mountinfo.fhandle.fhandle3_len;
    handle.data.data_val = res->mountres3_u.mountinfo.fhandle.fhandle3_val;
    keep(&root, &handle);
    waiting = 0;
}

static void handle_found(struct rpc_context *rpc, int status, void *data, void *slot)
{
    CREATE3res *res = data;
    (void)rpc;
    check(status, res ? res->status : 0, "CREATE");
    keep(&((struct slot *)slot)->file, &res->CREATE3res_u.resok.obj.post_op_fh3_u.handle);
    waiting = 0;
}

static void dir_found(struct rpc_context *rpc, int status, void *data, void *slot)
{
    LOOKUP3res *res = data;
    (void)rpc, (void)slot;
    check(status, 0, "LOOKUP");
    if (res->status == NFS3_OK)
        keep(&many, &res->LOOKUP3res_u.resok.object);
    waiting = 0;
}

static void dir_made(struct rpc_context *rpc, int status, void *data, void *slot)
{
    MKDIR3res *res = data;
    (void)rpc, (void)slot;
    check(status, res ? res->status : 0, "MKDIR");
    keep(&many, &res->MKDIR3res_u.resok.obj.post_op_fh3_u.handle);
    waiting = 0;
}

static void written(struct rpc_context *rpc, int status, void *data, void *slot)
{
    (void)rpc, (void)slot;
    check(status, data ? ((WRITE3res *)data)->status : 0, "WRITE");
    waiting = 0;
}

static void finish(struct rpc_context *rpc)
{
    while (waiting)
        turn(&rpc, 1);
}

static void prepare_file(struct slot *s)
{
    uint64_t offset;
    waiting = 1;
    send_create(s, &root, "bench.data", handle_found);
    finish(s->rpc);
    keep(&file, &s->file);
    for (offset = 0; offset < FILE_BYTES; offset += MIB) {
        WRITE3args args = {.file = file, .offset = offset, .count = MIB, .stable = UNSTABLE,
                           .data = {.data_len = MIB, .data_val = megabyte}};
        waiting = 1;
        sent(rpc_nfs3_write_async(s->rpc, written, &args, s));
        finish(s->rpc);
    }
}

static void prepare_many(struct slot *s)
{
    LOOKUP3args look = {.what = {.dir = root, .name = "many"}};
    MKDIR3args make = {.where = {.dir = root, .name = "many"}};
    char name[32];
    int i;
    waiting = 1;
    sent(rpc_nfs3_lookup_async(s->rpc, dir_found, &look, s));
    finish(s->rpc);
    if (many.data.data_val)
        return;
    waiting = 1;
    sent(rpc_nfs3_mkdir_async(s->rpc, dir_made, &make, s));
    finish(s->rpc);
    for (i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "file-number-%04d", i);
        waiting = 1;
        send_create(s, &many, name, handle_found);
        finish(s->rpc);
    }
}

static const struct {
    const char *name;
    void (*launch)(struct slot *);
    void (*prepare)(struct slot *);
} operations[] = {
    {"null", launch_null, NULL},
    {"getattr", launch_getattr, prepare_file},
    {"lookup", launch_lookup, prepare_file},
    {"read", launch_read, prepare_file},
    {"read4k", launch_read4k, prepare_file},
    {"write", launch_write, prepare_file},
    {"readdirplus", launch_readdirplus, prepare_many},
    {"create", launch_create, NULL},
};

int main(int argc, char **argv)
{
    static struct rpc_context *rpcs[SLOTS_MAX];
    struct rpc_context *mount;
    int i, depth, connections = 1, pid = 0;
    double seconds, start, cpu;
    size_t op, count = sizeof operations / sizeof *operations;

    if (argc < 6)
        die("usage: SERVER EXPORT OPERATION DEPTH SECONDS [CONNECTIONS [SERVER_PID]]");
    for (op = 0; op < count && strcmp(operations[op].name, argv[3]); op++)
        ;
    depth = atoi(argv[4]);
    seconds = atof(argv[5]);
    if (argc > 6)
        connections = atoi(argv[6]);
    if (argc > 7)
        pid = atoi(argv[7]);
    if (op == count || depth < 1 || connections < 1 || depth * connections > SLOTS_MAX)
        die("no such operation, or too many calls in flight");
    megabyte = malloc(MIB);
    memset(megabyte, 'x', MIB);

    mount = connect_to(argv[1], MOUNT_PROGRAM);
    waiting = 1;
    sent(rpc_mount3_mnt_async(mount, mounted, argv[2], NULL));
    finish(mount);
    rpc_destroy_context(mount);
    for (i = 0; i < connections; i++)
        rpcs[i] = connect_to(argv[1], NFS_PROGRAM);
    for (i = 0; i < depth * connections; i++) {
        slots[i].rpc = rpcs[i % connections];
        slots[i].number = i;
    }
    if (operations[op].prepare)
        operations[op].prepare(&slots[0]);

    launch = operations[op].launch;
    bytes = 0;
    cpu = cpu_of(pid);
    start = now();
    until = start + seconds;
    in_flight = depth * connections;
    for (i = 0; i < depth * connections; i++)
        launch(&slots[i]);
    while (in_flight)
        turn(rpcs, connections);
    seconds = now() - start;
    printf("%llu %.6f %llu %.3f\n", (unsigned long long)calls, seconds, (unsigned long long)bytes,
           cpu_of(pid) - cpu);
    return 0;
}
