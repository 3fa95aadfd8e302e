/* fsx: random system calls on a few files, beside a copy of them in memory.
 *
 *     fsx [-s SEED] [-n OPERATIONS] [-b BLOCK] [-l LENGTH_MAX] DIRECTORY
 *
 * The system calls' side of fsx.py, for a mount (FUSE, or NFS in the guest): read, write, both also
 * through mappings, truncate, extend, fsync, closing and opening, dropping what the kernel caches,
 * renaming, removing and making anew. After each step what is read is what was written. It prints
 * a line and exits 0, or the difference and the last operations, and exits 1. The seed repeats it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 4, WINDOW = 256 * 1024, LOGGED = 60, LINE = 96 };

struct file {
    int fd;
    char name[32];
    off_t size;
    unsigned char wanted[WINDOW];
};

static struct file files[FILES];
static unsigned char found[WINDOW];
static char history[LOGGED][LINE];
static unsigned long operation, logged, names;
static uint64_t seed = 1, state;
static long block = 4096, length_max = 48 * 1024;

/* xorshift64*: the same numbers from the same seed on every machine. */
static uint64_t chance(uint64_t below)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 2685821657736338717ULL >> 33) % below;
}

static void say(const char *format, ...)
{
    va_list words;
    char *line = history[logged++ % LOGGED];
    int used = snprintf(line, LINE, "%lu: ", operation);

    va_start(words, format);
    vsnprintf(line + used, LINE - used, format, words);
    va_end(words);
}

static void fail(const char *format, ...)
{
    va_list words;

    printf("fsx: seed %llu, operation %lu: ", (unsigned long long)seed, operation);
    va_start(words, format);
    vprintf(format, words);
    va_end(words);
    printf("\n");
    for (unsigned long at = logged < LOGGED ? 0 : logged - LOGGED; at < logged; at++)
        printf("%s\n", history[at % LOGGED]);
    exit(1);
}

/* A system call that has to succeed. */
static long must(const char *call, long result)
{
    if (result < 0)
        fail("%s: %s", call, strerror(errno));
    return result;
}

static off_t position(void)
{
    long offset = chance(WINDOW);

    if (chance(2)) {
        offset -= offset % block;
        offset += (long)chance(3) - 1;
    }
    return offset < 0 ? 0 : offset;
}

static long length(off_t offset)
{
    long count;

    switch (chance(4)) {
    case 0:
        count = 1 + chance(99);
        break;
    case 1:
        count = block * (1 + chance(1 + length_max / block / 3));
        break;
    case 2:
        count = block + chance(3) - 1;
        break;
    default:
        count = 1 + chance(length_max);
    }
    return count < WINDOW - offset ? count : WINDOW - offset;
}

static void compare(struct file *file, off_t offset, long count, const unsigned char *data)
{
    for (long at = 0; at < count; at++)
        if (data[at] != file->wanted[offset + at])
            fail("%s: at %ld: %02x, and not %02x", file->name, (long)offset + at, data[at],
                 file->wanted[offset + at]);
}

static void check(struct file *file, off_t offset, long count)
{
    long wanted = offset >= file->size ? 0 : file->size - offset, got = 0;

    say("%s: read %ld at %ld", file->name, count, (long)offset);
    wanted = count < wanted ? count : wanted;
    while (got < count) {
        long more = must("pread", pread(file->fd, found + got, count - got, offset + got));
        if (!more)
            break;
        got += more;
    }
    if (got != wanted)
        fail("%s: %ld bytes, and not %ld", file->name, got, wanted);
    compare(file, offset, got, found);
}

/* An NFS client that is asked for times sends what it has first: so it is asked for the size alone,
 * and only now and then for all. */
static void check_size(struct file *file)
{
    struct stat status;
    off_t size;

    if (chance(50) == 0) {
        must("fstat", fstat(file->fd, &status));
        size = status.st_size;
    } else {
        size = must("lseek", lseek(file->fd, 0, SEEK_END));
    }
    if (size != file->size)
        fail("%s: size %ld, and not %ld", file->name, (long)size, (long)file->size);
}

/* What operation number so and so writes. */
static void stamp(unsigned char *data, long count)
{
    char text[24];
    int size = snprintf(text, sizeof text, "%lu.", operation);

    for (long at = 0; at < count; at++)
        data[at] = text[at % size];
}

static void write_at(struct file *file, off_t offset)
{
    long count = length(offset), done = 0;

    if (!count)
        return;
    say("%s: write %ld at %ld", file->name, count, (long)offset);
    stamp(file->wanted + offset, count);
    while (done < count)
        done += must("pwrite",
                     pwrite(file->fd, file->wanted + offset + done, count - done, offset + done));
    if (offset + count > file->size)
        file->size = offset + count;
}

