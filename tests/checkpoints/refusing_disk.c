/* A disk that refuses: preloaded, writes and renames fail with the error number that the file named by
   REFUSE_FILE holds, where their path contains the words that stand after it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int refused(const char *path) {
  const char *rule = getenv("REFUSE_FILE");
  char text[512] = {0}, words[400];
  int number, file = rule ? syscall(SYS_openat, AT_FDCWD, rule, O_RDONLY) : -1;
  if (file < 0) return 0;
  syscall(SYS_read, file, text, sizeof text - 1);
  syscall(SYS_close, file);
  return sscanf(text, "%d %399s", &number, words) == 2 && strstr(path, words) ? number : 0;
}

static int refused_descriptor(int descriptor) {
  char link[64], path[4096] = {0};
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  return readlink(link, path, sizeof path - 1) < 0 ? 0 : refused(path);
}

#define ORIGINAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define GUARD(number, call) \
  do { \
    int refusal = (number); \
    if (refusal) { errno = refusal; return -1; } \
    return call; \
  } while (0)

ssize_t write(int d, const void *b, size_t n) { GUARD(refused_descriptor(d), ORIGINAL(write)(d, b, n)); }
ssize_t writev(int d, const struct iovec *v, int n) { GUARD(refused_descriptor(d), ORIGINAL(writev)(d, v, n)); }
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { GUARD(refused_descriptor(d), ORIGINAL(pwrite)(d, b, n, o)); }
ssize_t pwrite64(int d, const void *b, size_t n, off64_t o) { GUARD(refused_descriptor(d), ORIGINAL(pwrite64)(d, b, n, o)); }
int rename(const char *a, const char *b) { GUARD(refused(b), ORIGINAL(rename)(a, b)); }
int mkdir(const char *p, mode_t m) { GUARD(refused(p), ORIGINAL(mkdir)(p, m)); }