static void resize(struct file *file, off_t size)
{
    say("%s: truncate from %ld to %ld", file->name, (long)file->size, (long)size);
    must("ftruncate", ftruncate(file->fd, size));
    memset(file->wanted + size, 0, WINDOW - size);
    file->size = size;
}

/* Through a mapping of the whole file: read a part of it, or write. */
static void map(struct file *file, int writes)
{
    off_t offset = file->size ? chance(file->size) : 0;
    long count = length(offset);
    unsigned char *data;

    if (count > file->size - offset)
        count = file->size - offset;
    if (count <= 0)
        return;
    say("%s: %s %ld at %ld, mapped", file->name, writes ? "write" : "read", count, (long)offset);
    data = mmap(NULL, file->size, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd, 0);
    if (data == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    if (writes) {
        stamp(file->wanted + offset, count);
        memcpy(data + offset, file->wanted + offset, count);
    }
    compare(file, offset, count, data + offset);
    /* Behind its end the last page of a file is zero. */
    for (off_t at = file->size; at % 4096; at++)
        if (data[at])
            fail("%s: behind the end, at %ld: %02x", file->name, (long)at, data[at]);
    must("munmap", munmap(data, file->size));
}

static void open_file(struct file *file, int flags)
{
    file->fd = must("open", open(file->name, O_RDWR | flags, 0644));
}

static void create(struct file *file)
{
    snprintf(file->name, sizeof file->name, "file-%lu", ++names);
    open_file(file, O_CREAT | O_EXCL);
    memset(file->wanted, 0, WINDOW);
    file->size = 0;
}

static void reopen(struct file *file)
{
    say("%s: close and open", file->name);
    must("close", close(file->fd));
    open_file(file, 0);
}

/* What is read next comes from the server. */
static void forget(struct file *file)
{
    say("%s: fsync and forget", file->name);
    must("fsync", fsync(file->fd));
    errno = posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
    must("posix_fadvise", errno ? -1 : 0);
    check(file, 0, WINDOW);
}

static void replace(struct file *file)
{
    say("%s: remove, and create", file->name);
    must("unlink", unlink(file->name));
    check_size(file); /* it is open, and so still there */
    must("close", close(file->fd));
    create(file);
}

static void move(struct file *file)
{
    struct file *other = &files[chance(FILES)];
    char name[32];

    if (other == file) {
        snprintf(name, sizeof name, "file-%lu", ++names);
        say("%s: rename to %s", file->name, name);
        must("rename", rename(file->name, name));
        strcpy(file->name, name);
        return;
    }
    say("%s: rename over %s", file->name, other->name);
    must("rename", rename(file->name, other->name));
    strcpy(file->name, other->name);
    must("close", close(other->fd));
    create(other);
}

/* What a client does in its own memory is done often, what goes to a server less often. */
static void step(struct file *file)
{
    unsigned weight = chance(1000);
    off_t offset = position();

    if (weight < 330)
        write_at(file, offset);
    else if (weight < 460)
        write_at(file, file->size);
    else if (weight < 750)
        check(file, offset, length(offset));
    else if (weight < 860)
        map(file, 1);
    else if (weight < 970)
        map(file, 0);
    else if (weight < 982)
        resize(file, chance(6) ? offset : 0);
    else if (weight < 988)
        resize(file, file->size > offset ? file->size : offset);
    else if (weight < 994)
        reopen(file);
    else if (weight < 997)
        forget(file);
    else if (weight < 998)
        replace(file);
    else
        move(file);
}

int main(int count, char **words)
{
    unsigned long operations = 10000;
    int option;

    while ((option = getopt(count, words, "s:n:b:l:")) != -1) {
        if (option == 's')
            seed = strtoull(optarg, NULL, 0);
        else if (option == 'n')
            operations = strtoul(optarg, NULL, 0);
        else if (option == 'b')
            block = strtol(optarg, NULL, 0);
        else if (option == 'l')
            length_max = strtol(optarg, NULL, 0);
        else
            return 2;
    }
    state = seed * 0x9E3779B97F4A7C15ULL | 1;
    if (optind != count - 1 || chdir(words[optind])) {
        fprintf(stderr, "usage: fsx [-s SEED] [-n OPERATIONS] [-b BLOCK] [-l LENGTH_MAX] DIRECTORY\n");
        return 2;
    }
    for (int number = 0; number < FILES; number++)
        create(&files[number]);
    for (operation = 1; operation <= operations; operation++) {
        struct file *file = &files[chance(FILES)];
        step(file);
        check_size(file);
    }
    for (int number = 0; number < FILES; number++)
        forget(&files[number]);
    printf("fsx: %lu operations, seed %llu: as it should be\n", operations,
           (unsigned long long)seed);
    return 0;
}
